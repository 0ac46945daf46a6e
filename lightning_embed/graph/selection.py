"""Which layers may be touched: what a user chooses by name, and what else is to be left alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.graph.graph import Graph, HiddenLayer
from lightning_embed.graph.layout import is_layer
from lightning_embed.graph.reasons import Reason
from lightning_embed.tape.tape import modules_by_name

Names = str | nn.Module | Iterable[str | nn.Module]


def excluded(model: nn.Module, include: Names | None, exclude: Names | None) -> dict[str, Reason]:
    """The layers that a user does not want to be touched.

    Args:
        model: whose modules are named.
        include: only these, and what lies in them; everything if None.
        exclude: not these, nor what lies in them; it wins over `include`. Both are qualified names, patterns ("*.head",
            see `fnmatch`) or modules, one or several.

    Returns:
        By qualified name the reason.

    Raises:
        InputError: something matches no module.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> list(excluded(net, None, "1")), list(excluded(net, "1", None)), list(excluded(net, "[01]", net[0]))
    (['1'], ['0'], ['0'])
    """
    modules = modules_by_name(model)
    layers = [name for name, module in modules.items() if is_layer(module)]
    chosen = set(layers) if include is None else _within(modules, layers, include, "include")
    left_out = set() if exclude is None else _within(modules, layers, exclude, "exclude")
    return {name: Reason("excluded") for name in layers if name not in chosen or name in left_out}


def _within(modules: Mapping[str, nn.Module], layers: Iterable[str], given: Names, argument: str) -> set[str]:
    """The layers that are named, or lie in modules that are."""
    single = isinstance(given, (str, nn.Module))
    wanted = [given] if single else list(given)  # type: ignore[arg-type]  # an iterable then
    found: set[str] = set()
    for one in wanted:
        if isinstance(one, nn.Module):
            names = [name for name, module in modules.items() if module is one]
        elif isinstance(one, str):
            names = [name for name in modules if fnmatchcase(name, one)]
        else:
            raise InputError(f"{argument} takes names, patterns or modules, got {one!r}.")
        if not names:
            near = difflib.get_close_matches(str(one), list(modules), n=3, cutoff=0.3) if isinstance(one, str) else []
            what = repr(one) if isinstance(one, str) else f"a {type(one).__name__} that is no part of the model"
            raise InputError(
                f"{argument} names {what}, which matches no module. "
                f"{'Near are ' + ', '.join(near) if near else 'Its layers are ' + ', '.join(layers)}."
            )
        found |= {
            layer for layer in layers for name in names if not name or layer == name or layer.startswith(f"{name}.")
        }
    return found


def restricted(graph: Graph, left_alone: Mapping[str, Reason]) -> Graph:
    """A graph in which no hidden layer may be touched that some of these layers make or read."""
    if not left_alone:
        return graph
    return replace(graph, layers=tuple(_restricted(layer, left_alone) for layer in graph.layers))


def _restricted(layer: HiddenLayer, left_alone: Mapping[str, Reason]) -> HiddenLayer:
    touched = next((name for name in (*layer.producers, *layer.reads) if name in left_alone), None)
    if touched is None:
        return layer
    known = left_alone[touched]
    reason = str(Reason(known.key, "" if touched in layer.producers else f"{touched}, which reads it"))
    return replace(layer, merge_neurons=layer.merge_neurons or reason, merge_layer=layer.merge_layer or reason)
