"""Figs. 10 and 11: networks of one to three hidden layers meet at the same losses with the same outputs."""

from __future__ import annotations

from typing import Any

import torch
from experiment import LINES, bent, descend, draw_curves, draw_mpc, mpc, panels, plateau
from matplotlib.figure import Figure
from torch import Tensor, nn


def compare(
    nets: dict[str, nn.Module],
    data: tuple[Tensor, Tensor],
    *,
    rate: float,
    steps: int,
    levels: tuple[float, float],
    least_amplitude: float = 0.0,
) -> dict[str, Any]:
    """Train all, compare outputs where each first gets below the levels of loss; watch the last one's MPC."""
    deepest = list(nets)[-1]
    histories = {
        name: descend(
            net, data, rate, steps, (lambda one: mpc(one, data[0], least_amplitude)) if name == deepest else None
        )
        for name, net in nets.items()
    }
    meetings = []
    for level in levels:
        reached = {
            name: next((record for record, loss in enumerate(one.losses) if loss <= level), None)
            for name, one in histories.items()
        }
        outputs = {}
        with torch.no_grad():
            for name, record in reached.items():
                if record is not None:
                    outputs[name] = histories[name].nets[record](data[0])[:, 0].tolist()
        there = reached[deepest]
        meetings.append(
            {
                "level": level,
                "outputs": outputs,
                "apart": _apart(list(outputs.values())),
                "not affine": None if there is None else bent(histories[deepest].nets[there], data[0]),
            }
        )
    rests = {name: plateau(one) for name, one in histories.items()}
    return {
        "curves": {name: one.curve() for name, one in histories.items()},
        "mpc": histories[deepest].watched,
        "x": data[0][:, 0],
        "y": data[1][:, 0],
        "meetings": meetings,
        "found": {
            "plateaus (loss, steps)": {name: one and (one.loss, one.steps) for name, one in rests.items()},
            "MPC on the deepest network's plateau": rests[deepest] and histories[deepest].watched[rests[deepest].best],
            "outputs apart, as a share of the data's spread": [one["apart"] for one in meetings],
            "deepest network, share of what each layer passes on that is not affine in its input": [
                one["not affine"] for one in meetings
            ],
        },
    }


def _apart(outputs: list[list[float]]) -> float | None:
    """The largest root mean square distance from the first of the outputs, as a share of its standard deviation."""
    first, *others = torch.tensor(outputs) if len(outputs) > 1 else [None]
    return max((one - first).square().mean().sqrt().div(first.std()).item() for one in others) if others else None


def draw_depths(title: str, data: dict[str, Any]) -> Figure:
    """Losses, the outputs at two levels of loss, and the deepest network's MPC."""
    figure, axes = panels(title, 2, 2)
    draw_curves(axes[0], data["curves"], "loss", "training loss (mean square error)", log=True)
    for one, meeting in zip(axes[1:3], data["meetings"], strict=True):
        axes[0].axhline(meeting["level"], color="0.5", linestyle=":", linewidth=1)
        one.plot(data["x"], data["y"], ".", color="0.7", label="data")
        for style, (name, outputs) in zip(LINES, meeting["outputs"].items(), strict=False):
            one.plot(data["x"], outputs, linestyle=style, label=name)
        one.set(xlabel="x", ylabel=f"output at loss {meeting['level']:.3g}")
        one.legend(fontsize=8)
    draw_mpc(axes[3], data["curves"][list(data["curves"])[-1]]["step"], data["mpc"])
    return figure
