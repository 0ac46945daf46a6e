"""Walk the nested containers in which models take and return tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Leaf:
    """Base of dataclasses that stand for one leaf and are not looked into."""


def canonical_name(name: str) -> str:
    """A qualified name without the components that `torch.compile` adds.

    >>> canonical_name("net._orig_mod.0.weight")
    'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def map_leaves(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `fn` to every leaf of nested tuples, named tuples, lists, mappings, dataclasses and PackedSequences.

    Containers are made anew with the same type and never changed; a dataclass is copied without running its
    constructor, because that may refuse what `fn` returns. Any other object is one leaf.

    Args:
        fn: what to do with a leaf (a tensor or any object that is no container).
        tree: the nested containers.

    Returns:
        The same nesting with the new leaves.

    >>> map_leaves(lambda leaf: leaf + 1, {"a": (1, [2, 3])})
    {'a': (2, [3, 4])}
    """
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, PackedSequence):
        # batch_sizes describes the layout and has to stay on the CPU
        return type(tree)._make(
            [
                map_leaves(fn, tree.data),
                tree.batch_sizes,
                map_leaves(fn, tree.sorted_indices),
                map_leaves(fn, tree.unsorted_indices),
            ]
        )
    if isinstance(tree, Mapping):
        return _map_mapping(fn, tree)
    if isinstance(tree, (tuple, list)):
        return _map_sequence(fn, tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, (type, Leaf)):
        new = copy.copy(tree)
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                object.__setattr__(new, field.name, map_leaves(fn, getattr(tree, field.name)))
        return new
    return fn(tree)


def _map_mapping(fn: Callable[[Any], Any], tree: Any) -> Any:
    items = {key: map_leaves(fn, value) for key, value in tree.items()}
    if type(tree) is dict or not isinstance(tree, (dict, UserDict)):
        return items
    new = copy.copy(tree)  # keeps OrderedDict, defaultdict and the output classes of model libraries
    for key, value in items.items():
        new[key] = value
    return new


def _map_sequence(fn: Callable[[Any], Any], tree: Any) -> Any:
    items = [map_leaves(fn, item) for item in tree]
    if isinstance(tree, tuple):
        if hasattr(tree, "_make"):
            return type(tree)._make(items)
        try:
            return type(tree)(items)
        except TypeError:  # a torch.Size holds nothing but integers
            return tuple(items)
    if type(tree) is list:
        return items
    new = copy.copy(tree)
    new[:] = items
    return new


def map_tensors(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `fn` to every tensor and leave every other leaf as it is.

    >>> import torch
    >>> map_tensors(lambda tensor: tensor.numel(), (torch.zeros(2, 3), "mask", None))
    (6, 'mask', None)
    """
    return map_leaves(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def leaves(tree: Any) -> list[Any]:
    """All leaves, in the order in which `map_leaves` meets them.

    >>> leaves({"a": (1, [2]), "b": 3})
    [1, 2, 3]
    """
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(note, tree)
    return found


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors, in order.

    >>> import torch
    >>> [tensor.item() for tensor in tensors_of((torch.tensor(1), "x", [torch.tensor(2)]))]
    [1, 2]
    """
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
