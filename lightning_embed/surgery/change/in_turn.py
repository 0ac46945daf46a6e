"""What merges of neurons do to each other and to a graph: where rows and columns go, those behind them move up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_embed.graph import Graph, HiddenLayer, Layout, rows_text
from lightning_embed.surgery.change.neuron_merge import NeuronMerge

_Place = tuple[str, str, int]  # rows, columns or what lies between; the layer or tensor; the dimension


class _Gone:
    """The entries that merges take away, numbered as they were before the first of them."""

    def __init__(self) -> None:
        self._entries: dict[_Place, Tensor] = {}

    def note(self, step: NeuronMerge) -> None:
        """One more merge."""
        kept = torch.tensor(step.kept)
        for place, layout in _places(step):
            leaving = layout.leaving(kept)
            known = self._entries.get(place)
            self._entries[place] = leaving if known is None else torch.cat([known, leaving]).unique()

    def moved(self, place: _Place, layout: Layout) -> Layout:
        """Where units are that stay."""
        return layout.without(self._entries[place]) if place in self._entries else layout


def _places(step: NeuronMerge) -> Iterator[tuple[_Place, Layout]]:
    """Every place from which a merge takes entries away, and where its units are there."""
    for name, layout in step.producers.items():
        yield ("rows", name, 0), layout
    for name, columns in step.reads.items():
        if columns is not None:
            yield ("columns", name, 1), columns
    for name, layout in step.per_neuron:
        yield ("between", name, layout.dim), layout


def in_turn(steps: Sequence[NeuronMerge]) -> list[NeuronMerge]:
    """Merges of different hidden layers of one model, each as it has to be said after those before it.

    Where two of them take away rows or columns of one tensor, as of a layer that reads two others side by side, those
    of the second have moved up.
    """
    gone, told = _Gone(), []
    for step in steps:
        told.append(
            replace(
                step,
                producers={name: gone.moved(("rows", name, 0), layout) for name, layout in step.producers.items()},
                reads={
                    name: layout and gone.moved(("columns", name, 1), layout) for name, layout in step.reads.items()
                },
                per_neuron=tuple(
                    (name, gone.moved(("between", name, layout.dim), layout)) for name, layout in step.per_neuron
                ),
            )
        )
        gone.note(step)
    return told


def graph_after(graph: Graph, steps: Sequence[NeuronMerge]) -> Graph:
    """The graph of a model after merges of neurons that were computed on it (not yet `in_turn`).

    Permissions stay what they were. What lies between the layers that were cut cannot be run from this graph, as sizes
    may be written down in it; observe the model anew for that.
    """
    gone = _Gone()
    for step in steps:
        gone.note(step)
    kept = {step.layer: torch.tensor(step.kept) for step in steps}
    return replace(graph, layers=tuple(_layer_after(layer, gone, kept.get(layer.name)) for layer in graph.layers))


def _layer_after(layer: HiddenLayer, gone: _Gone, kept: Tensor | None) -> HiddenLayer:
    def moved(place: _Place, layout: Layout) -> Layout:
        if kept is not None:
            assert layout.index is not None
            layout = Layout(layout.dim, layout.index[kept])
        return gone.moved(place, layout)

    producers = {name: moved(("rows", name, 0), layout) for name, layout in layer.producers.items()}
    first, layout = next(iter(producers.items()))
    return replace(
        layer,
        name=f"{first}[{rows_text(layout)}]" if layer.name != first else first,
        width=layer.width if kept is None else len(kept),
        producers=producers,
        reads={name: moved(("columns", name, 1), layout) for name, layout in layer.reads.items()},
        per_neuron=tuple((name, moved(("between", name, layout.dim), layout)) for name, layout in layer.per_neuron),
        region=layer.region if kept is None else None,
    )
