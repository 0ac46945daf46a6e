"""Walk the nested containers in which models take and return tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution, Transform
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

    Objects of other classes that keep tensors in their attributes (distributions, graphs, batches of a library's own
    kind) are containers too: of the attributes that hold tensors. Any other object is one leaf.

    Containers are made anew with the same type and never changed; a dataclass or another object is copied without
    running its constructor, because that may refuse what `fn` returns.

    Args:
        fn: what to do with a leaf (a tensor or any object that is no container).
        tree: the nested containers.

    Returns:
        The same nesting with the new leaves.

    >>> map_leaves(lambda leaf: leaf + 1, {"a": (1, [2, 3])})
    {'a': (2, [3, 4])}
    """
    return _map(fn, tree, ())


def _map(fn: Callable[[Any], Any], tree: Any, around: tuple[int, ...]) -> Any:
    """`around`: the objects inside which this is, by id; one that holds itself is not entered twice."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, PackedSequence):
        # batch_sizes describes the layout and has to stay on the CPU
        return type(tree)._make(
            [
                _map(fn, tree.data, around),
                tree.batch_sizes,
                _map(fn, tree.sorted_indices, around),
                _map(fn, tree.unsorted_indices, around),
            ]
        )
    if isinstance(tree, (dict, UserDict)):
        return _map_mapping(fn, tree, around)
    if isinstance(tree, (tuple, list)):
        return _map_sequence(fn, tree, around)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, (type, Leaf)):
        return _copied(tree, {name: _map(fn, value, around) for name, value in _fields(tree).items()})
    members = _members(tree, around)
    if members:
        inside = (*around, id(tree))
        try:
            return _copied(tree, {name: _map(fn, value, inside) for name, value in members.items()})
        except (AttributeError, TypeError, copy.Error):  # it cannot be copied, or keeps what it holds to itself
            return fn(tree)
    if isinstance(tree, Mapping):
        return {key: _map(fn, value, around) for key, value in tree.items()}
    return fn(tree)


def _fields(tree: Any) -> dict[str, Any]:
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree) if hasattr(tree, field.name)}


def _copied(tree: Any, attributes: dict[str, Any]) -> Any:
    new = copy.copy(tree)
    for name, value in attributes.items():
        object.__setattr__(new, name, value)
    return new


_CLOSED = ("builtins", "torch", "numpy", "functools", "types", "weakref", "lightning", "pytorch_lightning")
_MOST = 1000  # objects that are looked into for tensors


def _members(tree: Any, around: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of an object that hold tensors; of most objects none."""
    return {name: value for name, value in _attributes(tree, around).items() if _holds(value, {*around, id(tree)})}


def _attributes(tree: Any, around: Container[int]) -> dict[str, Any]:
    """What an object keeps on itself, where it is of a kind that may hold tensors."""
    kind = type(tree)
    own = getattr(tree, "__dict__", None) if kind.__module__ != "builtins" else None
    if not isinstance(own, dict) or isinstance(tree, (type, Leaf, nn.Module)) or id(tree) in around:
        return {}
    closed = kind.__module__.partition(".")[0] in _CLOSED and not isinstance(tree, (Distribution, Transform))
    return {} if closed else own


def _holds(tree: Any, seen: set[int]) -> bool:
    if isinstance(tree, Tensor):
        return True
    if isinstance(tree, (dict, UserDict)):
        return any(_holds(value, seen) for value in tree.values())
    if isinstance(tree, (tuple, list)):
        return any(_holds(value, seen) for value in tree)
    own = _attributes(tree, seen)
    if not own or len(seen) > _MOST:
        return False
    seen.add(id(tree))
    return any(_holds(value, seen) for value in own.values())


def _map_mapping(fn: Callable[[Any], Any], tree: Any, around: tuple[int, ...]) -> Any:
    items = {key: _map(fn, value, around) for key, value in tree.items()}
    if type(tree) is dict:
        return items
    new = copy.copy(tree)  # keeps OrderedDict, defaultdict and the output classes of model libraries
    for key, value in items.items():
        new[key] = value
    return new


def _map_sequence(fn: Callable[[Any], Any], tree: Any, around: tuple[int, ...]) -> Any:
    items = [_map(fn, item, around) for item in tree]
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
    _walk(tree, found, ())
    return found


def _walk(tree: Any, found: list[Any], around: tuple[int, ...]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
        return
    children = _children(tree, around)
    if children is not None:
        for child in children:
            _walk(child, found, around)
        return
    members = _members(tree, around)
    for value in members.values():
        _walk(value, found, (*around, id(tree)))
    if not members:
        found.append(tree)


def _children(tree: Any, around: tuple[int, ...]) -> Iterable[Any] | None:
    """What a container holds; None for a leaf, and for an object that is looked into by its attributes."""
    if isinstance(tree, PackedSequence):
        return (tree.data, tree.sorted_indices, tree.unsorted_indices)
    if isinstance(tree, (tuple, list)):
        return tree
    if isinstance(tree, (dict, UserDict)):
        return tree.values()
    if dataclasses.is_dataclass(tree) and not isinstance(tree, (type, Leaf)):
        return _fields(tree).values()
    if isinstance(tree, Mapping) and not _members(tree, around):
        return tree.values()
    return None


def outline(kind: Callable[[Any], Any], tree: Any) -> Any:
    """How containers are nested, as tuples that can be compared; `kind` says what is told of a leaf.

    >>> outline(lambda leaf: type(leaf).__name__, {"a": (1, [2.0])})
    ('dict', 'a', ('tuple', 'int', ('list', 'float')))
    """
    return _outline(kind, tree, ())


def _outline(kind: Callable[[Any], Any], tree: Any, around: tuple[int, ...]) -> Any:
    children = None if isinstance(tree, Tensor) else _children(tree, around)
    if children is not None:
        keys = tuple(map(str, tree)) if isinstance(tree, Mapping) else ()
        return (type(tree).__name__, *keys, *(_outline(kind, child, around) for child in children))
    members = {} if isinstance(tree, Tensor) else _members(tree, around)
    if members:
        inside = (*around, id(tree))
        return (type(tree).__name__, *members, *(_outline(kind, value, inside) for value in members.values()))
    return kind(tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors, in order.

    >>> import torch
    >>> [tensor.item() for tensor in tensors_of((torch.tensor(1), "x", [torch.tensor(2)]))]
    [1, 2]
    >>> [tensor.item() for tensor in tensors_of(torch.distributions.Normal(torch.tensor(0.0), torch.tensor(1.0)))]
    [0.0, 1.0]
    """
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]
