"""Figs. 3 and 4: a deep and a shallow network stagnate at one loss; merged there, the deep one is the shallow one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from experiment import LINEAR, LINES, SHADE, Plateau, descend, draw_curves, draw_mpc, mpc, plateau
from matplotlib.axes import Axes
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.statistics import gradient_l1, named_gradients

SHALLOW, DEEP = "1 hidden layer", "3 hidden layers"
NEAR = 0.05  # the share of its loss within which a training counts as resting


def encounter(
    nets: dict[str, nn.Module], data: tuple[Tensor, Tensor], *, rate: float, steps: int, limits: tuple[float, float]
) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Train both, find their plateaus, merge the deep one's linearized layers there and train the reduced one.

    `limits` are the shares of the first loss between which a plateau is looked for. Gives plain data, and the networks
    at their plateaus.
    """
    histories = {name: descend(net, data, rate, steps, lambda net: mpc(net, data[0])) for name, net in nets.items()}
    rests = {name: _plateau(name, one, limits) for name, one in histories.items()}
    there = {name: histories[name].nets[one.best] for name, one in rests.items()}
    dot, by_layer = rests[DEEP], histories[DEEP].watched[rests[DEEP].best]
    reduced, merged = reduce_to_one(there[DEEP], data[0], by_layer)
    start = loss_and_gradient(reduced, data)
    rest = descend(reduced, data, rate, steps // 4)
    resting = [step for step, loss in zip(rest.steps, rest.losses, strict=True) if abs(loss / dot.loss - 1) > NEAR]
    difference = abs(dot.loss / rests[SHALLOW].loss - 1)
    results = {
        "curves": {name: one.curve() for name, one in histories.items()},
        "plateaus": {name: {"steps": one.steps, "loss": one.loss} for name, one in rests.items()},
        "dot": {"step": histories[DEEP].steps[dot.best], "loss": dot.loss, "mpc": by_layer},
        "mpc": histories[DEEP].watched,
        "reduced": rest.curve(),
        "found": {
            "plateau of the shallow network": rests[SHALLOW].loss,
            "plateau of the deep network": dot.loss,
            "relative difference": difference,
            "MPC at the dot": by_layer,
            "hidden layers merged": merged,
            "loss right after merging": start[0],
            "L1 gradient before and after merging": [loss_and_gradient(there[DEEP], data)[1], start[1]],
            f"reduced network within {NEAR:.0%} of the plateau until step": resting[0] if resting else rest.steps[-1],
        },
    }
    return results, there


def _plateau(name: str, history: Any, limits: tuple[float, float]) -> Plateau:
    found = plateau(history, NEAR, *limits)
    if found is None:
        raise SystemExit(f"No plateau of the network with {name} in this training; try another --seed.")
    return found


def reduce_to_one(net: nn.Module, inputs: Tensor, by_layer: list[float]) -> tuple[nn.Module, list[int]]:
    """Merge all hidden layers but the least linearized one, where MPC allows; layers count from 1."""
    order = sorted(range(len(by_layer)), key=lambda one: -by_layer[one])[:-1]
    chosen = sorted(one for one in order if by_layer[one] >= LINEAR)
    names = [le.measure(net, inputs).layers[one].layer for one in chosen]
    plan = le.propose(net, inputs, criteria=le.Criteria(linearization=LINEAR, condensation=None, span=None))
    reduced = deepcopy(net)
    le.apply(reduced, le.Plan(tuple(step for step in plan if step.layer in names)))
    return reduced, [one + 1 for one in chosen]


def loss_and_gradient(net: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Mean square error, and the L1 norm of its gradient."""
    net.zero_grad()
    loss = nn.functional.mse_loss(net(data[0]), data[1])
    loss.backward()
    size = gradient_l1(named_gradients(net)).item()
    net.zero_grad()
    return loss.item(), size


def draw_encounter(axes: list[Axes], data: dict[str, Any]) -> None:
    """Panels a, c and d of Figs. 3 and 4; panel b is the figure's own."""
    draw_curves(axes[0], data["curves"], "loss", "training loss (mean square error)", log=True)
    span, dot = data["plateaus"][DEEP]["steps"], data["dot"]
    for one in (axes[0], axes[2]):
        one.axvspan(*span, **SHADE)
    axes[0].plot(dot["step"], dot["loss"], "ko", markersize=5)
    draw_mpc(axes[2], data["curves"][DEEP]["step"], data["mpc"])
    axes[2].plot(dot["step"], min(dot["mpc"]), "ko", markersize=5)
    axes[3].axhline(data["plateaus"][SHALLOW]["loss"], color="0.5", linestyle=LINES[1], label="plateau of " + SHALLOW)
    axes[3].plot(data["reduced"]["step"], data["reduced"]["loss"], "k", label="merged to one hidden layer")
    axes[3].set(xlabel="training step after merging", ylabel="training loss (mean square error)", ylim=(0, None))
    axes[3].legend(fontsize=8)
