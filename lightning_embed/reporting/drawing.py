"""The layers of a network as a drawing: what it was beside what it became, a row a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_embed.reporting.history import History
from lightning_embed.surgery.persist.snapshot import LayerShape

HEIGHT = 46.0  # of a row, in the units of page.css
TOP, BOTTOM = 14.0, 32.0  # of the bar in it
LEAST = 1.5  # width of the thinnest bar, of 100


@dataclass(frozen=True)
class Slice:
    """What is drawn in one row: the flow between bars, and the bar; sizes in a box of 100 × 46.

    Attributes:
        flow: corners of the band behind, as the points of an SVG polygon; empty where nothing is known to flow.
        node: left edge and width of the bar; None where the layer is gone.
    """

    flow: str
    node: tuple[float, float] | None


@dataclass(frozen=True)
class Row:
    """One layer of the drawing.

    Attributes:
        name: of the layer.
        kind: its class.
        was: its neurons at first.
        became: its neurons at last; None if it is gone.
        fate: what happened to it, in words.
        left: the drawing of what was.
        right: of what it became.
    """

    name: str
    kind: str
    was: int
    became: int | None
    fate: str
    left: Slice
    right: Slice


def network(history: History) -> list[Row]:
    """The rows of the drawing, the input first; none where the history holds no snapshot."""
    was, became = history.was, history.became
    if was is None or became is None or not was.layers:
        return []
    first, last = was.layers[0], {one.name: one for one in became.layers}
    entry = next((one.inputs for one in became.layers), first.inputs)
    names = ["input", *(one.name for one in was.layers)]
    old = [first.inputs, *(one.width for one in was.layers)]
    new = [entry, *(last[one.name].width if one.name in last else None for one in was.layers)]
    largest = max([*old, *(width for width in new if width)])
    left = slices(old, _linked(names, {one.name: one for one in was.layers}), largest)
    right = slices(new, _linked(names, last), largest)
    shapes = [LayerShape("input", "", first.inputs, first.inputs, hidden=False), *was.layers]
    rows = zip(names, shapes, new, left, right, strict=True)
    return [Row(name, one.kind, one.width, now, _fate(one, now), a, b) for name, one, now, a, b in rows]


def _fate(layer: LayerShape, now: int | None) -> str:
    if now is None:
        return f"merged into {', '.join(layer.consumers)}" if layer.consumers else "gone"
    if layer.name == "input" or now >= layer.width:
        return ""
    beside = f" with {', '.join(layer.beside)}" if layer.beside else ""
    return f"−{layer.width - now:,} neurons{beside}"


def _linked(names: Sequence[str], layers: Mapping[str, LayerShape]) -> list[bool]:
    """For every name whether it is known that the next layer that is there reads it."""
    found = []
    for at, name in enumerate(names):
        later = next((one for one in names[at + 1 :] if one in layers), None)
        known = name == "input" or (name in layers and later in layers[name].consumers)
        found.append(known and later is not None)
    return found


def slices(widths: Sequence[int | None], linked: Sequence[bool], largest: int) -> list[Slice]:
    """Cut the drawing of a chain of layers into rows.

    Args:
        widths: neurons of every row; None where the layer is gone and what flows passes through.
        linked: whether what is in a row flows to the next row that has a layer.
        largest: the width that takes the whole of the box.

    >>> [one.node for one in slices([4, None, 2], [True, False, False], 4)]
    [(0.0, 100.0), None, (25.0, 50.0)]
    """
    sizes = [None if one is None else max(LEAST, 100.0 * one / largest) for one in widths]
    edges: list[list[tuple[float, float]]] = [[] for _ in sizes]  # of every row the (height, width) of the flow
    places = [at for at, size in enumerate(sizes) if size is not None]
    for begin, end in pairwise(places):
        if linked[begin]:
            _flow(edges, begin, end, sizes)
    nodes = [None if size is None else (50 - size / 2, size) for size in sizes]
    return [Slice(_polygon(edge), node) for edge, node in zip(edges, nodes, strict=True)]


def _flow(edges: list[list[tuple[float, float]]], begin: int, end: int, sizes: Sequence[float | None]) -> None:
    """The band from the lower edge of one bar to the upper edge of another, row by row."""
    first, last = sizes[begin], sizes[end]
    assert first is not None
    assert last is not None
    length = (end - begin) * HEIGHT - BOTTOM + TOP

    def width(row: int, height: float) -> float:
        return first + (last - first) * ((row - begin) * HEIGHT + height - BOTTOM) / length

    edges[begin] += [(BOTTOM, first), (HEIGHT, width(begin, HEIGHT))]
    for row in range(begin + 1, end):
        edges[row] += [(0.0, width(row, 0.0)), (HEIGHT, width(row, HEIGHT))]
    edges[end] += [(0.0, width(end, 0.0)), (TOP, last)]


def _polygon(edges: Sequence[tuple[float, float]]) -> str:
    right = [(50 + width / 2, height) for height, width in edges]
    left = [(50 - width / 2, height) for height, width in reversed(edges)]
    return " ".join(f"{x:.2f},{y:g}" for x, y in [*right, *left])
