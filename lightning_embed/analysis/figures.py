"""Figures of what the analysis found, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_embed.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_embed.analysis.landscape import Landscape, LandscapePoint

INSET = (0.26, 0.16)  # width and height of a curve's frame, as shares of the axes


def landscape_figure(landscape: Landscape) -> Figure:
    """Draw a landscape diagram as 004, Fig. 4: losses, widths, degrees of degeneracy and output curves.

    Every dot is a set of critical points, at the width in which it was found and at its loss; beside it are the degree
    of degeneracy where it is embedded (? if no gap tells it) and the output on the data, which are dots.

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
    figure = Figure(figsize=(3.2 * landscape.width + 1, 1 + 1.2 * max(3, len(landscape.points))), layout="constrained")
    axes = figure.add_subplot()
    axes.set(
        xlabel="width of the network that has the critical point",
        ylabel="loss",
        title=f"critical points in a network of width {landscape.width}",
        xticks=range(1, landscape.width + 1),
        xlim=(0.8, landscape.width + 1),
    )
    losses = [point.loss for point in landscape.points]
    margin = 0.15 * (max(losses) - min(losses)) if len(losses) > 1 else 1.0
    axes.set_ylim(min(losses, default=0.0) - margin, max(losses, default=1.0) + margin)
    for point in landscape.points:
        _draw(axes, landscape, point)
    return figure


def _draw(axes: Axes, landscape: Landscape, point: LandscapePoint) -> None:
    """One set of critical points: its dot, its degeneracy, its curve."""
    axes.plot(point.width, point.loss, "ko", clip_on=False)
    degeneracy = "?" if point.inertia is None else str(point.inertia.zero)
    axes.annotate(
        degeneracy, (point.width, point.loss), (6, 6), textcoords="offset points", color="green", fontweight="bold"
    )
    corner = axes.transLimits.transform((point.width, point.loss))
    share = INSET[0] * 3 / landscape.width
    inset = axes.inset_axes((corner[0] + 0.08 * share, corner[1] - INSET[1] / 2, 0.8 * share, INSET[1]))
    order = landscape.inputs[:, 0].argsort()
    x = landscape.inputs[order, 0].cpu()
    inset.plot(x, landscape.targets[order, 0].cpu(), ".", color="tab:blue", markersize=2)
    inset.plot(x, point.outputs[order, 0].cpu(), color="tab:red", linewidth=1)
    inset.set(xticks=(), yticks=())
