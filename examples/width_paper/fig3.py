"""Fig. 3 of the width paper: eigenvalues of the Hessian at a critical point and where it is embedded.

    python examples/width_paper/fig3.py

A width-2 network is brought to a critical point, for the curve of Fig. 1 (a) and for Iris (b). One of its neurons is
split equally into 2 and 3. Each split adds a zero eigenvalue, and negative ones.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from experiment import Options, curve, gaussian, run, train
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.analysis import CriticalPoint, Risk, find_critical_point, hessian, inertia, spectrum
from lightning_embed.operators import split_neuron
from lightning_embed.surgery import mlp, theta_of

THRESHOLD = 1e-11  # the paper's dashed line
SIGNS = {"positive": ("^", "tab:red"), "zero": ("o", "0.5"), "negative": ("v", "tab:blue")}


def compute(options: Options) -> dict[str, Any]:
    data = {"a": curve(), "b": iris()}
    points = {"a": minimum(options), "b": stagnation(options)}
    panels = {
        letter: {
            "activation": type(point.model[1]).__name__,
            "gradient": point.gradient,
            "loss": point.loss,
            "embedded": embedded(point, data[letter]),
        }
        for letter, point in points.items()
    }
    found = {
        f"({letter}) {sign} eigenvalues at widths 2, 3, 4": [one[sign] for one in panel["embedded"]]
        for letter, panel in panels.items()
        for sign in SIGNS
    }
    return {"threshold": THRESHOLD, "found": found, "panels": panels}


def iris() -> tuple[Tensor, Tensor]:
    """The four lengths of 150 flowers in centimetres, and their classes as unit vectors."""
    from sklearn.datasets import load_iris

    given = load_iris()
    labels = nn.functional.one_hot(torch.tensor(given.target))
    return torch.tensor(given.data, dtype=torch.float64), labels.double()


def minimum(options: Options) -> CriticalPoint:
    """A minimum of two tanh neurons on the curve, by gradient descent."""
    steps, rate = (300_000, 0.005) if options.full else (2000, 0.05)
    net = gaussian((1, 2, 1), nn.Tanh(), 2**-1.5, options.seed)
    return find_critical_point(net, nn.MSELoss(), curve(), steps=steps, rate=rate)


def stagnation(options: Options) -> CriticalPoint:
    """The saddle point of two sigmoid neurons on Iris at which Adam stagnates, by the least L1 gradient on its way."""
    steps = 20_000 if options.full else 1000
    net = gaussian((4, 2, 3), nn.Sigmoid(), 2**-3, options.seed)
    risk = Risk(net, nn.MSELoss(), iris())
    best, least = copy.deepcopy(net), math.inf

    def watch(_: int, __: float) -> None:
        nonlocal best, least
        point = nn.utils.parameters_to_vector(net.parameters()).detach()
        size = risk.gradient(point).abs().sum().item()
        if size < least:
            best, least = copy.deepcopy(net), size

    train(net, iris(), torch.optim.Adam(net.parameters(), lr=0.02), steps, watch)
    return find_critical_point(best, nn.MSELoss(), iris(), steps=0)


def embedded(point: CriticalPoint, data: tuple[Tensor, Tensor], neuron: int = 0) -> list[dict[str, Any]]:
    """The eigenvalues at the point, and after splitting one of its neurons equally into two and three."""
    found = []
    (w_in, b_in), (w_out, b_out) = theta_of(point.model)
    for copies in (1, 2, 3):
        model = point.model
        if copies > 1:
            more_in, more_bias, more_out = split_neuron(w_in, b_in, w_out, neuron, [1 / copies] * copies)
            model = mlp(((more_in, more_bias), (more_out, b_out)), point.model[1])
        risk = Risk(model, nn.MSELoss(), data)
        values = spectrum(hessian(model, nn.MSELoss(), data).matrix)
        counts = inertia(values, THRESHOLD)
        found.append(
            {
                "width": len(b_in) + copies - 1,
                "gradient": risk.gradient(risk.point).abs().sum(),
                "gap": counts.gap,
                "positive": counts.positive,
                "zero": counts.zero,
                "negative": counts.negative,
                "eigenvalues": values,
            }
        )
    return found


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle("eigenvalues of the Hessian at a width-2 critical point, embedded in wider networks", fontsize=11)
    rows = figure.subplots(2, 3, sharey=True)
    names = {"a": "curve", "b": "Iris"}
    for axes_row, (letter, panel) in zip(rows, results["panels"].items(), strict=True):
        for axes, one in zip(axes_row, panel["embedded"], strict=True):
            ordered = sorted(one["eigenvalues"], key=abs, reverse=True)
            for sign, (mark, color) in SIGNS.items():
                chosen = [
                    (number, abs(value))
                    for number, value in enumerate(ordered, start=1)
                    if sign == sign_of(value, results["threshold"])
                ]
                label = f"{one[sign]} {sign}"
                axes.plot(*(zip(*chosen, strict=True) if chosen else ((), ())), mark, color=color, label=label)
            axes.axhline(results["threshold"], color="black", linestyle="--", linewidth=0.8)
            axes.set(yscale="log", ylim=(1e-19, 1e3), title=f"({letter}) {names[letter]}, width m = {one['width']}")
            axes.legend(fontsize=8, loc="lower left")
        axes_row[0].set_ylabel("magnitude of the eigenvalue")
    for axes in rows[-1]:
        axes.set_xlabel("number of the eigenvalue")
    return figure


def sign_of(value: float, threshold: float) -> str:
    if abs(value) <= threshold:
        return "zero"
    return "positive" if value > 0 else "negative"


if __name__ == "__main__":
    run("fig3", __doc__, compute, draw)
