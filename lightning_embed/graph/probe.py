"""Questions to what lies between layers, asked by running it again on moved values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_embed.graph.layout import Layout, input_dim, output_layout
from lightning_embed.graph.observer import Observation
from lightning_embed.graph.reasons import Reason
from lightning_embed.graph.regions import InstructionFailed, Region, close, same, slice_region

_FEW = 9  # rows on which it is tried whether each stands for itself
_MILD, _WILD = 1.0, 30.0  # how far values are moved, relative to their size


@dataclass(frozen=True, eq=False)
class Part:
    """What is asked in one observation.

    Attributes:
        seen: the observation.
        region: what lies between.
        quick: the same with its constants computed.
        events: numbers of its events.
        moving: which of its starts are the producers' calls.
    """

    seen: Observation
    region: Region
    quick: Region
    events: frozenset[int]
    moving: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Context:
    """Values of all starts, what the readers get then, and other values of the producers' calls to move to."""

    pres: Mapping[int, Tensor]
    posts: Sequence[Tensor]
    moved: Mapping[int, Tensor]


def parts_of(observations: Sequence[Observation], calls: Sequence[Mapping[int, Sequence[int]]]) -> list[Part]:
    """The regions behind some calls, in every observation where there are any.

    Args:
        observations: all of one mode.
        calls: for every observation, from the producers' calls to those that read them.
    """
    parts = []
    for seen, readers_of in zip(observations, calls, strict=True):
        readers = sorted({reader for readers in readers_of.values() for reader in readers})
        if readers:
            region, events = slice_region(seen, readers)
            parts.append(Part(seen, region, region.folded(), events, tuple(readers_of)))
    return parts


@dataclass(frozen=True)
class Failure:
    """Why units cannot be cut, and whether a function of the units alone is in the way (a size in its arguments)."""

    why: str
    alone: bool


class Probe:
    """Runs regions on copies of values, parameters and buffers, in eval mode.

    Args:
        parts: the regions behind the producers, one for every observation.
        named: the model's parameters and buffers.
    """

    def __init__(self, parts: Sequence[Part], named: Mapping[str, Tensor]) -> None:
        self.parts = parts
        self.generator = torch.Generator().manual_seed(0)
        self.names = tuple(dict.fromkeys(name for part in parts for name in part.region.names))
        self._named = {name: named[name].detach() for name in self.names}
        self.readers = {
            post.layer: part.seen.calls[post.call] for part in parts for post in part.region.posts
        }  # a call of each
        self.columns = {name: call.given.shape[input_dim(call.module)] for name, call in self.readers.items()}
        self.producers = {
            part.seen.calls[number].layer: part.seen.calls[number].neurons for part in parts for number in part.moving
        }

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of all functions between, each once."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.region.functions))

    @property
    def fixed(self) -> tuple[str, ...]:
        """Other layers whose values are used, and "input" where the model's inputs are."""
        layers = [start.layer for part in self.parts for start in part.region.starts if start.call not in part.moving]
        inputs = ["input"] if any(part.region.takes_inputs for part in self.parts) else []
        return tuple(dict.fromkeys([*layers, *inputs]))

    def run(
        self,
        part: Part,
        pres: Mapping[int, Tensor],
        named: Mapping[str, Tensor] | None = None,
        rewritten: list[str] | None = None,
    ) -> list[Tensor]:
        """What the readers of one part get."""
        tensors = self._named if named is None else named
        copies = {name: tensors[name].clone() if name in part.region.written else tensors[name] for name in self.names}
        return part.quick.run(copies, pres, rewritten)

    def named_with(self, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters and buffers with some of them replaced."""
        return {**self._named, **changed}

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer that lies between."""
        return self._named[name]

    def refusal(self) -> Reason | None:
        """Why the regions do not show what the model computes."""
        for part in self.parts:
            first, second = self.run(part, {}), self.run(part, {})
            if not all(map(same, first, second)):
                return Reason("random in eval")
            for post, read in zip(part.region.posts, first, strict=True):
                if not same(read, post.given):
                    return Reason("lost from sight in", f"the way to {post.layer!r}")
        return None

    # ---- moving values ----

    def _moved(self, value: Tensor, scale: float) -> Tensor:
        noise = torch.randn(value.shape, generator=self.generator).to(value)
        return value + scale * (1 + value.abs().mean()) * noise

    @cached_property
    def contexts(self) -> list[list[Context]]:
        """For each part: the observed values moved a little and much, and moved ones in place of all starts."""
        every = []
        for part in self.parts:
            observed = {start.call: start.pre.nan_to_num(0.0, 1.0, -1.0) for start in part.region.starts}
            bases = [(observed, _MILD), (observed, _WILD)]
            scales = (_MILD, _WILD) if len(observed) > 1 else (_WILD,)
            bases += [({call: self._moved(pre, scale) for call, pre in observed.items()}, scale) for scale in scales]
            every.append(
                [
                    Context(pres, self.run(part, pres), {call: self._moved(pres[call], scale) for call in part.moving})
                    for pres, scale in bases
                ]
            )
        return every

    def answers(self, pools: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of each reader that change when some rows of the producers move.

        Args:
            pools: bool (rows,) for each producer.
        """

        def pres(part: Part, context: Context) -> Mapping[int, Tensor]:
            moved = {}
            for call in part.moving:
                seen = part.seen.calls[call]
                shape = [1] * seen.pre.dim()
                shape[seen.layout.dim] = -1
                pool = pools[seen.layer].reshape(shape).to(seen.pre.device)
                moved[call] = torch.where(pool, context.moved[call], context.pres[call])
            return moved

        return self._answers(lambda part, context: self.run(part, {**context.pres, **pres(part, context)}))

    def answers_of_tensor(self, name: str, dim: int, pool: Tensor) -> dict[str, Tensor]:
        """The columns of each reader that change when some entries of a parameter or buffer move."""
        tensor = self._named[name]
        shape = [1] * tensor.dim()
        shape[dim] = -1
        pool = pool.reshape(shape).to(tensor.device)
        size = tensor.abs().mean() + 0.1
        noise = torch.rand(tensor.shape, generator=self.generator).to(tensor) + 0.1  # upwards: a variance stays one
        named = self.named_with({name: torch.where(pool, tensor + size * noise, tensor)})
        return self._answers(lambda part, context: self.run(part, context.pres, named))

    def _answers(self, run: Callable[[Part, Context], list[Tensor]]) -> dict[str, Tensor]:
        answers = {name: torch.zeros(count, dtype=torch.bool) for name, count in self.columns.items()}
        for part, contexts in zip(self.parts, self.contexts, strict=True):
            for context in contexts:
                for post, now, before in zip(part.region.posts, run(part, context), context.posts, strict=True):
                    dim = input_dim(part.seen.calls[post.call].module)
                    if now.shape != before.shape:
                        answers[post.layer][:] = True
                    else:
                        answers[post.layer] |= _changed(now, before, dim)
        return answers

    # ---- cutting ----

    def cut(
        self,
        kept: Tensor,
        producers: Mapping[str, Layout],
        reads: Mapping[str, Layout],
        per_neuron: Sequence[tuple[str, Layout]],
        rewritten: list[str] | None = None,
    ) -> Failure | None:
        """Leave only some units in the producers and in what goes with them: why this is not what was there before.

        Args:
            kept: numbers of the units that stay, in increasing order.
            producers: where the units are in what each producer puts out.
            reads: where they are in what each reader gets.
            per_neuron: where they are in parameters and buffers.
            rewritten: see `Region.run`.

        Returns:
            None where every reader gets its values without those of the other units.
        """
        smaller = {name: self._named[name] for name in self.names}
        for name, layout in per_neuron:
            smaller[name] = layout.select(smaller[name], kept)
        for part, contexts in zip(self.parts, self.contexts, strict=True):
            for context in (contexts[0], contexts[-1]):
                pres = dict(context.pres)
                for call in part.moving:
                    seen = part.seen.calls[call]
                    if seen.layer in producers:
                        pres[call] = producers[seen.layer].select(pres[call], kept)
                try:
                    posts = self.run(part, pres, smaller, rewritten)
                except InstructionFailed as error:
                    return Failure(str(error), alone=error.operands < 2)
                except Exception as error:  # noqa: BLE001  # any failure means that this is not how it is cut
                    return Failure(str(error).partition("\n")[0], alone=False)
                for post, now, before in zip(part.region.posts, posts, context.posts, strict=True):
                    wanted = reads[post.layer].select(before, kept) if post.layer in reads else before
                    if not close(now, wanted, other_size=True):
                        return Failure("other values", alone=False)
        return None

    # ---- what a region of one function does to every unit ----

    def spread(self, producers: Mapping[str, Layout], scale: float) -> list[list[Tensor]]:
        """What the readers get where all units of each producer are moved to the same random values; for each part."""
        every = []
        for part in self.parts:
            pres = {}
            for call in part.moving:
                seen = part.seen.calls[call]
                layout = producers.get(seen.layer)
                if layout is None or layout.index is None:
                    continue
                value = seen.pre.clone()
                alike = value.index_select(layout.dim, layout.index[0].to(value.device))
                noise = torch.rand(alike.shape, generator=self.generator).to(value)
                alike = scale * (2 * noise - 1)
                for entry in range(layout.size):
                    places = layout.index[:, entry].to(value.device)
                    shape = list(value.shape)
                    shape[layout.dim] = len(places)
                    value.index_copy_(layout.dim, places, alike.narrow(layout.dim, entry, 1).expand(shape))
                pres[call] = value
            every.append(self.run(part, pres))
        return every

    def uniform(self, producers: Mapping[str, Layout], reads: Mapping[str, Layout]) -> bool:
        """Whether the same function acts on every unit."""
        for _ in range(4):
            for part, posts in zip(self.parts, self.spread(producers, 4.0), strict=True):
                for post, value in zip(part.region.posts, posts, strict=True):
                    if post.layer in reads:
                        rows = reads[post.layer].rows(value)
                        if not close(rows, rows[:, :1].expand(rows.shape)):
                            return False
        return True

    def scaled(self, factor: float) -> bool:
        """Whether values `factor` times as large make the readers' inputs `factor` times as large."""
        for part in self.parts:
            observed = {call: part.seen.calls[call].pre for call in part.moving}
            wide = {
                call: 4 * (2 * torch.rand(pre.shape, generator=self.generator).to(pre) - 1)
                for call, pre in observed.items()
            }
            plain = self.run(part, wide)
            other = self.run(part, {call: factor * value for call, value in wide.items()})
            if not all(close(now, factor * before) for now, before in zip(other, plain, strict=True)):
                return False
        return True

    # ---- samples and positions ----

    def rows_mix(self) -> bool:
        """Whether changing some samples (positions too, between Linears) changes others, or their number changes."""
        for part, contexts in zip(self.parts, self.contexts, strict=True):
            maps = any(
                output_layout(part.seen.calls[call].module).positions
                for call in (*part.moving, *(post.call for post in part.region.posts))
            )
            heights = {len(_samples(part.seen.calls[call].pre, maps=maps)) for call in part.moving}
            if len(heights) > 1 or any(
                len(_samples(post.given, maps=maps)) not in heights for post in part.region.posts
            ):
                return True
            half = torch.rand(heights.pop(), generator=self.generator) < 0.5
            for context in contexts[:2]:
                if any(self._rows_leak(part, context, changed, maps=maps) for changed in (half, ~half)):
                    return True
        return False

    def _rows_leak(self, part: Part, context: Context, changed: Tensor, *, maps: bool) -> bool:
        pres = dict(context.pres)
        for call in part.moving:
            rows, moved = _samples(context.pres[call], maps=maps), _samples(context.moved[call], maps=maps)
            apart = changed.reshape(-1, *(1,) * (rows.dim() - 1)).to(rows.device)
            pres[call] = torch.where(apart, moved, rows).reshape(context.pres[call].shape)
        stay = torch.nonzero(~changed).flatten()
        for now, before in zip(self.run(part, pres), context.posts, strict=True):
            rows, old = _samples(now, maps=maps), _samples(before, maps=maps)
            if rows.shape != old.shape or not same(rows[stay.to(rows.device)], old[stay.to(old.device)]):
                return True
        return False

    def rows_differ(self) -> str:
        """Why rows taken out of their places do not stand for themselves; for regions that keep rows apart."""
        for part, contexts in zip(self.parts, self.contexts, strict=True):
            few, chosen = {}, torch.empty(0)
            for call in part.moving:
                pre = contexts[0].pres[call]
                maps = output_layout(part.seen.calls[call].module).positions
                rows = _samples(pre, maps=maps)
                chosen = torch.linspace(0, len(rows) - 1, min(len(rows), _FEW)).long().flip(0).to(pre.device)
                few[call] = rows[chosen]
                if not maps:
                    few[call] = few[call].reshape(-1, *(1,) * (pre.dim() - 2), pre.shape[-1])
            try:
                posts = self.run(part, few)
            except Exception as error:  # noqa: BLE001  # any failure means that the rows need each other
                return str(error)
            for post, now in zip(part.region.posts, posts, strict=True):
                maps = output_layout(part.seen.calls[post.call].module).positions
                if not close(_samples(now, maps=maps), _samples(post.given, maps=maps)[chosen]):
                    return ", ".join(self.functions)
        return ""


def _samples(value: Tensor, *, maps: bool) -> Tensor:
    """What must not mix, apart along the first dimension: samples and, unless units are maps, positions."""
    return value if maps else value.reshape(-1, value.shape[-1])


def _changed(now: Tensor, before: Tensor, dim: int) -> Tensor:
    """Which entries along a dimension changed anywhere."""
    different = (now != before) & ~(now.isnan() & before.isnan())
    apart = different.movedim(dim, -1)
    return apart.reshape(-1, apart.shape[-1]).any(dim=0).cpu()
