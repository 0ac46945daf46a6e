"""A model with fewer units for a moment, to see whether it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_embed.graph.kinds import counts, output_weight, stored_weight
from lightning_embed.graph.layout import Layout
from lightning_embed.tape.tape import modules_by_name


@contextmanager
def narrowed(
    model: nn.Module,
    producers: Mapping[str, Layout],
    reads: Mapping[str, Layout],
    per_neuron: Sequence[tuple[str, Layout]],
    kept: Tensor,
) -> Iterator[None]:
    """Hold smaller tensors in the places of a model's own ones, which are put back at the end whatever happens.

    Args:
        model: runs inside as if its units were fewer; what it computes means nothing.
        producers: layers whose rows are the units.
        reads: layers whose columns are.
        per_neuron: parameters and buffers that are cut with them.
        kept: numbers of the units that stay.
    """
    modules = modules_by_name(model)
    owners = dict.fromkeys([*producers, *reads, *(name.rpartition(".")[0] for name, _ in per_neuron)])
    saved = [_saved(modules[name]) for name in owners]
    try:
        with torch.no_grad():
            for names, dim in ((reads, 1), (producers, 0)):  # columns before rows
                for name, layout in names.items():
                    _narrow(modules[name], Layout(dim, layout.index), kept)
            for qualified, layout in per_neuron:
                owner, _, tensor = qualified.rpartition(".")
                _hold(modules[owner], tensor, layout.select(getattr(modules[owner], tensor), kept))
            for name in owners:
                for attribute, size in counts(modules[name]).items():
                    if hasattr(modules[name], attribute):
                        setattr(modules[name], attribute, size)
        yield
    finally:
        for put_back in saved:
            put_back()


def _saved(module: nn.Module) -> Callable[[], None]:
    """What puts a module's tensors and sizes back as they are now."""
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    sizes = {attribute: getattr(module, attribute) for attribute in counts(module) if hasattr(module, attribute)}

    def put_back() -> None:
        module._parameters.update(parameters)
        module._buffers.update(buffers)
        for attribute, size in sizes.items():
            setattr(module, attribute, size)

    return put_back


def _narrow(layer: nn.Module, layout: Layout, kept: Tensor) -> None:
    """Leave some rows (dimension 0) or columns (1) of a layer."""
    _hold(layer, "weight", stored_weight(layer, layout.select(output_weight(layer), kept)))
    bias = getattr(layer, "bias", None)
    if layout.dim == 0 and bias is not None:
        _hold(layer, "bias", layout.select(bias, kept))


def _hold(module: nn.Module, name: str, value: Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[name] = value
