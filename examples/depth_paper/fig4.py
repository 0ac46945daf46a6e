"""Fig. 4: a network with three hidden layers rests where one with a single hidden layer does (Iris, tanh).

    python examples/depth_paper/fig4.py

The paper prints neither rate nor variance for this figure. Ours: width 50, standard deviation 0.02, mean square error,
gradient descent at 0.01; quick: at 0.1, a tenth of the steps.
"""

from typing import Any

from encounters import DEEP, SHALLOW, draw_encounter, encounter
from experiment import Options, accuracy, iris, network, panels, run
from matplotlib.figure import Figure
from torch import nn


def compute(options: Options) -> dict[str, Any]:
    flowers = iris(options.seed)
    nets = {
        name: network([4, *[50] * depth, 3], nn.Tanh, std, options.seed)
        for name, depth, std in ((SHALLOW, 1, 1e-4), (DEEP, 3, 0.02))
    }
    rate, steps = (0.01, 20_000) if options.full else (0.1, 2000)
    results, there = encounter(nets, (flowers.inputs, flowers.one_hot), rate=rate, steps=steps, limits=(0.6, 0.1))
    reached = {
        name: {
            "train": accuracy(net, flowers.inputs, flowers.labels),
            "test": accuracy(net, flowers.test_inputs, flowers.test_labels),
        }
        for name, net in there.items()
    }
    results["found"]["accuracy at the plateau"] = reached
    settings = {"rate": rate, "steps": steps, "width": 50, "std": 0.02, "samples": len(flowers.inputs)}
    return {"settings": settings, **results, "accuracy": reached}


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("Lifted critical points in training, Iris (000, Fig. 4)", 2, 2)
    draw_encounter(axes, data)
    for shift, shade, part in ((-0.2, "0.35", "train"), (0.2, "0.75", "test")):
        heights = [one[part] for one in data["accuracy"].values()]
        axes[1].bar([0 + shift, 1 + shift], heights, 0.38, color=shade, label=part)
    axes[1].axhline(2 / 3, color="k", linewidth=0.8, linestyle="--", label="two of three classes")
    axes[1].set(xticks=(0, 1), xticklabels=list(data["accuracy"]), ylabel="accuracy at the plateau", ylim=(0, 1))
    axes[1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run("fig4", __doc__, compute, draw)
