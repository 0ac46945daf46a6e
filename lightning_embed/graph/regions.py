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

from lightning_embed.graph.layout import Layout
from lightning_embed.graph.observer import LayerCall, Observation, Slot
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
    shape: tuple[int, ...]  # of the first value that it was given


@dataclass(frozen=True, eq=False)
class Region:
    """A program from a layer's output to the inputs of its consumers, in which every neuron is on its own.

    Attributes:
        instructions: the calls in order; slot 0 is the layer's output.
        posts: (consumer, slot that it reads).
        shape: of the layer's output when it was observed.
        reads: where the neurons are in what each consumer reads.
        layout: where they are in the layer's output.
    """

    instructions: tuple[Instruction, ...]
    posts: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    reads: tuple[Layout, ...]
    layout: Layout

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
            pre: in place of the layer's output, with as many dimensions as it has.

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
                # around features sizes are the layer's; pooled and flattened maps have their own
                old, new = (one.shape, tensors_of((args, kwargs))) if self.layout.positions else (self.shape, [pre])
                args, kwargs = _resized((args, kwargs), old, tuple(new[0].shape) if new else old)
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
    is the width, of (-1, 8) too, and the 8 of (8, -1) is a number of rows. A written size may also be the product of
    neighbouring ones. Sizes in excess, as in (8, 1, 8), are new.
    """
    if old == new:
        return arguments
    written = [leaf for leaf in leaves(arguments) if type(leaf) is int]
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


def _needed(seen: Observation, call: LayerCall, targets: Sequence[int], instead: Mapping[int, int]) -> frozenset[int]:
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
    seen: Observation, call: LayerCall, targets: Sequence[tuple[str, int]], instead: Mapping[int, int]
) -> tuple[Region, frozenset[int]]:
    """The calls that lead from a layer's output to the given values, and the numbers of their events.

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
        shape = tuple(seen.values[_real(event.inputs[0], instead)].tensor.shape) if event.inputs else ()
        function = portable(event.function)
        instructions.append(Instruction(function, args, kwargs, results, writes, event.autocast, shape))
    posts = tuple((consumer, slot(_real(number, instead))) for consumer, number in targets)
    consumers = {one.layer: one for one in seen.calls}
    reads = tuple(consumers[name].reads(call.neurons) for name, _ in posts)
    return Region(tuple(instructions), posts, tuple(call.pre.shape), reads, call.layout), needed


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
        self.region, self.layout = region, region.layout
        self.named = {name: named[name].detach().clone() for name in region.names}
        self.pre = pre
        self.width = pre.shape[self.layout.dim]
        self.generator = torch.Generator(pre.device).manual_seed(0)
        samples = self._samples(pre)
        self.rows = torch.linspace(0, len(samples) - 1, min(len(samples), _FEW), device=pre.device).long().flip(0)
        self.few = samples[self.rows]
        if not self.layout.positions:
            self.few = self.few.reshape(-1, *(1,) * (pre.dim() - 2), self.width)

    def _samples(self, value: Tensor) -> Tensor:
        """What must not mix, apart along the first dimension: samples and, unless neurons are maps, positions."""
        return value if self.layout.positions else value.reshape(-1, value.shape[-1])

    def run(self, pre: Tensor, named: Mapping[str, Tensor] | None = None) -> list[tuple[Layout, Tensor]]:
        """The inputs of all consumers, without duplicates, and where the neurons are in them."""
        copies = {name: tensor.clone() for name, tensor in (self.named if named is None else named).items()}
        found = self.region.run(copies, pre)
        ways = zip(self.region.posts, self.region.reads, strict=True)
        slots = {(slot, layout): (layout, found[consumer]) for (consumer, slot), layout in ways}
        return list(slots.values())

    def refusal(self, given: Mapping[str, Tensor]) -> Reason | None:
        """Why the region does not keep neurons and samples apart.

        Args:
            given: what each consumer really read.
        """
        if self.layout.positions and self.pre.dim() != -self.layout.dim + 1:
            return Reason("no batch dimension")
        for (consumer, _), layout in zip(self.region.posts, self.region.reads, strict=True):
            post = given[consumer]
            maps = self.layout.positions and len(post) == len(self.pre) and layout.fits(post, self.width)
            if not maps and (post.shape[-1:] != self.pre.shape[-1:] or post.numel() != self.pre.numel()):
                return Reason("changes size", f"from {tuple(self.pre.shape)} to {tuple(post.shape)}")
        first, second = self.run(self.pre), self.run(self.pre)
        if not all(same(one, other) for (_, one), (_, other) in zip(first, second, strict=True)):
            return Reason("random in eval")
        again = self.region.run({name: tensor.clone() for name, tensor in self.named.items()}, self.pre)
        for consumer, post in given.items():
            if not same(again[consumer], post):
                return Reason("lost from sight in", f"the way to {consumer!r}")
        if any(self._rows_leak(scale) for scale in _SCALES):
            return Reason("rows mix", ", ".join(self.region.functions))
        reason = self._differing_rows(first)
        if reason is None and any(self._columns_leak(scale) for scale in _SCALES):
            return Reason("columns mix", ", ".join(self.region.functions))
        return reason

    def _half(self, of: int) -> Tensor:
        return torch.rand(of, generator=self.generator, device=self.pre.device) < 0.5

    def _moved(self, value: Tensor, scale: float) -> Tensor:
        noise = torch.randn(value.shape, generator=self.generator, device=value.device).to(value.dtype)
        return value + scale * (1 + value.abs().mean()) * noise

    def _rows_leak(self, scale: float) -> bool:
        """Whether changing some samples changes others."""
        samples, before = self._samples(self.pre), self.run(self.pre)
        moved = self._moved(samples, scale)
        half = self._half(len(samples))
        for changed in (half, ~half):
            apart = changed.reshape(-1, *(1,) * (samples.dim() - 1))
            new = torch.where(apart, moved, samples).reshape(self.pre.shape)
            for (_, old), (_, now) in zip(before, self.run(new), strict=True):
                if old.shape != now.shape or not same(self._samples(old)[~changed], self._samples(now)[~changed]):
                    return True
        return False

    def _columns_leak(self, scale: float) -> bool:
        """Whether changing some neurons changes others."""
        before, moved = self.run(self.few), self._moved(self.few, scale)
        half = self._half(self.width)
        for changed in (half, ~half):
            apart = changed.reshape(-1, *(1,) * (-1 - self.layout.dim))
            rest = torch.nonzero(~changed).flatten()
            for (layout, old), (_, now) in zip(before, self.run(torch.where(apart, moved, self.few)), strict=True):
                if old.shape != now.shape or not same(layout.select(old, rest), layout.select(now, rest)):
                    return True
        return False

    def _differing_rows(self, whole: list[tuple[Layout, Tensor]]) -> Reason | None:
        """Whether rows taken out of their places cannot stand for themselves."""
        try:
            posts = self.run(self.few)
        except Exception as error:  # noqa: BLE001  # any failure means that the rows need each other
            return Reason("rows differ", str(error))
        pairs = zip(posts, whole, strict=True)
        if all(close(self._samples(post), self._samples(old)[self.rows]) for (_, post), (_, old) in pairs):
            return None
        return Reason("rows differ", ", ".join(self.region.functions))

    def traits(self) -> Traits:
        """Uniformity, symmetry, scaling, and which tensors go with the neurons."""
        per_neuron, cut = self._cut()
        if per_neuron or not self._uniform():
            return Traits(uniform=False, odd=False, homogeneous=False, per_neuron=per_neuron, cut=cut)
        wide = self._wide()
        plus, minus, double = self.run(wide), self.run(-wide), self.run(2 * wide)
        odd = all(close(-m, p) for (_, m), (_, p) in zip(minus, plus, strict=True))
        homogeneous = all(close(d, 2 * p) for (_, d), (_, p) in zip(double, plus, strict=True))
        return Traits(uniform=True, odd=odd, homogeneous=homogeneous, per_neuron=per_neuron, cut=cut)

    def _wide(self) -> Tensor:
        noise = torch.rand(self.few.shape, generator=self.generator, device=self.pre.device)
        return (8 * noise - 4).to(self.pre.dtype)

    def _uniform(self) -> bool:
        for _ in range(8):
            first = self._wide().narrow(self.layout.dim, 0, 1)
            for layout, post in self.run(first.expand(self.few.shape)):
                rows = layout.rows(post)
                if not close(rows, rows[:, :1].expand(rows.shape)):
                    return False
        return True

    def _cut(self) -> tuple[tuple[tuple[str, int], ...], Reason | None]:
        """Find the dimensions of parameters and buffers that are cut when neurons are."""
        if self.width < 2:
            return (), None
        kept = torch.randperm(self.width, generator=self.generator, device=self.pre.device)[: self.width // 2].sort()[0]
        wide = self._wide()
        whole = [layout.select(post, kept) for layout, post in self.run(wide)]
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
                posts = self.run(self.layout.select(wide, kept), named)
            except Exception as error:  # noqa: BLE001  # any failure means that this is not how it is cut
                failure = str(error)
                continue
            if all(close(post, part) for (_, post), part in zip(posts, whole, strict=True)):
                return dims, None
        return (), Reason("cannot be cut", failure)
