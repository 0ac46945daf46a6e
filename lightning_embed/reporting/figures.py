"""Figures of a history for dashboards, drawn by matplotlib: readable at a glance and in grey, thresholds marked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_embed.reporting.curves import Curve, plateaus, thin, total
from lightning_embed.reporting.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 500  # of a curve: more are finer than the print
LABELLED = 12  # layers that a legend can name
PAIRS = 4  # layers whose similarities are shown beside each other
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^v<>Pp*hX"
WIDTHS = {"neurons": "neurons/", "kept by cosine": "width/cosine/", "kept by span": "width/span/"}


def figures(history: History) -> dict[str, Figure]:
    """Every figure for which a history holds data, by name.

    `mpc`: MPC of every layer over time with its threshold. `widths`: neurons and those that the criteria would keep.
    `training`: loss and gradient norm on one time axis, plateaus shaded. `similarity`: cosine similarity of the
    neurons ordered by group (004, Fig. 5 (b)), before and after merges where there were any. `agreement`: predictions
    of the smaller network against those of the larger (000, Fig. 8 (d)). Merges are marked in all that have a time.

    Returns:
        Figures, not shown and not saved; none that pyplot would keep.

    Raises:
        ImportError: matplotlib is not installed.

    >>> sorted(figures(History(curves={"mpc/0": Curve.of([0, 10], [0.9, 0.95])})))
    ['mpc']
    """
    drawn = {
        "mpc": mpc_figure(history),
        "widths": widths_figure(history),
        "training": training_figure(history),
        "similarity": similarity_figure(history),
        "agreement": agreement_figure(history),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _figure(width: float = 7.0, height: float = 4.2) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'lightning-embed[figures]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def mpc_figure(history: History) -> Figure | None:
    """MPC of every layer over time, with the threshold of linearization; None where none was measured."""
    if not history.series("mpc/"):
        return None
    figure = _figure()
    draw_mpc(figure.add_subplot(), history)
    return figure


def draw_mpc(axes: Axes, history: History) -> None:
    """Draw MPC of every layer over time, with the threshold of linearization."""
    curves = history.series("mpc/")
    _lines(axes, curves)
    lowest = min((value for one in curves.values() for value in one.values if math.isfinite(value)), default=0.0)
    _title(axes, "How linearly each hidden layer acts")
    axes.set_ylabel("minimal Pearson correlation (MPC)")
    axes.set_ylim(max(0.0, lowest - 0.05 * (1.0 - lowest) - 1e-3), 1.0 + 0.05 * (1.0 - lowest) + 1e-3)
    threshold = history.threshold("linearization")
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=1.0, linestyle=(0, (6, 2)))
        _note(axes, f"threshold {threshold:g}", threshold)
    _time(axes, history)
    _legend(axes, len(curves))


def widths_figure(history: History) -> Figure | None:
    """Neurons of all hidden layers over time, and those that the two criteria would keep; None without any."""
    if not any(history.series(prefix) for prefix in WIDTHS.values()):
        return None
    figure = _figure()
    draw_widths(figure.add_subplot(), history)
    return figure


def draw_widths(axes: Axes, history: History) -> None:
    """Draw the neurons of all hidden layers over time, and those that the two criteria would keep."""
    named = {name: total(history.series(prefix).values()) for name, prefix in WIDTHS.items()}
    curves = {name: curve for name, curve in named.items() if len(curve)}
    for number, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "linestyle": STYLES[number],
            "marker": MARKERS[number],
            "ms": 4,
            "markevery": max(1, len(curve) // 12),
        }
        axes.plot(curve.steps, curve.values, drawstyle="steps-post", label=name, **style)
    _title(axes, "Neurons in all hidden layers, and how many are needed")
    axes.set_ylabel("neurons")
    axes.set_ylim(bottom=0)
    _time(axes, history)
    _legend(axes, len(curves))


def training_figure(history: History) -> Figure | None:
    """Loss and L1 norm of the gradient over time, plateaus of the loss shaded; None without either."""
    loss, gradient = history.curves.get("loss"), history.curves.get("grad_norm/l1")
    panels = [
        (curve, label) for curve, label in ((loss, "loss"), (gradient, "gradient, L1 norm")) if curve and len(curve)
    ]
    if not panels:
        return None
    figure = _figure(height=2.4 * len(panels) + 0.6)
    drawn = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (curve, label) in zip(drawn, panels, strict=True):
        thinned = thin(curve, POINTS)
        axes.plot(thinned.steps, thinned.values, color="black", linewidth=1.0)
        positive = [value for value in curve.values if value > 0.0]
        if positive and len(positive) == len([value for value in curve.values if math.isfinite(value)]):
            axes.set_yscale("log")
        axes.set_ylabel(label)
        for first, last in [] if loss is None else plateaus(loss):
            axes.axvspan(first, last, facecolor="0.85", edgecolor="none", zorder=0)
        _merges(axes, history)
    _title(drawn[0], "Loss and gradient (plateaus shaded, merges ▼)")
    drawn[-1].set_xlabel("step")
    return figure


def similarity_figure(history: History) -> Figure | None:
    """Cosine similarity of the neurons, ordered by group: before and after merges, or as it is; None without any."""
    rows = history.similarities()[:PAIRS]
    if not rows:
        return None
    columns = max(len(row) for row in rows)
    figure = _figure(3.2 * columns + 1.2, 3.1 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    image = None
    for axes_row, row in zip(grid, rows, strict=True):
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
        for axes, (when, one) in zip(axes_row, row, strict=False):
            image = axes.imshow(
                one.cosine.numpy() / 100.0, vmin=-1.0, vmax=1.0, cmap="cividis", interpolation="nearest"
            )
            axes.set_title(f"{one.layer} {when}: {one.neurons} neurons", fontsize="medium")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(f"{len(one.groups)} groups among {sum(one.groups)} shown", fontsize="small")
    assert image is not None
    figure.colorbar(image, ax=grid, label="cosine similarity of [w, b]", shrink=0.6)
    return figure


def agreement_figure(history: History) -> Figure | None:
    """Predictions after the merges of the latest event against those before, as shares of each row; None without."""
    if not history.agreements:
        return None
    latest = history.agreements[-1]
    counts = np.array(latest.counts, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    figure = _figure(5.6, 4.8)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Greys", interpolation="nearest")
    if len(shares) <= LABELLED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize="small")
        axes.set(xticks=range(len(shares)), yticks=range(len(shares)))
    when = "" if latest.epoch is None else f", epoch {latest.epoch}"
    axes.set(
        title=f"Same prediction: {100 * latest.share:.2f} % of {latest.samples}{when}",
        xlabel="class predicted after the merges",
        ylabel="class predicted before",
    )
    figure.colorbar(image, ax=axes, label="share of the row")
    return figure


def _lines(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """A line a layer: told apart by dashes and markers as well as by colour, which goes with depth."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.85, len(curves)))
    for number, (name, curve) in enumerate(curves.items()):
        thinned = thin(curve, POINTS)
        style: dict[str, Any] = {"color": shades[number], "linewidth": 1.2, "linestyle": STYLES[number % len(STYLES)]}
        if len(curves) <= LABELLED:
            every = max(1, len(thinned) // 8)
            offset = number * every // max(1, len(curves))
            style |= {"marker": MARKERS[number % len(MARKERS)], "ms": 4, "markevery": (offset, every), "label": name}
        axes.plot(thinned.steps, thinned.values, **style)
    if len(curves) > LABELLED:
        axes.plot([], [], color=shades[0], label=f"first: {next(iter(curves))}")
        axes.plot([], [], color=shades[-1], label=f"last: {list(curves)[-1]}")


def _title(axes: Axes, text: str) -> None:
    """Above the triangles that mark merges."""
    axes.set_title(text, pad=12)


def _time(axes: Axes, history: History) -> None:
    _merges(axes, history)
    axes.set_xlabel("step")


def _merges(axes: Axes, history: History) -> None:
    """A triangle at the top and a thin line at every step at which something was merged."""
    for step in history.merge_steps:
        axes.axvline(step, color="0.4", linewidth=0.7, linestyle=":")
        axes.plot([step], [1.0], "v", color="black", ms=6, transform=axes.get_xaxis_transform(), clip_on=False)


def _note(axes: Axes, text: str, height: float) -> None:
    axes.text(1.0, height, f"{text} ", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize="small")


def _legend(axes: Axes, entries: int) -> None:
    """Beside the axes, where it hides nothing; none for a single line."""
    if entries > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False, handlelength=3.5)
