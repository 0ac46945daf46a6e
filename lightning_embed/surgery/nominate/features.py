"""What hidden layers compute on the calibration data, and how much the outputs depend on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import HiddenLayer, Layout
from lightning_embed.statistics import Moments, update_moments
from lightning_embed.surgery.collect import Collector
from lightning_embed.tape import Tape

MAX_ROWS = 16_384  # per layer; the tokens of long sequences are thinned evenly beyond this
MIN_ROWS = 1024  # per layer, however many layers there are
VALUES = 2**29  # of all layers together: two gigabytes in single precision; with more layers each has fewer rows


@dataclass(frozen=True, eq=False)
class Features:
    """A hidden layer on the calibration data.

    Attributes:
        outputs: what each producer puts out, shape (rows, width).
        posts: the different values that are read, each of shape (rows, width); after pooling they have other rows than
            the outputs.
        readers: for each of them, who reads it.
        input_power: mean square of the first producer's inputs, shape (fan_in,); empty where it was not asked for.
        inputs: what the first producer reads, shape (rows, fan_in), row by row that of which the outputs are made; None
            where it was not asked for, or for a convolution, which reads several positions for each.
    """

    outputs: Mapping[str, Tensor]
    posts: tuple[Tensor, ...]
    readers: tuple[tuple[str, ...], ...]
    input_power: Tensor
    inputs: Tensor | None = None

    @property
    def pre(self) -> Tensor:
        """What the first producer puts out, shape (rows, width)."""
        return next(iter(self.outputs.values()))

    @property
    def post(self) -> Tensor:
        """What the first consumer reads, shape (rows, width)."""
        return self.posts[0]

    @property
    def rows(self) -> int:
        """Number of samples (times positions) that the consumers read."""
        return min(len(post) for post in self.posts)

    @property
    def paired(self) -> bool:
        """Whether every row of post belongs to one of pre, with nothing else in between; pooling leaves fewer rows."""
        return len(self.outputs) == 1 and self.pre.shape == self.post.shape

    @cached_property
    def moments(self) -> Moments:
        """Of pre and post; where they are no pairs, of post alone."""
        return Moments.of(self.pre if self.paired else self.post, self.post)

    @cached_property
    def constant(self) -> Tensor:
        """Which neurons are null: constant on the data, in all that is read."""
        constant = self.moments.constant
        for post in self.posts[1:]:
            constant = constant & Moments.of(post, post).constant
        return constant

    @property
    def constant_pre(self) -> Tensor:
        """Which neurons are constant on the data whatever lies behind the producers does with them."""
        if self.paired:
            return self.moments.constant_pre
        return torch.stack([Moments.of(made, made).constant for made in self.outputs.values()]).all(dim=0)

    @property
    def finite(self) -> bool:
        """Whether every value is a number."""
        return all(bool(torch.isfinite(values).all()) for values in (*self.outputs.values(), *self.posts))


def rows_per_call(tapes: Sequence[Tape], layers: Sequence[HiddenLayer] = ()) -> int:
    """The number of rows of one call that count, where values of these layers are held at the same time."""
    held = sum(layer.width * (len(layer.producers) + len(layer.reads)) for layer in layers)
    rows = min(MAX_ROWS, max(MIN_ROWS, VALUES // max(1, held)))
    return max(1, rows // max(1, len(tapes)))


def thinned(value: Tensor, cap: int, layout: Layout = Layout(-1)) -> Tensor:  # noqa: B008  # it is frozen
    """A copy of a value as (rows, width), thinned evenly to about `cap` rows.

    A copy, because an activation in place may come next.
    """
    rows = layout.rows(value)
    return rows[:: stride(len(rows), cap)].clone()


def stride(rows: int, cap: int) -> int:
    """The step by which so many rows are thinned to about `cap`, such that every column of an image has its turn."""
    step = max(1, -(-rows // cap))
    while step > 1 and math.gcd(step, rows) > 1:
        step += 1
    return step


class MomentCollector:
    """Sums up the pre and post of hidden layers, call by call, while a model runs between `start` and `stop`.

    Nothing but sums is kept and nothing is raised, so it may look on during a training step. Calls made inside a
    backward pass are ignored.

    Args:
        model: the model that will run.
        layers: of its graph.
        cap: rows that count in one call; more are thinned evenly.

    Attributes:
        moments: of pre and post, by layer; where they are no pairs, of post alone. Layers never called are absent.
        unpaired: those where they are none: pooling lies between, or several layers make one value.
    """

    def __init__(self, model: nn.Module, layers: Sequence[HiddenLayer], cap: int = MAX_ROWS) -> None:
        self.moments: dict[str, Moments] = {}
        self.unpaired: set[str] = set()
        self._cap = cap
        self._collector = Collector(model, quiet=True)
        self._waiting: dict[str, list[Tensor]] = {}
        for layer in layers:
            self._plan(layer)

    def _plan(self, layer: HiddenLayer) -> None:
        reader, layout = next(iter(layer.reads.items()))
        if len(layer.producers) == 1:
            producer, made_in = next(iter(layer.producers.items()))
            self._waiting[layer.name] = self._collector.puts_out(
                producer, lambda output: thinned(output, self._cap, made_in)
            )
        else:
            self.unpaired.add(layer.name)
        self._collector.reads(reader, lambda read: self._add(layer.name, thinned(read, self._cap, layout)))

    @property
    def error(self) -> Exception | None:
        """What went wrong; the moments are of no use then."""
        return self._collector.error

    def start(self) -> Self:
        """Put hooks on the layers and on those that read them."""
        self._collector.start()
        return self

    def stop(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._collector.stop()
        if any(self._waiting.values()):
            self._collector.error = self.error or InputError("a layer's output was not read")
        self._waiting = {}

    def replay(self, tapes: Sequence[Tape]) -> Self:
        """Sum up what tapes show; the first error is raised."""
        try:
            self._collector.run(tapes)
        finally:
            self.stop()
        if self.error is not None:
            raise self.error
        return self

    def _add(self, name: str, post: Tensor) -> None:
        pre = post if name not in self._waiting else self._waiting[name].pop(0)
        if pre.shape != post.shape:
            self.unpaired.add(name)
            pre = post
        self.moments[name] = update_moments(self.moments.get(name), pre, post)


def collect_moments(model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape]) -> MomentCollector:
    """Replay tapes and sum up what hidden layers compute; the first error is raised."""
    return MomentCollector(model, layers, rows_per_call(tapes)).replay(tapes)


def collect_features(
    model: nn.Module,
    layers: Sequence[HiddenLayer],
    tapes: Sequence[Tape],
    *,
    power: bool = True,
    inputs: bool = False,
) -> dict[str, Features]:
    """Replay tapes and keep what the given layers put out and their consumers read; without layers never called."""
    cap = rows_per_call(tapes, layers)
    collector = Collector(model)
    gathering = [_Gathering(collector, layer, cap, power=power, inputs=inputs) for layer in layers]
    collector.run(tapes)
    return {one.layer.name: one.features() for one in gathering if one.complete}


class _Gathering:
    """What a collector gathers for the features of one layer."""

    def __init__(self, collector: Collector, layer: HiddenLayer, cap: int, *, power: bool, inputs: bool) -> None:
        self.layer = layer
        first, layout = next(iter(layer.producers.items()))
        given = Layout(layout.dim)
        self.power = collector.reads(first, lambda read: _square_sum(thinned(read, cap, given))) if power else []
        rowwise = inputs and layout.dim == -1 and len(layer.producers) == 1
        self.inputs = collector.reads(first, lambda read: thinned(read, cap, given)) if rowwise else []
        self.made = {
            name: collector.puts_out(name, lambda output, where=where: thinned(output, cap, where))  # type: ignore[misc]  # bound now
            for name, where in layer.producers.items()
        }
        self.read = {
            name: collector.reads(name, lambda read, where=where: thinned(read, cap, where))  # type: ignore[misc]
            for name, where in layer.reads.items()
        }

    @property
    def complete(self) -> bool:
        """Whether every producer and reader was called."""
        return all((*self.made.values(), *self.read.values()))

    def features(self) -> Features:
        """The features; readers of equal values share one matrix."""
        posts: list[Tensor] = []
        readers: list[list[str]] = []
        for name, parts in self.read.items():
            value = _joined(parts)
            known = next((place for place, post in enumerate(posts) if torch.equal(post, value)), None)
            if known is None:
                posts.append(value)
                readers.append([name])
            else:
                readers[known].append(name)
        squares, rows = [square for square, _ in self.power], [count for _, count in self.power]
        return Features(
            outputs={name: _joined(parts) for name, parts in self.made.items()},
            posts=tuple(posts),
            readers=tuple(map(tuple, readers)),
            input_power=torch.stack(squares).sum(dim=0) / torch.stack(rows).sum() if squares else torch.empty(0),
            inputs=_joined(self.inputs) if self.inputs else None,
        )


def _square_sum(rows: Tensor) -> tuple[Tensor, Tensor]:
    return rows.double().square().sum(dim=0), torch.tensor(len(rows))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def output_gradients(
    model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape], *, seed: int
) -> dict[str, dict[str, Tensor]]:
    """Derivative of a random ±1 combination of the outputs by every hidden value, by layer and by who reads it.

    Each is float64, of shape (rows, width). The square of the sum over those that read one value has the sum over
    outputs of the squared derivatives as its mean (see `summed`). Where positions are thinned, those that stay stand
    for all. All zero where the outputs are detached.
    """
    cap = rows_per_call(tapes, layers)
    collector = Collector(model)

    def look(gradient: Tensor, layout: Layout) -> Tensor:
        rows = layout.rows(gradient)
        taken = thinned(rows.double(), cap)
        return taken * math.sqrt(len(rows) / max(1, len(taken)))

    gathered = {
        layer.name: {
            reader: collector.read_derivatives(reader, lambda gradient, layout=layout: look(gradient, layout))  # type: ignore[misc]
            for reader, layout in layer.reads.items()
        }
        for layer in layers
    }
    collector.run(tapes, seed=seed)
    return {name: {reader: torch.cat(parts) for reader, parts in by.items()} for name, by in gathered.items()}


def summed(gradients: Mapping[str, Tensor], readers: Sequence[str]) -> Tensor:
    """The derivative by a value that several layers read: the sum of what each of them passes back."""
    return torch.stack([gradients[reader] for reader in readers]).sum(dim=0)
