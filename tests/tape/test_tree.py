"""Containers of tensors, and functions as they travel."""

from __future__ import annotations

import collections
import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_embed.tape.functions import in_eval, portable
from lightning_embed.tape.tree import map_leaves, tensors_of


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    note: str = "kept"

    def __post_init__(self) -> None:
        assert isinstance(self.x, Tensor)


class Output(collections.OrderedDict):
    """Like the outputs of model libraries: a mapping whose keys are attributes too."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def test_containers_keep_their_type() -> None:
    point = collections.namedtuple("point", "x y")  # noqa: PYI024  # made on the spot
    tree = {
        "named": point(torch.ones(1), 2),
        "frozen": Frozen(torch.ones(2)),
        "output": Output(x=torch.ones(3)),
        "user": collections.UserDict(x=[torch.ones(4)]),
        "returned": torch.max(torch.ones(2, 2), 1),
        "size": torch.Size([1, 2]),
    }
    new = map_leaves(lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf, tree)
    assert [type(value) for value in new.values()] == [type(value) for value in tree.values()]
    assert torch.equal(new["output"].x, torch.full((3,), 2.0))
    assert torch.equal(tree["frozen"].x, torch.ones(2))
    assert len(tensors_of(new)) == 6
    assert map_leaves(type, Frozen(torch.ones(1))).x is Tensor  # no constructor runs


def test_functions_travel() -> None:
    seen: list[Any] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    x = torch.rand(4, 6)
    with Seen():
        _ = (x.T, x.mT, x**2, 1 - x, x[:, 0], F.max_pool1d(x, 2), F.gelu(x), torch.ops.aten.relu(x), x.data, F.relu(x))
    for func, args, kwargs in seen:
        again = pickle.loads(pickle.dumps(portable(func)))
        assert torch.equal(again(*args, **kwargs), func(*args, **kwargs))


def test_functions_in_eval() -> None:
    x = torch.ones(100)
    for func, args, kwargs in [
        (F.dropout, (x,), {}),
        (F.dropout, (x, 0.5, True), {}),
        (F.dropout, (x,), {"p": 0.5, "training": True}),
        (torch.dropout, (x, 0.5, True), {}),
        (F.alpha_dropout, (x, 0.5), {"training": True}),
        (F.rrelu, (x, 0.1, 0.3, True), {}),
    ]:
        new_args, new_kwargs = in_eval(func, args, kwargs)
        assert torch.equal(func(*new_args, **new_kwargs), x)
    assert in_eval(F.relu, (x, True), {})[0][1] is True
