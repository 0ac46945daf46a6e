"""Fig. 6: batch normalisation keeps layers from being linearized, and with them the plateau away (1-D data).

    python examples/depth_paper/fig6.py

The paper: two hidden tanh layers of width 50, variance 0.01, gradient descent at 0.01, batch norm before the activation
with its scale γ starting at 0.1, 1 or 1.5. Quick: at 0.04, a quarter of the steps.
"""

from typing import Any

from experiment import LINES, Options, descend, draw_curves, draw_mpc, gaussian, mpc, panels, run, steps_curve
from matplotlib.figure import Figure
from torch import nn

LEARNED = 0.1  # the loss by which a network has left the plateau of Fig. 3, at 0.12


def normalised(gamma: float | None, seed: int) -> nn.Sequential:
    """Two hidden layers with batch norm of that scale, or without."""
    modules: list[nn.Module] = []
    for fan_in in (1, 50):
        modules.append(nn.Linear(fan_in, 50))
        if gamma is not None:
            modules.append(nn.BatchNorm1d(50))
            nn.init.constant_(modules[-1].weight, gamma)
        modules.append(nn.Tanh())
    return gaussian(nn.Sequential(*modules, nn.Linear(50, 1)), 0.1, seed)


def compute(options: Options) -> dict[str, Any]:
    data = steps_curve()
    rate, steps = (0.01, 5000) if options.full else (0.04, 1250)
    curves, mpcs, left = {}, {}, {}
    for gamma in (None, 0.1, 1.0, 1.5):
        name = "no batch norm" if gamma is None else f"γ = {gamma}"
        history = descend(normalised(gamma, options.seed), data, rate, steps, lambda net: mpc(net, data[0]))
        curves[name], mpcs[name] = history.curve(), history.watched
        left[name] = next(
            (step for step, loss in zip(history.steps, history.losses, strict=True) if loss < LEARNED), None
        )
    found = {
        f"step at which the loss is below {LEARNED} (null: never)": left,
        "least MPC of any layer up to a tenth of the training": {
            name: min(min(one) for one in values[: len(values) // 10]) for name, values in mpcs.items()
        },
        "final loss": {name: one["loss"][-1] for name, one in curves.items()},
    }
    settings = {"rate": rate, "steps": steps, "width": 50, "std": 0.1}
    return {"settings": settings, "curves": curves, "mpc": mpcs, "left": left, "found": found}


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("Batch normalisation against layer linearization (000, Fig. 6)", 2, 2)
    draw_curves(axes[0], data["curves"], "loss", "training loss (mean square error)", log=True)
    for one, name in zip(axes[1:], list(data["curves"])[1:], strict=True):
        draw_mpc(one, data["curves"][name]["step"], data["mpc"][name])
        one.set_title(name, fontsize=10)
        if data["left"][name] is not None:
            for panel in (axes[0], one):
                panel.axvline(data["left"][name], color="0.6", linestyle=LINES[1], linewidth=0.8)
    return figure


if __name__ == "__main__":
    run("fig6", __doc__, compute, draw)
