"""Fig. 12: layers are the less linearized the larger the initial weights are and the more data there are.

    python examples/depth_paper/fig12.py [--data DIR]

Ten hidden tanh layers of width 100. The paper trains on Fashion-MNIST by SGD at 0.01 for 50 epochs, with standard
deviations of 0.003, 0.005, 0.02 and with 500, 5000, 50 000 images. Ours: MNIST (or digits), Adam at 0.001, larger
deviations. All numbers of images are trained for the same number of epochs, as in the paper, so more images take more
steps; with the same number of steps for all the effect is not seen, and that is measured too.
"""

from typing import Any

import torch
from experiment import LINEAR, Options, accuracy, images, mpc, network, panels, run, train
from matplotlib.figure import Figure
from torch import nn

HIDDEN, WIDTH, MIDDLE = 10, 100, 0.1
STDS = (0.05, MIDDLE, 0.2)


def compute(options: Options) -> dict[str, Any]:
    counts, batch, steps = ((500, 5000, 50_000), 512, 5000) if options.full else ((100, 400, 1200), 100, 400)
    everything = images(options, counts[-1])

    def trained(std: float, count: int, steps: int) -> dict[str, Any]:
        inputs, labels = everything.inputs[:count], everything.labels[:count]
        net = network([inputs.shape[1], *[WIDTH] * HIDDEN, 10], nn.Tanh, std, options.seed).float()
        adam = torch.optim.Adam(net.parameters(), lr=1e-3)
        loss = nn.functional.cross_entropy
        train(net, loss, (inputs, labels), adam, steps, batch=min(batch, count), records=2, seed=options.seed)
        reached = accuracy(net, everything.test_inputs, everything.test_labels)
        return {
            "std": std,
            "samples": count,
            "steps": steps,
            "mpc": mpc(net, everything.inputs[: counts[0]]),
            "train accuracy": accuracy(net, inputs, labels),
            "test accuracy": reached,
        }

    by_std = [trained(std, counts[-1], steps) for std in STDS]
    whole = by_std[STDS.index(MIDDLE)]
    by_count = [*(trained(MIDDLE, count, steps * count // counts[-1]) for count in counts[:-1]), whole]
    same_steps = [*(trained(MIDDLE, count, steps) for count in counts[:-1]), whole]

    def linear(one: dict[str, Any]) -> int:
        return sum(value >= LINEAR for value in one["mpc"])

    return {
        "settings": {
            "data": everything.name,
            "hidden": HIDDEN,
            "width": WIDTH,
            "rate": 1e-3,
            "batch": batch,
            "steps": steps,
        },
        "by std": by_std,
        "by samples": by_count,
        "found": {
            f"layers with MPC >= {LINEAR} by standard deviation": {str(one["std"]): linear(one) for one in by_std},
            f"layers with MPC >= {LINEAR} by samples": {str(one["samples"]): linear(one) for one in by_count},
            "mean MPC by standard deviation": {str(one["std"]): sum(one["mpc"]) / HIDDEN for one in by_std},
            "mean MPC by samples, equal epochs": {str(one["samples"]): sum(one["mpc"]) / HIDDEN for one in by_count},
            "mean MPC by samples, equal steps": {str(one["samples"]): sum(one["mpc"]) / HIDDEN for one in same_steps},
            "test accuracy": [one["test accuracy"] for one in [*by_std, *by_count]],
        },
    }


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels(f"What layer linearization depends on, {data['settings']['data']} (000, Fig. 12)", 2)
    for one, key, label in ((axes[0], "by std", "std"), (axes[1], "by samples", "samples")):
        for marker, entry in zip("o^s", data[key], strict=True):
            named = f"{label} {entry[label]}: test accuracy {entry['test accuracy']:.3f}"
            one.plot(range(1, HIDDEN + 1), entry["mpc"], f"k{marker}-", fillstyle="none", linewidth=0.7, label=named)
        one.axhline(LINEAR, color="0.5", linewidth=0.8)
        one.set(xlabel="hidden layer", ylabel="MPC after training", xticks=range(1, HIDDEN + 1))
        one.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run("fig12", __doc__, compute, draw, of_images=True)
