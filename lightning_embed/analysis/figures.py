"""Figures of what the analysis found, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_embed.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_embed.analysis.landscape import Landscape, LandscapePoint

COLUMN = 0.5  # of a unit of width, for one dot and its curve
INSET = 0.14  # height of a curve's frame, as a share of the axes


def landscape_figure(landscape: Landscape) -> Figure:
    """Draw a landscape diagram as 004, Fig. 4: losses, widths, degrees of degeneracy and output curves.

    Every dot is a set of critical points, at the width in which it was found and at its loss; beside it are the degree
    of degeneracy where it is embedded (? if no gap tells it), how many trials ended there ("known, 0 trials" where the
    point was added from elsewhere), and the output on the data, which are dots.

    Args:
        landscape: of one input and one output (`landscape_diagram`).

    Returns:
        The figure, not shown and not saved.

    Raises:
        InputError: there is more than one input or output.
        ImportError: matplotlib is not installed.

    >>> import torch
    >>> from lightning_embed.analysis import landscape_diagram
    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> figure = landscape_figure(landscape_diagram((x, x / 2), width=1, trials=1, steps=100, rate=0.3))
    >>> figure.axes[0].get_ylabel()
    'loss'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "lightning-embed[figures]"') from error
    if landscape.inputs.shape[1] != 1 or landscape.targets.shape[1] != 1:
        raise InputError("a landscape can be drawn for one input and one output only; use its to_dict() for others")
    figure = Figure(figsize=(3.6 * landscape.width + 1, 1 + 1.2 * max(3, len(landscape.points))), layout="constrained")
    axes = figure.add_subplot()
    axes.set(
        xlabel="width of the network that has the critical point",
        ylabel="loss",
        title=f"critical points in a network of width {landscape.width}",
        xticks=range(1, landscape.width + 1),
        xlim=(0.8, landscape.width + 1),
    )
    losses = [point.loss for point in landscape.points]
    lowest, highest = min(losses, default=0.0), max(losses, default=0.0)
    margin = 0.15 * (highest - lowest) or 1.0
    axes.set_ylim(lowest - margin, highest + margin)
    low, high = axes.get_ylim()
    for point, x in zip(landscape.points, _places(landscape, INSET * (high - low)), strict=True):
        _draw(axes, landscape, point, x)
    return figure


def _places(landscape: Landscape, height: float) -> list[float]:
    """Where the points are drawn: at their width, and further to the right if one of its points is as high."""
    places: list[float] = []
    for number, point in enumerate(landscape.points):
        x = float(point.width)
        while any(
            place == x and abs(other.loss - point.loss) < height
            for place, other in zip(places, landscape.points[:number], strict=True)
        ):
            x += COLUMN
        places.append(x)
    return places


def _draw(axes: Axes, landscape: Landscape, point: LandscapePoint, x: float) -> None:
    """One set of critical points: its dot, its degeneracy, its curve."""
    axes.plot(x, point.loss, "ko", clip_on=False)
    degeneracy = "?" if point.inertia is None else str(point.inertia.zero)
    axes.annotate(degeneracy, (x, point.loss), (-12, 6), textcoords="offset points", color="green", fontweight="bold")
    trials = f"{point.found} trial{'s' * (point.found != 1)}" if point.found else "known, 0 trials"
    axes.annotate(trials, (x, point.loss), (4, -14), textcoords="offset points", color="0.4", fontsize=7)
    left, middle = axes.transLimits.transform((x + 0.05, point.loss))
    right = axes.transLimits.transform((x + COLUMN - 0.15, point.loss))[0]
    inset = axes.inset_axes((left, middle - INSET / 2, right - left, INSET))
    order = landscape.inputs[:, 0].argsort()
    inputs = landscape.inputs[order, 0].cpu()
    inset.plot(inputs, landscape.targets[order, 0].cpu(), ".", color="tab:blue", markersize=2)
    inset.plot(inputs, point.outputs[order, 0].cpu(), color="tab:red", linewidth=1)
    inset.set(xticks=(), yticks=())
