"""Fig. 3: a network with three hidden layers rests where one with a single hidden layer does (1-D data, tanh).

    python examples/depth_paper/fig3.py

The paper: width 50, variance 0.01, gradient descent at 0.01. Quick: at 0.05, for nearly as much time.
"""

from typing import Any

import torch
from encounters import DEEP, SHALLOW, draw_encounter, encounter
from experiment import LINES, Options, network, panels, run, steps_curve
from matplotlib.figure import Figure
from torch import nn


def compute(options: Options) -> dict[str, Any]:
    data = steps_curve()
    nets = {
        name: network([1, *[50] * depth, 1], nn.Tanh, 0.1, options.seed) for name, depth in ((SHALLOW, 1), (DEEP, 3))
    }
    rate, steps = (0.01, 20_000) if options.full else (0.05, 3500)
    results, there = encounter(nets, data, rate=rate, steps=steps, limits=(0.5, 0.02))
    with torch.no_grad():
        outputs = {name: net(data[0])[:, 0].tolist() for name, net in there.items()}
    apart = torch.tensor(outputs[DEEP]) - torch.tensor(outputs[SHALLOW])
    results["found"]["largest difference of the outputs at the plateau"] = apart.abs().max().item()
    settings = {"rate": rate, "steps": steps, "width": 50, "std": 0.1, "samples": len(data[0])}
    return {"settings": settings, **results, "x": data[0][:, 0], "y": data[1][:, 0], "outputs": outputs}


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("Lifted critical points in training, 1-D data (000, Fig. 3)", 2, 2)
    draw_encounter(axes, data)
    axes[1].plot(data["x"], data["y"], ".", color="0.6", label="data")
    for style, (name, outputs) in zip(LINES, data["outputs"].items(), strict=False):
        axes[1].plot(data["x"], outputs, linestyle=style, label=name)
    axes[1].set(xlabel="x", ylabel="output at the plateau")
    axes[1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run("fig3", __doc__, compute, draw)
