"""Fig. 1 of the width paper: a wide tanh network stagnates at a critical point of a width-1 network.

    python examples/width_paper/fig1.py

(a) The training loss of a wide network from small weights, with the losses of the best width-1 and width-3 networks.
(b), (c) Its output at its slowest step near the former, and at its end, beside the outputs of those networks.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from experiment import Options, curve, exact, gaussian, run, train
from matplotlib.figure import Figure
from torch import nn

from lightning_embed.analysis import find_critical_point


def compute(options: Options) -> dict[str, Any]:
    width, rate, steps = (500, 0.005, 300_000) if options.full else (100, 0.05, 10_000)
    data = inputs, targets = curve()
    start = gaussian((1, 1, 1), nn.Tanh(), 1.0, options.seed)
    narrow = {1: find_critical_point(start, nn.MSELoss(), data, steps=1000, rate=0.05).model, 3: exact()}
    net = gaussian((1, width, 1), nn.Tanh(), width**-1.5, options.seed)
    losses: list[float] = []
    kept: list[nn.Module] = []
    every = steps // 300

    def watch(step: int, loss: float) -> None:
        if step % every == 0:
            losses.append(loss)
            kept.append(copy.deepcopy(net))

    train(net, data, torch.optim.SGD(net.parameters(), lr=rate), steps, watch)
    with torch.no_grad():
        wanted = {size: model(inputs)[:, 0] for size, model in narrow.items()}
        best = {size: (outputs - targets[:, 0]).square().mean().item() for size, outputs in wanted.items()}
    slow = slowest(losses, best[1])
    chosen = {"plateau": slow, "end": len(losses) - 1}
    with torch.no_grad():
        outputs = {name: kept[number](inputs)[:, 0] for name, number in chosen.items()}
    scale = targets.std().item()
    return {
        "width": width,
        "rate": rate,
        "found": {
            "loss of the best width-1 network": best[1],
            "loss at the slowest step near it": losses[slow],
            "its step": slow * every,
            "outputs there, apart from the width-1 network's": apart(outputs["plateau"], wanted[1]) / scale,
            "loss of the best width-3 network": best[3],
            "loss at the end": losses[-1],
            "outputs there, apart from the width-3 network's": apart(outputs["end"], wanted[3]) / scale,
        },
        "steps": [number * every for number in range(len(losses))],
        "losses": losses,
        "chosen": {name: number * every for name, number in chosen.items()},
        "inputs": inputs[:, 0],
        "targets": targets[:, 0],
        "outputs": outputs,
        "narrow": {str(size): {"loss": best[size], "outputs": wanted[size]} for size in narrow},
    }


def slowest(losses: list[float], near: float) -> int:
    """The record at which the loss falls the least, as a share, while it is within 10 % of a critical loss."""
    close = [number for number in range(1, len(losses) - 1) if abs(losses[number] / near - 1) < 0.1]
    if not close:
        raise SystemExit(f"the training never came near the loss {near:.4g}; try another --seed")
    return min(close, key=lambda number: abs(math.log(losses[number - 1] / losses[number + 1])))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(f"a width-{results['width']} tanh network at a critical point of a width-1 network", fontsize=11)
    loss, *curves = figure.subplots(1, 3)
    loss.semilogy(results["steps"], results["losses"], color="black")
    loss.axhline(results["narrow"]["1"]["loss"], color="0.5", linestyle="--", label="best width-1 network")
    marks = {"plateau": ("o", "tab:blue"), "end": ("s", "tab:orange")}
    for name, step in results["chosen"].items():
        mark, color = marks[name]
        loss.plot(step, results["losses"][results["steps"].index(step)], mark, color=color, markersize=8, label=name)
    loss.set(xlabel="training step", ylabel="loss (mean squared error)", title="(a)")
    loss.legend(fontsize=8)
    for axes, letter, (name, size) in zip(curves, "bc", (("plateau", "1"), ("end", "3")), strict=True):
        axes.plot(results["inputs"], results["targets"], ".", color="tab:blue", label="training data")
        axes.plot(results["inputs"], results["outputs"][name], color="tab:red", label=f"wide network, {name}")
        axes.plot(results["inputs"], results["narrow"][size]["outputs"], "k--", label=f"best width-{size} network")
        axes.set(xlabel="input", ylabel="output", title=f"({letter})")
        axes.legend(fontsize=8, loc="upper left")
    return figure


if __name__ == "__main__":
    run("fig1", __doc__, compute, draw)
