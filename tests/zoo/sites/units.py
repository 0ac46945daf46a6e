"""Sites as sets of units, to compare what was found with what was written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning_embed.graph import Graph, HiddenLayer, Layout
from tests.zoo.sites.case import Truth, index, per_neuron_of

Units = frozenset[frozenset[tuple[Any, ...]]]


def units(parts: Mapping[tuple[Any, ...], Iterable[Iterable[int]]]) -> Units:
    """The units as sets of (what, entries), so that neither their order nor that of the parts matters."""
    return frozenset(
        frozenset((part, tuple(sorted(entries))) for part, entries in zip(parts, unit, strict=True))
        for unit in zip(*parts.values(), strict=True)
    )


def entries(layout: Layout, width: int) -> list[list[int]]:
    return [[unit] for unit in range(width)] if layout.index is None else layout.index.tolist()


def units_of(layer: HiddenLayer) -> Units:
    parts = {("rows", name): entries(layout, layer.width) for name, layout in layer.producers.items()}
    parts |= {("columns", name): entries(layout, layer.width) for name, layout in layer.reads.items()}
    parts |= {("entries", name, lay.dim): entries(lay, layer.width) for name, lay in layer.per_neuron}
    return units(parts)


def true_units(truth: Truth) -> Units:
    parts: dict[tuple[Any, ...], Any] = {("rows", name): index(text) for name, text in truth.producers.items()}
    parts |= {("columns", name): index(text) for name, text in truth.reads.items()}
    parts |= {("entries", *key): value for key, value in per_neuron_of(truth).items()}
    return units(parts)


def mergeable(graph: Graph) -> list[HiddenLayer]:
    return [layer for layer in graph.layers if layer.merge_neurons is None]


def all_units(graph: Graph) -> frozenset[Units]:
    return frozenset(units_of(layer) for layer in mergeable(graph))
