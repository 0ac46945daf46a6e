"""Tapes as plain data, for checkpoints that `torch.load(weights_only=True)` reads, and for other processes.

Functions are written by where they are found below `torch`, and only functions of tensors are found again: a
checkpoint cannot name `torch.load` or anything else that acts on more than its arguments.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_embed.errors import CheckpointError, InputError
from lightning_embed.tape.functions import OWNERS, Address, address_of, owner_of
from lightning_embed.tape.tape import Autocast, Named, Ref, Step, Tape

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_MEMORY = ("from_file", "frombuffer", "from_numpy", "from_dlpack")


def to_plain(tape: Tape, *, strict: bool = True) -> dict[str, Any]:
    """A tape as nested dicts, lists, numbers, strings and tensors on the CPU.

    Args:
        tape: what `Recorder` or `record` made.
        strict: refuse what is not plain; otherwise such objects stay as they are, to be pickled.

    Returns:
        Data for `from_plain`.

    Raises:
        InputError: the calls take or use something that plain data cannot hold; the message names it.

    >>> import torch
    >>> from lightning_embed.tape import record
    >>> net = torch.nn.Linear(2, 1)
    >>> [tape] = record(net, [torch.ones(3, 2)])
    >>> from_plain(to_plain(tape), torch.device("cpu")).samples
    3
    """
    write = _Writer(tape.device, strict)
    return {
        "steps": [
            {
                "module": step.module,
                "function": None if step.function is None else write.function(step.function),
                "args": write(step.args),
                "kwargs": write(step.kwargs),
                "writes": write(step.writes),
                "autocast": [[one.device_type, one.enabled, one.dtype] for one in step.autocast],
                "dtype": step.dtype,
            }
            for step in tape.steps
        ],
        "outputs": write(tape.outputs),
        "samples": tape.samples,
        "nbytes": tape.nbytes,
    }


def from_plain(data: dict[str, Any], device: torch.device) -> Tape:
    """The tape that `to_plain` wrote, with what belongs to the model on the given device.

    Raises:
        CheckpointError: the data are damaged, or name something that is no function of tensors.
    """
    read = functools.partial(_read, device=device)
    try:
        return Tape(
            steps=tuple(
                Step(
                    module=step["module"],
                    function=None if step["function"] is None else _function(step["function"]),
                    args=read(step["args"]),
                    kwargs=read(step["kwargs"]),
                    writes=read(step["writes"]),
                    autocast=tuple(Autocast(*one) for one in step["autocast"]),
                    dtype=step["dtype"],
                )
                for step in data["steps"]
            ),
            outputs=read(data["outputs"]),
            samples=data["samples"],
            nbytes=data["nbytes"],
            device=str(device),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"The calibration data in the checkpoint are damaged ({error!r}).") from error


def encode(tree: Any, device: torch.device | str, *, strict: bool = True) -> Any:
    """Nested containers as tagged lists; tensors on the CPU, with a mark on those that are on the given device."""
    return _Writer(str(device), strict)(tree)


def decode(tree: Any, device: torch.device) -> Any:
    """What `encode` wrote, with marked tensors on the given device.

    >>> decode(encode({"a": (1, [None])}, "cpu"), torch.device("cpu"))
    {'a': (1, [None])}
    """
    return _read(tree, device)


class _Writer:
    """Turns the leaves and containers of recorded calls into tagged lists."""

    def __init__(self, device: str, strict: bool) -> None:
        self._device, self._strict = device, strict

    def __call__(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            copied = tree.detach().cpu()
            return ["tensor", copied, str(tree.device) == self._device]
        if tree is None or type(tree) in _PLAIN:
            return ["value", tree]
        if isinstance(tree, Ref):
            return ["ref", tree.step, tree.index]
        if isinstance(tree, Named):
            return ["named", tree.name]
        if tree is Ellipsis:
            return ["..."]
        if isinstance(tree, slice):
            return ["slice", *(self(one) for one in (tree.start, tree.stop, tree.step))]
        if isinstance(tree, PackedSequence):
            return ["packed", *(self(one) for one in tree)]
        if type(tree) in (tuple, list, torch.Size):
            return [type(tree).__name__, *(self(one) for one in tree)]
        if type(tree) is dict:
            return ["dict", *([self(key), self(value)] for key, value in tree.items())]
        return ["object", self._other(tree)]

    def function(self, function: Callable[..., Any]) -> Any:
        """Where a function is found."""
        if isinstance(function, operator.attrgetter):
            return ["attribute", function.__reduce__()[1][0]]
        address = function if isinstance(function, Address) else address_of(function)
        if address is not None:
            return ["torch", address.owner, address.name]
        return ["object", self._other(function)]

    def _other(self, thing: Any) -> Any:
        if self._strict:
            name = getattr(thing, "__qualname__", type(thing).__qualname__)
            raise InputError(f"recorded calls use {name}, which a checkpoint cannot hold as plain data")
        return thing


def _read(tree: Any, device: torch.device) -> Any:
    tag, *rest = tree
    read = functools.partial(_read, device=device)
    if tag == "tensor":
        return rest[0].to(device) if rest[1] else rest[0]
    if tag in ("value", "object"):
        return rest[0]
    if tag == "dict":
        return {read(key): read(value) for key, value in rest}
    makers: dict[str, Callable[..., Any]] = {
        "ref": lambda: Ref(*rest),
        "named": lambda: Named(*rest),
        "...": lambda: Ellipsis,
        "slice": lambda: slice(*map(read, rest)),
        "packed": lambda: PackedSequence._make(map(read, rest)),
        "tuple": lambda: tuple(map(read, rest)),
        "list": lambda: list(map(read, rest)),
        "Size": lambda: torch.Size(map(read, rest)),
    }
    return makers[tag]()


def _function(data: Any) -> Callable[..., Any]:
    tag, *rest = data
    if tag == "object":
        return rest[0]  # type: ignore[no-any-return]  # it was pickled by another process of the same run
    if tag == "attribute":
        if not rest[0].isidentifier() or not _on_tensors(getattr(torch.Tensor, rest[0], None)):
            raise CheckpointError(f"The calibration data in the checkpoint read {rest[0]!r}, no property of a tensor.")
        return operator.attrgetter(rest[0])
    owner, name = rest
    if not _permitted(owner, name):
        raise CheckpointError(f"The calibration data in the checkpoint call {owner}.{name}, no function of tensors.")
    return Address(owner, name)


def _permitted(owner: str, name: str) -> bool:
    """Whether a file may name this function: it makes tensors of its arguments, and reads no file or memory."""
    if name in _MEMORY or owner.rpartition(".")[2] in _MEMORY:
        return False
    try:
        function = getattr(owner_of(owner), name)
    except AttributeError:
        return False
    if owner.startswith(("ops.aten", "ops.torchvision")):
        return isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    # of torch's own operators those that take no tensor (zeros, randn_like) are not among the ones to override
    return owner == "_C._VariableFunctions" or (owner in OWNERS and _on_tensors(function))


def _on_tensors(function: Any) -> bool:
    """Whether a function is one that torch lets tensor types override: it works on tensors and nothing else."""
    getter = getattr(function, "__get__", None) if not callable(function) else function
    try:
        return getter in torch.overrides.get_testing_overrides()
    except TypeError:
        return False
