"""Sizes that a user asks for: widths by name, or a share of parameters, operations or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer

Counted = Literal["parameters", "flops", "latency"]


def check_sizes(widths: Mapping[str, int] | None, budget: float | None, of: str = "parameters") -> None:
    """Refuse sizes that mean nothing.

    Raises:
        InputError: both are given, a width is no whole number of at least 0, the budget is not in (0, 1], or there is
            no such thing to count.
    """
    if widths is not None and budget is not None:
        raise InputError("widths= and budget= both say how small the model shall be; give one of them.")
    if of not in get_args(Counted):
        raise InputError(f"of must be one of {', '.join(get_args(Counted))}, got {of!r}.")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1):
        raise InputError(f"budget must be a share of the {of}, above 0 and at most 1, got {budget!r}.")
    if widths is None:
        return
    if not isinstance(widths, Mapping) or not widths:
        raise InputError(f"widths must name layers and their number of neurons, {{'net.0': 64}}, got {widths!r}.")
    for name, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, int) or width < 0:
            raise InputError(f"widths[{name!r}] must be a whole number of at least 0 (0 removes it), got {width!r}.")


@dataclass(frozen=True)
class Widths:
    """Sizes that are given by name: that of the hidden layer, or of any layer that makes its neurons."""

    widths: Mapping[str, int]

    def check(self, graph: Graph) -> None:
        """Every name is a hidden layer's, and its width can be reached.

        Raises:
            InputError: with the reason.
        """
        layers = {layer.name: layer for layer in graph.layers}
        for name, width in self.widths.items():
            if len(by_producer(graph, name)) > 1:
                names = ", ".join(layer.name for layer in by_producer(graph, name))
                raise InputError(f"widths names {name!r}, whose rows belong to several hidden layers; name {names}.")
            layer = next(iter(by_producer(graph, name)), None)
            if layer is None:
                why = f": {graph.refused[name]}" if name in graph.refused else ""
                raise InputError(
                    f"widths names {name!r}, which is no hidden layer of the model{why}. Its hidden layers: "
                    f"{', '.join(layers) or 'none'}."
                )
            reason = layer.merge_layer if width == 0 else layer.merge_neurons
            if reason is not None and width < layer.width:
                raise InputError(f"widths[{name!r}] = {width} cannot be reached: {reason}.")
            if width > layer.width:
                raise InputError(f"widths[{name!r}] = {width} is more than the {layer.width} neurons that it has.")
        named = [by_producer(graph, name)[0].name for name in self.widths]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"widths names the layer {twice!r} twice, by several of those that make its neurons.")

    def by_layer(self, graph: Graph) -> dict[str, int]:
        """The widths, by name of the hidden layer."""
        return {layer.name: width for name, width in self.widths.items() for layer in by_producer(graph, name)}


def by_producer(graph: Graph, name: str) -> list[HiddenLayer]:
    """The hidden layer of a name, or those whose neurons a layer of that name makes."""
    named = [layer for layer in graph.layers if layer.name == name]
    return named or [layer for layer in graph.layers if name in layer.producers]


@dataclass(frozen=True)
class Share:
    """Sizes that leave a share of what a model has.

    Attributes:
        share: what may be left at most.
        of: what is counted: "parameters", "flops" for one sample, or "latency" of a recorded call.
        evenly: an equal share of every layer's neurons, or dealt out where the outputs change least (see `path`).
    """

    share: float
    of: Counted = "parameters"
    evenly: bool = False


Sizes = Widths | Share


def size_asked_for(widths: Mapping[str, int] | None, budget: float | None, of: Counted) -> Sizes | None:
    """What a user's arguments ask for; a budget is dealt out."""
    if widths is not None:
        return Widths(widths)
    return None if budget is None else Share(budget, of)
