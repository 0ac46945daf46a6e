"""Copies planted in a site and cut again by hand, from the written truth alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.zoo.sites.case import Truth, index, per_neuron_of
from tests.zoo.sites.transposed import Conv1D, Dense

TRANSPOSED = (nn.modules.conv._ConvTransposeNd, Conv1D, Dense)


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Units 2i and 2i + 1; the last of an odd number is nobody's copy."""
    return [(unit, unit + 1) for unit in range(0, count - 1, 2)]


def groups_of(count: int, copies: int) -> list[tuple[int, int]]:
    """As many neighbours alike: each group's first unit with each of the others."""
    return [(unit - unit % copies, unit) for unit in range(count) if unit % copies]


def units_in(truth: Truth) -> int:
    return len(index(next(iter(truth.producers.values()))))


def _rows(model: nn.Module, name: str) -> list[tuple[Tensor, int]]:
    """The tensors of a layer that hold its rows, and along which dimension."""
    module = model.get_submodule(name)
    tensors = [(module.weight, int(isinstance(module, TRANSPOSED)))]
    return tensors if module.bias is None else [*tensors, (module.bias, 0)]


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, tensor = name.rpartition(".")
    return getattr(model.get_submodule(owner), tensor)


@torch.no_grad()
def plant(model: nn.Module, truth: Truth, pairs: Sequence[tuple[int, int]] | None = None) -> None:
    """Make the second unit of every pair a copy of the first, in every producer and tensor of a site."""
    pairs = pairs_of(units_in(truth)) if pairs is None else pairs
    places = [
        (tensor, dim, index(text)) for name, text in truth.producers.items() for tensor, dim in _rows(model, name)
    ]
    places += [(_tensor(model, name), dim, found) for (name, dim), found in per_neuron_of(truth).items()]
    for tensor, dim, found in places:
        for first, second in pairs:
            copy = tensor.index_select(dim, torch.tensor(found[first]))
            tensor.index_copy_(dim, torch.tensor(found[second]), copy)


def _without(tensor: Tensor, dim: int, gone: set[int]) -> Tensor:
    staying = torch.tensor([place for place in range(tensor.shape[dim]) if place not in gone])
    cut = tensor.detach().index_select(dim, staying)
    return nn.Parameter(cut) if isinstance(tensor, nn.Parameter) else cut


@torch.no_grad()
def cut_copies(model: nn.Module, truth: Truth, pairs: Sequence[tuple[int, int]] | None = None) -> None:
    """Add what reads the second unit of every pair to what reads the first, and take the second away."""
    pairs = pairs_of(units_in(truth)) if pairs is None else pairs
    before = {name: len(module.weight) for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
    for name, text in truth.reads.items():
        reader, found = model.get_submodule(name), index(text)
        dim = 1 - int(isinstance(reader, TRANSPOSED))
        for first, second in pairs:
            added = reader.weight.index_select(dim, torch.tensor(found[second]))
            reader.weight.index_add_(dim, torch.tensor(found[first]), added)
        gone = {place for _, second in pairs for place in found[second]}
        reader.weight = _without(reader.weight, dim, gone)
    for name, text in truth.producers.items():
        gone = {place for _, second in pairs for place in index(text)[second]}
        layer = model.get_submodule(name)
        for attribute, (tensor, dim) in zip(("weight", "bias"), _rows(model, name), strict=False):
            setattr(layer, attribute, _without(tensor, dim, gone))
    for (name, dim), found in per_neuron_of(truth).items():
        owner, _, attribute = name.rpartition(".")
        gone = {place for _, second in pairs for place in found[second]}
        setattr(model.get_submodule(owner), attribute, _without(_tensor(model, name), dim, gone))
    for name, module in model.named_modules():
        _count(module, before.get(name, 0))


def _count(module: nn.Module, rows: int) -> None:
    """The numbers that a module keeps of its sizes."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if rows:
            module.groups = len(module.weight) * module.groups // rows
        sizes = [size * module.groups if dim else size for dim, size in enumerate(module.weight.shape[:2])]
        module.out_channels, module.in_channels = sizes[::-1] if isinstance(module, TRANSPOSED) else sizes
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
        module.num_features = len(module.weight)
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
