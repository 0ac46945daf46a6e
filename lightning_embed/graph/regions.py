"""What lies between a hidden layer and its consumers, as a small program that can be run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_embed.graph.observer import LinearCall, Observation, Slot
from lightning_embed.graph.reasons import Reason
from lightning_embed.tape.functions import SHAPES, function_name, portable
from lightning_embed.tape.tape import Autocast, Named
from lightning_embed.tape.tree import leaves, map_leaves, tensors_of

START = 0  # the slot that holds the layer's output
_FEW = 9  # rows on which a region is probed, once it is known to treat all rows alike
_SCALES = (1.0, 30.0)  # of the changes by which a region is probed, relative to its values


@dataclass(frozen=True, eq=False)
class Instruction:
    """One function call. Tensors in its arguments are `Slot`s, `Named` parameters or buffers, or constants."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]
    autocast: tuple[Autocast, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """An elementwise program from a layer's output to the inputs of its consumers.

    Attributes:
        instructions: the calls in order; slot 0 is the layer's output.
        posts: (consumer, slot that it reads).
        shape: of the layer's output when it was observed.
    """

    instructions: tuple[Instruction, ...]
    posts: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters and buffers that it reads."""
        used = leaves([(one.args, one.kwargs) for one in self.instructions])
        return tuple(dict.fromkeys(leaf.name for leaf in used if isinstance(leaf, Named)))

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of the functions, in order."""
        return tuple(function_name(one.function) for one in self.instructions)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What two calls of one layer must have in common."""

        def kind(shapes: bool) -> Callable[[Any], str]:
            def of(leaf: Any) -> str:
                if isinstance(leaf, Tensor):
                    return f"tensor {tuple(leaf.shape)}"
                return "size" if shapes and type(leaf) is int else repr(leaf)

            return of

        calls = tuple(
            (name, repr(map_leaves(kind(name in SHAPES), (one.args, one.kwargs))), one.results, one.writes)
            for name, one in zip(self.functions, self.instructions, strict=True)
        )
        return (calls, self.posts)

    def run(self, named: Mapping[str, Tensor], pre: Tensor) -> dict[str, Tensor]:
        """Re-execute on values that may have other sizes than the observed ones.

        Args:
            named: parameters and buffers.
            pre: in place of the layer's output, shape (…, width), with as many dimensions as it has.

        Returns:
            The input of each consumer. `pre` is not changed.
        """
        slots = {START: pre.clone()}
        for one in self.instructions:

            def resolve(leaf: Any) -> Any:
                if isinstance(leaf, Slot):
                    return slots[leaf.number]
                if isinstance(leaf, Named):
                    return named[leaf.name]
                return leaf.clone() if isinstance(leaf, Tensor) else leaf

            args, kwargs = map_leaves(resolve, (one.args, one.kwargs))
            if function_name(one.function) in SHAPES:
                args, kwargs = _resized((args, kwargs), self.shape, tuple(pre.shape))
            with ExitStack() as stack:
                for state in one.autocast:
                    stack.enter_context(state.enter())
                result = one.function(*args, **kwargs)
            slots.update(zip(one.results, tensors_of(result), strict=True))
            slots.update({new: slots[old] for new, old in one.writes})
        return {consumer: slots[slot] for consumer, slot in self.posts}


def _resized(arguments: Any, old: tuple[int, ...], new: tuple[int, ...]) -> Any:
    """Arguments in which sizes that the program wrote down follow the tensor.

    Written sizes are matched with the observed ones from the right, because features come last: of (8, 8) the last
    is the width, of (-1, 8) too, and the 8 of (8, -1) is a number of rows. Sizes in excess, as in (8, 1, 8), are new.
    """
    if old == new:
        return arguments
    written = [leaf for leaf in leaves(arguments) if type(leaf) is int]
    at, excess, matched = len(old) - 1, len(written) - len(old), []
    for size in reversed(written):
        one = next((dim for dim in range(at, -1, -1) if old[dim] == size), None)
        many = next((dim for dim in range(at, 0, -1) if prod(old[: dim + 1]) == size), None)
        if one is not None:
            matched.append(new[one])
            at = one - 1
        elif many is not None:
            matched.append(prod(new[: many + 1]))
            at = -1
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


def _needed(seen: Observation, call: LinearCall, targets: Sequence[int], instead: Mapping[int, int]) -> frozenset[int]:
    """Numbers of the events that values are computed by, back to a Linear's output."""
    needed: set[int] = set()
    reached = {call.made}
    waiting = [_real(number, instead) for number in targets]
    while waiting:
        number = waiting.pop()
        producer = seen.values[number].producer
        if number in reached or producer is None or seen.values[number].name is not None:
            continue
        reached.add(number)
        needed.add(producer)
        event = seen.events[producer]
        waiting.extend(_real(one, instead) for one in (*event.inputs, *(old for _, old in event.writes)))
    return frozenset(needed)


def slice_region(
    seen: Observation, call: LinearCall, targets: Sequence[tuple[str, int]], instead: Mapping[int, int]
) -> tuple[Region, frozenset[int]]:
    """The calls that lead from a Linear's output to the given values, and the numbers of their events.

    Args:
        seen: an observation.
        call: the call whose output is the start.
        targets: (consumer, number of the value that it reads).
        instead: values to be replaced by others, as when a module is taken to be an identity.
    """
    needed = _needed(seen, call, [number for _, number in targets], instead)
    slots = {call.made: START}

    def slot(number: int) -> int:
        return slots.setdefault(number, len(slots))

    def leaf(one: Any) -> Any:
        if not isinstance(one, Slot):
            return one
        number = _real(one.number, instead)
        value = seen.values[number]
        if value.name is not None:
            return Named(value.name)
        if value.producer in needed or number == call.made:
            return Slot(slot(number))
        return value.tensor.detach().clone()

    instructions = []
    for number in sorted(needed):
        event = seen.events[number]
        args, kwargs = map_leaves(leaf, (event.args, event.kwargs))
        results = tuple(slot(one) for one in event.results)
        writes = tuple((slot(new), slot(old)) for new, old in event.writes if old in slots)
        instructions.append(Instruction(portable(event.function), args, kwargs, results, writes, event.autocast))
    posts = tuple((consumer, slot(_real(number, instead))) for consumer, number in targets)
    return Region(tuple(instructions), posts, tuple(call.pre.shape)), needed


# ---- what a region does, found out by running it ----


def same(one: Tensor, other: Tensor) -> bool:
    """Equality bit for bit, with NaN equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def close(one: Tensor, other: Tensor) -> bool:
    """Equality up to rounding: the same function may round differently at another place in memory."""
    if one.shape != other.shape:
        return False
    finite = other[torch.isfinite(other)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    tolerance = 32 * torch.finfo(other.dtype).eps * max(scale, torch.finfo(other.dtype).tiny)
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=tolerance, equal_nan=True)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


@dataclass(frozen=True)
class Traits:
    """What is known of a region that passed every test; see `HiddenLayer`."""

    uniform: bool
    odd: bool
    homogeneous: bool
    per_neuron: tuple[tuple[str, int], ...] = ()
    cut: Reason | None = None


class Probe:
    """Runs a region on copies of values, parameters and buffers, in eval mode."""

    def __init__(self, region: Region, named: Mapping[str, Tensor], pre: Tensor) -> None:
        self.region = region
        self.named = {name: named[name].detach().clone() for name in region.names}
        self.pre = pre
        self.width = pre.shape[-1]
        self.generator = torch.Generator(pre.device).manual_seed(0)
        flat = _flat(pre)
        self.rows = torch.linspace(0, len(flat) - 1, min(len(flat), _FEW), device=pre.device).long().flip(0)
        self.few = flat[self.rows].reshape(-1, *(1,) * (pre.dim() - 2), self.width)

    def run(self, pre: Tensor, named: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The inputs of all consumers, without duplicates."""
        copies = {name: tensor.clone() for name, tensor in (self.named if named is None else named).items()}
        found = self.region.run(copies, pre)
        slots = {slot: found[consumer] for consumer, slot in self.region.posts}
        return list(slots.values())

    def refusal(self, given: Mapping[str, Tensor]) -> Reason | None:
        """Why the region is no elementwise function of the layer's output.

        Args:
            given: what each consumer really read.
        """
        for post in given.values():
            if post.shape[-1:] != self.pre.shape[-1:] or post.numel() != self.pre.numel():
                return Reason("changes size", f"from {tuple(self.pre.shape)} to {tuple(post.shape)}")
        first, second = self.run(self.pre), self.run(self.pre)
        if not all(map(same, first, second)):
            return Reason("random in eval")
        again = self.region.run({name: tensor.clone() for name, tensor in self.named.items()}, self.pre)
        for consumer, post in given.items():
            if not same(again[consumer], post):
                return Reason("lost from sight in", f"the way to {consumer!r}")
        if any(self._leaks(self.pre, scale, columns=False) for scale in _SCALES):
            return Reason("rows mix", ", ".join(self.region.functions))
        reason = self._differing_rows(first)
        if reason is None and any(self._leaks(self.few, scale, columns=True) for scale in _SCALES):
            return Reason("columns mix", ", ".join(self.region.functions))
        return reason

    def _leaks(self, pre: Tensor, scale: float, *, columns: bool) -> bool:
        """Whether changing some columns (or rows) changes others."""
        flat, before = _flat(pre), self.run(pre)
        noise = torch.randn(flat.shape, generator=self.generator, device=flat.device).to(flat.dtype)
        chosen = torch.rand(flat.shape[int(columns)], generator=self.generator, device=flat.device) < 0.5
        for mask in (chosen, ~chosen):
            changes = mask.expand(flat.shape) if columns else mask[:, None].expand(flat.shape)
            new = torch.where(changes, flat + scale * (1 + flat.abs().mean()) * noise, flat)
            for old, now in zip(before, self.run(new.reshape(pre.shape)), strict=True):
                if old.shape != now.shape or not same(_flat(old)[~changes], _flat(now)[~changes]):
                    return True
        return False

    def _differing_rows(self, whole: list[Tensor]) -> Reason | None:
        """Whether rows taken out of their places cannot stand for themselves."""
        try:
            posts = self.run(self.few)
        except Exception as error:  # noqa: BLE001  # any failure means that the rows need each other
            return Reason("rows differ", str(error))
        if all(close(_flat(post), _flat(old)[self.rows]) for post, old in zip(posts, whole, strict=True)):
            return None
        return Reason("rows differ", ", ".join(self.region.functions))

    def traits(self) -> Traits:
        """Uniformity, symmetry, scaling, and which tensors go with the neurons."""
        per_neuron, cut = self._cut()
        if per_neuron or not self._uniform():
            return Traits(uniform=False, odd=False, homogeneous=False, per_neuron=per_neuron, cut=cut)
        wide = self._wide()
        plus, minus, double = self.run(wide), self.run(-wide), self.run(2 * wide)
        odd = all(close(-m, p) for m, p in zip(minus, plus, strict=True))
        homogeneous = all(close(d, 2 * p) for d, p in zip(double, plus, strict=True))
        return Traits(uniform=True, odd=odd, homogeneous=homogeneous, per_neuron=per_neuron, cut=cut)

    def _wide(self) -> Tensor:
        noise = torch.rand(self.few.shape, generator=self.generator, device=self.pre.device)
        return (8 * noise - 4).to(self.pre.dtype)

    def _uniform(self) -> bool:
        for _ in range(8):
            posts = self.run(self._wide()[..., :1].expand(self.few.shape))
            if not all(close(post, post[..., :1].expand(post.shape)) for post in posts):
                return False
        return True

    def _cut(self) -> tuple[tuple[tuple[str, int], ...], Reason | None]:
        """Find the dimensions of parameters and buffers that are cut when neurons are."""
        if self.width < 2:
            return (), None
        kept = torch.randperm(self.width, generator=self.generator, device=self.pre.device)[: self.width // 2].sort()[0]
        wide = self._wide()
        whole = [_flat(post)[:, kept] for post in self.run(wide)]
        shapes = [(name, tensor.shape) for name, tensor in self.named.items()]
        choices = [
            [(name, dim) for dim in reversed(range(len(shape))) if shape[dim] == self.width] + [None]
            for name, shape in shapes
        ]
        failure = "other values"
        for combination in list(product(*choices))[:64]:
            dims = tuple(one for one in combination if one is not None)
            named = {**self.named, **{name: self.named[name].index_select(dim, kept) for name, dim in dims}}
            try:
                posts = self.run(wide[..., kept], named)
            except Exception as error:  # noqa: BLE001  # any failure means that this is not how it is cut
                failure = str(error)
                continue
            if all(close(_flat(post), part) for post, part in zip(posts, whole, strict=True)):
                return dims, None
        return (), Reason("cannot be cut", failure)
