"""What lies between the outputs of layers and the inputs of those that read them, as a program to be run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_embed.graph.observer import INPUT, Observation, Slot
from lightning_embed.tape.functions import SHAPES, function_name, portable
from lightning_embed.tape.tape import Autocast, Named
from lightning_embed.tape.tree import leaves, map_leaves, tensors_of

_GROUPED = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
_GROUPS = {name: 7 if "transpose" in name else 6 for name in _GROUPED}  # place of `groups` among the arguments


@dataclass(frozen=True, eq=False)
class Instruction:
    """One function call. Tensors in its arguments are `Slot`s, `Named` parameters or buffers, or constants."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]
    autocast: tuple[Autocast, ...]
    shape: tuple[int, ...]  # of the first value that it was given


class InstructionFailed(Exception):  # noqa: N818  # it never leaves the room
    """A function failed when it was run again.

    Args:
        function: its name.
        operands: how many tensors it was given.
        error: what it raised.
    """

    def __init__(self, function: str, operands: int, error: Exception) -> None:
        super().__init__(f"{function}: {str(error).partition(chr(10))[0]}")
        self.function, self.operands = function, operands


@dataclass(frozen=True, eq=False)
class Start:
    """The output of one call of a layer, from which a region begins, as it was observed."""

    layer: str
    call: int
    slot: int
    pre: Tensor


@dataclass(frozen=True, eq=False)
class Post:
    """The input of one call of a layer, at which a region ends, as it was observed."""

    layer: str
    call: int
    slot: int | Named
    given: Tensor


@dataclass(frozen=True, eq=False)
class Region:
    """A program from the outputs of some calls of layers to the inputs of others.

    Attributes:
        instructions: the function calls, in order.
        starts: where it begins.
        posts: where it ends.
        takes_inputs: whether it uses recorded inputs of the model.
        written: parameters and buffers that it writes to; `run` needs copies of them.
        constants: values that depend on no start, parameter or buffer, by their slots (see `folded`).
    """

    instructions: tuple[Instruction, ...]
    starts: tuple[Start, ...]
    posts: tuple[Post, ...]
    takes_inputs: bool = False
    written: frozenset[str] = frozenset()
    constants: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters and buffers that it reads."""
        used = leaves([(one.args, one.kwargs) for one in self.instructions])
        read = [post.slot for post in self.posts]
        return tuple(dict.fromkeys(leaf.name for leaf in [*used, *read] if isinstance(leaf, Named)))

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions, in order."""
        return tuple(function_name(instruction.function) for instruction in self.instructions)

    def signature(self, *, sizes: bool) -> tuple[Any, ...]:
        """What two regions that do the same have in common, with or without the sizes of tensors."""

        def kind(shapes: bool) -> Callable[[Any], str]:
            def of(leaf: Any) -> str:
                if isinstance(leaf, Tensor):
                    return f"tensor {tuple(leaf.shape)}"
                return "size" if shapes and not sizes and type(leaf) is int else repr(leaf)

            return of

        calls = tuple(
            (name, repr(map_leaves(kind(name in SHAPES), (step.args, step.kwargs))), step.results, step.writes)
            for name, step in zip(self.functions, self.instructions, strict=True)
        )
        ends = tuple((post.layer, repr(post.slot)) for post in self.posts)
        if not sizes:
            return calls, ends
        starts = tuple((start.layer, start.slot, tuple(start.pre.shape)) for start in self.starts)
        return calls, ends, starts, tuple(tuple(post.given.shape) for post in self.posts)

    def run(
        self,
        named: Mapping[str, Tensor],
        pres: Mapping[int, Tensor] | None = None,
        rewritten: list[str] | None = None,
    ) -> list[Tensor]:
        """Re-execute on values that may have other sizes than the observed ones.

        Args:
            named: parameters and buffers; those that are written to must be copies.
            pres: values in place of the outputs of calls, by number of the call; the observed ones elsewhere. They are
                not changed.
            rewritten: names of functions are added to it in which a size that the program wrote down had to follow the
                values; the model itself may not do so.

        Returns:
            The input of every reading call.
        """
        pres = pres or {}
        slots = dict(self.constants)
        slots.update({start.slot: pres.get(start.call, start.pre).clone() for start in self.starts})
        for step in self.instructions:
            self._do(step, slots, named, pres, rewritten)
        return [named[post.slot.name] if isinstance(post.slot, Named) else slots[post.slot] for post in self.posts]

    def _do(
        self,
        step: Instruction,
        slots: dict[int, Tensor],
        named: Mapping[str, Tensor],
        pres: Mapping[int, Tensor],
        rewritten: list[str] | None,
    ) -> None:
        """Carry out one instruction."""

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                return slots[leaf.number]
            if isinstance(leaf, Named):
                return named[leaf.name]
            return leaf.clone() if isinstance(leaf, Tensor) else leaf

        args, kwargs = map_leaves(resolve, (step.args, step.kwargs))
        name = function_name(step.function)
        if name in SHAPES or name in _GROUPED:
            written = [] if rewritten is None else _numbers((args, kwargs))
            args, kwargs = self._follow_sizes(step, args, kwargs, pres)
            if rewritten is not None and _numbers((args, kwargs)) != written and name in SHAPES:
                rewritten.append(name)
        try:
            with ExitStack() as stack:
                for state in step.autocast:
                    stack.enter_context(state.enter())
                result = step.function(*args, **kwargs)
        except Exception as error:
            raise InstructionFailed(name, len(tensors_of((args, kwargs))), error) from error
        slots.update(zip(step.results, tensors_of(result), strict=True))
        slots.update({new: slots[old] for new, old in step.writes})

    def folded(self) -> Region:
        """The same with what depends on no start, parameter or buffer computed once: masks, tables of positions.

        Calls that give other values each time stay, and those without a tensor, whose sizes may have to follow a cut.
        """
        constant: dict[int, Tensor] = {}
        folded: list[Instruction] = []
        for step in self.instructions:
            used = leaves((step.args, step.kwargs))
            inputs = [leaf for leaf in used if isinstance(leaf, (Slot, Named, Tensor))]
            if (
                step.writes
                or not inputs
                or not all(
                    isinstance(leaf, Tensor) or (isinstance(leaf, Slot) and leaf.number in constant) for leaf in inputs
                )
            ):
                continue
            first, second = dict(constant), dict(constant)
            self._do(step, first, {}, {}, None)
            self._do(step, second, {}, {}, None)
            if all(same(first[slot], second[slot]) for slot in step.results):
                constant = first
                folded.append(step)
        rest = tuple(step for step in self.instructions if step not in folded)
        if any(old in constant for step in rest for _, old in step.writes):
            return self
        return replace(self, instructions=rest, constants=constant)

    def _follow_sizes(
        self, step: Instruction, args: Any, kwargs: Any, pres: Mapping[int, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments in which sizes and numbers of groups that were written down follow the values."""
        name = function_name(step.function)
        values = tensors_of((args, kwargs))
        if name in SHAPES:
            if values:
                old, new = step.shape, tuple(values[0].shape)
            else:  # a tensor that is made anew, as large as the layer's output
                start = self.starts[0]
                old, new = tuple(start.pre.shape), tuple(pres.get(start.call, start.pre).shape)
            args, kwargs = resized((args, kwargs), old, new)
        elif name in _GROUPED and len(values[0].shape) > 1 and values[0].shape[1] != step.shape[1]:
            groups = args[_GROUPS[name]] if len(args) > _GROUPS[name] else kwargs.get("groups", 1)
            follows = groups * values[0].shape[1] // step.shape[1]
            if len(args) > _GROUPS[name]:
                args = (*args[: _GROUPS[name]], follows, *args[_GROUPS[name] + 1 :])
            elif "groups" in kwargs:
                kwargs = {**kwargs, "groups": follows}
        return args, kwargs


def _numbers(arguments: Any) -> list[int]:
    return [leaf for leaf in leaves(arguments) if type(leaf) is int]


def resized(arguments: Any, old: tuple[int, ...], new: tuple[int, ...]) -> Any:
    """Arguments in which sizes that the program wrote down follow the tensor.

    Written sizes are matched with the observed ones from the right, because features come last: of (8, 8) the last
    is the width, of (-1, 8) too, and the 8 of (8, -1) is a number of rows. A written size may also be the product of
    neighbouring ones. Sizes in excess, as in (8, 1, 8), are new.
    """
    if old == new:
        return arguments
    written = _numbers(arguments)
    at, excess, matched = len(old) - 1, len(written) - len(old), []
    for size in reversed(written):
        one = next((dim for dim in range(at, -1, -1) if old[dim] == size), None)
        many = next((dim for dim in range(at, 0, -1) if prod(old[: dim + 1]) == size), None)
        run = next((dim for dim in range(at, 0, -1) if prod(old[dim : at + 1]) == size), None)
        if one is not None:
            matched.append(new[one])
            at = one - 1
        elif many is not None:
            matched.append(prod(new[: many + 1]))
            at = -1
        elif run is not None:
            matched.append(prod(new[run : at + 1]))
            at = run - 1
        else:
            matched.append(size)
            at -= excess <= 0
            excess -= 1
    sizes = reversed(matched)
    return map_leaves(lambda leaf: next(sizes) if type(leaf) is int else leaf, arguments)


def _real(number: int, instead: Mapping[int, int]) -> int:
    while number in instead:
        number = instead[number]
    return number


def slice_region(
    seen: Observation, readers: Sequence[int], instead: Mapping[int, int] | None = None
) -> tuple[Region, frozenset[int]]:
    """The calls that lead from layers' outputs to what some calls of layers read, and the numbers of their events.

    Args:
        seen: an observation.
        readers: numbers of the calls whose inputs are the ends.
        instead: values to be replaced by others, as when a module is taken to be an identity.
    """
    return _Slicer(seen, instead or {}).region(readers)


class _Slicer:
    """Goes back from values to the outputs of layers, and writes down the calls on the way."""

    def __init__(self, seen: Observation, instead: Mapping[int, int]) -> None:
        self.seen, self.instead = seen, instead
        self.made = {call.made: number for number, call in enumerate(seen.calls)}
        self.needed, self.reached, self.starts = set[int](), set[int](), set[int]()
        self.slots: dict[int, int] = {}

    def region(self, readers: Sequence[int]) -> tuple[Region, frozenset[int]]:
        seen = self.seen
        self._go_back([_real(seen.calls[reader].read, self.instead) for reader in readers])
        starts = tuple(
            Start(seen.calls[call].layer, call, self._slot(seen.calls[call].made), seen.calls[call].pre)
            for call in sorted(self.starts)
        )
        instructions = tuple(self._instruction(number) for number in sorted(self.needed))
        posts = tuple(self._post(reader) for reader in readers)
        inputs = any(INPUT in seen.values[number].origins and number in seen.constants for number in self.reached)
        overwritten = [seen.values[old].name for number in self.needed for _, old in seen.events[number].writes]
        written = frozenset(name for name in overwritten if name is not None)
        return Region(instructions, starts, posts, inputs, written), frozenset(self.needed)

    def _go_back(self, waiting: list[int]) -> None:
        while waiting:
            number = waiting.pop()
            value = self.seen.values[number]
            if number in self.reached or value.name is not None:
                continue
            self.reached.add(number)
            if number in self.made:
                self.starts.add(self.made[number])
            elif value.producer is not None:
                self.needed.add(value.producer)
                event = self.seen.events[value.producer]
                before = (*event.inputs, *(old for _, old in event.writes))
                waiting.extend(_real(earlier, self.instead) for earlier in before)

    def _slot(self, number: int) -> int:
        return self.slots.setdefault(number, len(self.slots))

    def _leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, Slot):
            return leaf
        number = _real(leaf.number, self.instead)
        value = self.seen.values[number]
        if value.name is not None:
            return Named(value.name)
        if number in self.made or value.producer in self.needed:
            return Slot(self._slot(number))
        return self.seen.constants[number].clone()

    def _instruction(self, number: int) -> Instruction:
        event = self.seen.events[number]
        args, kwargs = map_leaves(self._leaf, (event.args, event.kwargs))
        results = tuple(self._slot(result) for result in event.results)
        writes = tuple((self._slot(new), self.slots[old]) for new, old in event.writes if old in self.slots)
        first = self.seen.values[_real(event.inputs[0], self.instead)] if event.inputs else None
        shape = () if first is None else tuple(first.tensor.shape)
        return Instruction(portable(event.function), args, kwargs, results, writes, event.autocast, shape)

    def _post(self, reader: int) -> Post:
        call = self.seen.calls[reader]
        read = self._leaf(Slot(call.read))
        assert isinstance(read, (Slot, Named)), f"{call.layer} reads nothing that a layer computed"
        return Post(call.layer, reader, read.number if isinstance(read, Slot) else read, call.given)


def same(one: Tensor, other: Tensor) -> bool:
    """Equality bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def close(one: Tensor, other: Tensor, *, other_size: bool = False) -> bool:
    """Equality up to rounding: the same function may round differently at another place in memory.

    With `other_size` it may have been computed by another kernel, as attention is for values of another width, whose
    exponentials of large numbers differ by more.
    """
    if one.shape != other.shape:
        return False
    finite = other[torch.isfinite(other)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    eps = torch.finfo(other.dtype).eps
    roundings = 1024 if other_size and eps < 1e-6 else 32  # half precision has no room for so many
    tolerance = roundings * eps * max(scale, torch.finfo(other.dtype).tiny)
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=tolerance, equal_nan=True)
