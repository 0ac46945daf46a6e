"""Fig. 3(b) of the width paper: eigenvalues of the Hessian at critical points on Iris, embedded in wider networks.

    python examples/width_paper/fig3b.py

Two sigmoid neurons, mean squared error. By Adam, as in the paper, we found no critical point: a sigmoid sharpens
without end. Damped Newton steps from many normal random weights arrive at some. The paper does not say how the classes
are coded, so both ways are tried: one output for each class, and the number of the class. Of every critical point each
neuron is split equally into 2 and 3.
"""

from __future__ import annotations

from typing import Any

import torch
from experiment import Options, gaussian, run
from fig3 import SIGNS, draw_spectrum, embeddings, spectrum_at
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.analysis import CriticalPoint, find_critical_points
from lightning_embed.errors import InputError

THRESHOLD = 1e-11  # the paper's dashed line
SPREADS = {"one output a class": 1.5, "the number of the class": 1.0}


def flowers() -> dict[str, tuple[Tensor, Tensor]]:
    """All 150 flowers, standardised, with both kinds of targets."""
    from sklearn.datasets import load_iris

    given = load_iris()
    inputs = torch.tensor(given.data, dtype=torch.float64)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    labels = torch.tensor(given.target)
    targets = nn.functional.one_hot(labels).double(), labels.double()[:, None]
    return {name: (inputs, one) for name, one in zip(SPREADS, targets, strict=True)}


def compute(options: Options) -> dict[str, Any]:
    starts = 192 if options.full else 32
    sets, found = {}, {}
    for name, data in flowers().items():
        net = gaussian((4, 2, data[1].shape[1]), nn.Sigmoid(), 1.0, 0)
        points = find_critical_points(net, nn.MSELoss(), data, starts=starts, spread=SPREADS[name], seed=options.seed)
        constant = nn.functional.mse_loss(data[1].mean(0).expand_as(data[1]), data[1]).item()
        learned = [point for point in points if point.loss < 0.99 * constant]
        split = [by_width for point in learned for by_width in splits(point, data)]
        pairs = [(wide, narrow) for one in split for wide, narrow in zip(one[1:], one, strict=False)]
        shown = min(split, key=lambda one: (one[0]["zero"], one[0]["loss"]), default=None)
        sets[name] = {"shown": shown, "counts": [[[one[sign] for sign in SIGNS] for one in each] for each in split]}
        found |= {
            f"{name}: starts, critical points, of them below the best constant": [starts, len(points), len(learned)],
            f"{name}: fewest and most zeros that a split adds": extremes(pairs, "zero"),
            f"{name}: fewest and most negatives that a split adds": extremes(pairs, "negative"),
        }
        if shown:
            found[f"{name}: loss of the least degenerate point"] = shown[0]["loss"]
            found[f"{name}: its gradient"] = shown[0]["gradient"]
            for sign in SIGNS:
                found[f"{name}: {sign} eigenvalues there, at widths 2, 3, 4"] = [one[sign] for one in shown]
    return {"threshold": THRESHOLD, "found": found, "sets": sets}


def splits(point: CriticalPoint, data: tuple[Tensor, Tensor]) -> list[list[dict[str, Any]]]:
    """For each neuron the spectra at widths 2, 3 and 4, where gaps tell the zeros."""
    every = []
    for neuron in (0, 1):
        try:
            assert isinstance(point.model, nn.Sequential)
            by_width = [
                spectrum_at(model, data, threshold=None) for model in embeddings(point.model, neuron, nn.Sigmoid())
            ]
        except InputError:  # no evident gap: nobody can say how many zeros there are
            continue
        every.append([{**one, "loss": point.loss} for one in by_width])
    return every


def extremes(pairs: list[tuple[dict[str, Any], dict[str, Any]]], sign: str) -> list[int]:
    added = [wide[sign] - narrow[sign] for wide, narrow in pairs]
    return [min(added), max(added)] if added else []


def draw(results: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle("eigenvalues of the Hessian at critical points on Iris, one neuron split", fontsize=11)
    rows = figure.subplots(2, 3, sharey=True)
    for axes_row, (name, one) in zip(rows, results["sets"].items(), strict=True):
        for axes, by_width in zip(axes_row, one["shown"] or [], strict=False):
            draw_spectrum(axes, by_width, results["threshold"])
            axes.set_title(f"{name}, width {by_width['width']}", fontsize=10)
        axes_row[0].set_ylabel("magnitude of the eigenvalue")
    return figure


if __name__ == "__main__":
    run("fig3b", __doc__, compute, draw)
