"""Fig. 7: more data, given at a plateau, against layer linearization (1-D data, three hidden tanh layers).

    python examples/depth_paper/fig7.py

The paper switches from 70 to 80 or 100 points "equally spaced around 0" and escapes the sooner the more there are. Both
readings are tried: the same spacing over a wider interval, and the same interval more densely. Quick: gradient descent
at 0.04 instead of 0.01, a quarter of the steps.
"""

from copy import deepcopy
from typing import Any

import torch
from experiment import LINES, History, Options, descend, draw_mpc, mpc, network, panels, run, steps_curve
from matplotlib.figure import Figure
from torch import nn

WIDER, DENSER, NONE = "points, wider", "points, denser", "points, as before"
ADJUST, ESCAPE = 10, 0.9  # escaped: below this share of the loss that this record after the switch had


def datasets() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The data to go on with."""
    return {
        f"70 {NONE}": steps_curve(70),
        **{f"{count} {WIDER}": steps_curve(count, 2.0 * (count - 1) / 69) for count in (80, 100)},
        f"100 {DENSER}": steps_curve(100),
    }


def escaped(history: History) -> int | None:
    """The first recorded step with a loss well below that to which the network soon settled on the new data."""
    bound = ESCAPE * history.losses[ADJUST]
    return next((step for step, loss in zip(history.steps, history.losses, strict=True) if loss < bound), None)


def compute(options: Options) -> dict[str, Any]:
    rate, before, after = (0.01, 9000, 4000) if options.full else (0.04, 2250, 1000)
    sets = datasets()
    x = steps_curve()[0]
    net = network([1, 50, 50, 50, 1], nn.Tanh, 0.1, options.seed)
    start = descend(net, steps_curve(), rate, before, lambda one: mpc(one, x))
    runs = {
        name: descend(deepcopy(net), data, rate, after, lambda one, data=data: mpc(one, data[0]))
        for name, data in sets.items()
    }
    found = {
        "loss at the switch": {name: one.losses[0] for name, one in runs.items()},
        "steps from the switch to the escape (null: none)": {name: escaped(one) for name, one in runs.items()},
        "MPC by layer right before the switch": start.watched[-1],
        "MPC by layer on the new data": {name: one.watched[0] for name, one in runs.items()},
    }
    return {
        "settings": {"rate": rate, "steps before": before, "steps after": after, "width": 50, "std": 0.1},
        "before": {**start.curve(), "mpc": start.watched},
        "after": {name: {**one.curve(), "mpc": one.watched, "escape": escaped(one)} for name, one in runs.items()},
        "found": found,
    }


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("More data at a plateau (000, Fig. 7)", 2, 2)
    before = data["before"]
    switch = before["step"][-1]
    axes[0].plot(before["step"], before["loss"], "k", linewidth=1)
    axes[0].plot(switch, before["loss"][-1], "ko", markersize=5)
    for style, (name, one) in zip(LINES, data["after"].items(), strict=False):
        axes[0].plot([switch + step for step in one["step"]], one["loss"], linestyle=style, label=name)
    losses = [loss for one in data["after"].values() for loss in one["loss"]]
    axes[0].set(xlabel="training step", ylabel="training loss (mean square error)", yscale="log")
    axes[0].set_ylim(0.9 * min(losses), 1.5 * max(losses))
    axes[0].legend(fontsize=7)
    wider_or_denser = list(data["after"].items())[1:]
    for panel, (name, one) in zip(axes[1:], wider_or_denser, strict=True):
        steps = [*before["step"], *[switch + step for step in one["step"]]]
        draw_mpc(panel, steps, [*before["mpc"], *one["mpc"]])
        panel.axvline(switch, color="k", linewidth=0.8)
        if one["escape"] is not None:
            panel.axvline(switch + one["escape"], color="0.5", linestyle="--", linewidth=0.8)
        panel.set_title(name, fontsize=10)
    return figure


if __name__ == "__main__":
    run("fig7", __doc__, compute, draw)
