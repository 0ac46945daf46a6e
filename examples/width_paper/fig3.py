"""Fig. 3(a) of the width paper: eigenvalues of the Hessian at a critical point and where it is embedded.

    python examples/width_paper/fig3.py

A width-2 tanh network is brought to a minimum on the curve of Fig. 1. One of its neurons is split equally into 2 and 3.
Each split adds a zero eigenvalue and a negative one. Fig. 3(b), on Iris, is `fig3b.py`.
"""

from __future__ import annotations

from typing import Any

from experiment import Options, curve, gaussian, run
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.analysis import Risk, find_critical_point, hessian, inertia, spectrum
from lightning_embed.operators import split_neuron
from lightning_embed.surgery import mlp, theta_of

THRESHOLD = 1e-11  # the paper's dashed line
SIGNS = {"positive": ("^", "tab:red"), "zero": ("o", "0.5"), "negative": ("v", "tab:blue")}


def compute(options: Options) -> dict[str, Any]:
    steps, rate = (300_000, 0.005) if options.full else (4000, 0.25)
    nets = [gaussian((1, 2, 1), nn.Tanh(), 2**-1.5, options.seed + start) for start in range(2)]
    points = [find_critical_point(net, nn.MSELoss(), curve(), steps=steps, rate=rate) for net in nets]
    point = min(points, key=lambda one: one.loss)  # the other may rest at a critical point of width 1
    split = {
        neuron: [spectrum_at(model, curve(), THRESHOLD) for model in embeddings(point.model, neuron, nn.Tanh())]
        for neuron in (0, 1)
    }
    found = {
        f"neuron {neuron} split, {sign} eigenvalues at widths 2, 3, 4": [one[sign] for one in by_width]
        for neuron, by_width in split.items()
        for sign in SIGNS
    }
    return {
        "threshold": THRESHOLD,
        "loss": point.loss,
        "gradient": point.gradient,
        "found": {"loss": point.loss, "L1 norm of the gradient": point.gradient, **found},
        "split": {str(neuron): by_width for neuron, by_width in split.items()},
    }


def embeddings(model: nn.Sequential, neuron: int, activation: nn.Module) -> list[nn.Sequential]:
    """The model, and it with one neuron split equally into two and into three."""
    (w_in, b_in), (w_out, b_out) = theta_of(model)
    models = [model]
    for copies in (2, 3):
        more_in, more_bias, more_out = split_neuron(w_in, b_in, w_out, neuron, [1 / copies] * copies)
        models.append(mlp(((more_in, more_bias), (more_out, b_out)), activation))
    return models


def spectrum_at(model: nn.Sequential, data: tuple[Tensor, Tensor], threshold: float | None) -> dict[str, Any]:
    """The eigenvalues at a model, how many there are of each sign (by a threshold, or by a gap), and the gradient."""
    risk = Risk(model, nn.MSELoss(), data)
    values = spectrum(hessian(model, nn.MSELoss(), data).matrix)
    counts = inertia(values, threshold)
    return {
        "width": model[0].out_features,
        "gradient": risk.gradient(risk.point).abs().sum(),
        "gap": counts.gap,
        **dict(zip(SIGNS, counts.counts, strict=True)),
        "eigenvalues": values,
    }


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle("eigenvalues of the Hessian at a minimum of width 2, embedded in wider networks", fontsize=11)
    rows = figure.subplots(2, 3, sharey=True)
    for axes_row, (neuron, by_width) in zip(rows, results["split"].items(), strict=True):
        for axes, one in zip(axes_row, by_width, strict=True):
            draw_spectrum(axes, one, results["threshold"])
            what = f", neuron {neuron} split" if one["width"] > 2 else ""
            axes.set_title(f"width m = {one['width']}{what}")
        axes_row[0].set_ylabel("magnitude of the eigenvalue")
    for axes in rows[-1]:
        axes.set_xlabel("number of the eigenvalue")
    return figure


def draw_spectrum(axes: Any, one: dict[str, Any], threshold: float) -> None:
    """Magnitudes in falling order, each sign with a mark of its own."""
    signed = {"positive": [], "zero": [], "negative": []}
    for number, value in enumerate(sorted(one["eigenvalues"], key=abs, reverse=True), start=1):
        sign = "zero" if abs(value) <= threshold else "positive" if value > 0 else "negative"
        signed[sign].append((number, max(abs(value), 1e-18)))
    for sign, (mark, color) in SIGNS.items():
        numbers, sizes = zip(*signed[sign], strict=True) if signed[sign] else ((), ())
        axes.semilogy(numbers, sizes, mark, color=color, label=f"{one[sign]} {sign}")
    axes.axhline(threshold, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylim(1e-19, 1e3)
    axes.legend(fontsize=8, loc="lower left")


if __name__ == "__main__":
    run("fig3", __doc__, compute, draw)
