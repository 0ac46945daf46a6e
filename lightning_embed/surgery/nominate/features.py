"""What hidden layers compute on the calibration data, and how much the outputs depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import HiddenLayer, Layer, Layout, input_layout, output_layout
from lightning_embed.statistics import Moments, update_moments
from lightning_embed.surgery.change.edit import submodule
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.recorder import in_backward

MAX_ROWS = 16_384  # per layer; the tokens of long sequences are thinned evenly beyond this


@dataclass(frozen=True, eq=False)
class Features:
    """A hidden layer on the calibration data.

    Attributes:
        pre: the layer's output, shape (rows, width).
        post: the consumers' input, shape (rows, width); after pooling it has other rows.
        input_power: mean square of the layer's inputs, shape (fan_in,); empty where it was not asked for.
        agree: whether all consumers read the same values.
    """

    pre: Tensor
    post: Tensor
    input_power: Tensor
    agree: bool

    @property
    def rows(self) -> int:
        """Number of samples (times positions) that the consumers read."""
        return int(self.post.shape[0])

    @property
    def paired(self) -> bool:
        """Whether every row of post belongs to one of pre; pooling leaves fewer."""
        return self.pre.shape == self.post.shape

    @cached_property
    def moments(self) -> Moments:
        """Of pre and post; where pooling lies between, of post alone."""
        return Moments.of(self.pre if self.paired else self.post, self.post)

    @property
    def constant(self) -> Tensor:
        """Which neurons are null: constant on the data."""
        return self.moments.constant

    @property
    def constant_pre(self) -> Tensor:
        """Which neurons are constant on the data whatever the activation does with them."""
        return self.moments.constant_pre if self.paired else Moments.of(self.pre, self.pre).constant

    @property
    def finite(self) -> bool:
        """Whether every value is a number."""
        return bool(torch.isfinite(self.pre).all() and torch.isfinite(self.post).all())


def _cap(tapes: Sequence[Tape]) -> int:
    return max(1, MAX_ROWS // max(1, len(tapes)))


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
        moments: of pre and post, by layer; where pooling lies between, of post alone. Layers never called are absent.
        unpaired: those where pooling lies between.
        error: what went wrong; the moments are of no use then.
    """

    def __init__(self, model: nn.Module, layers: Sequence[HiddenLayer], cap: int = MAX_ROWS) -> None:
        self.moments: dict[str, Moments] = {}
        self.unpaired: set[str] = set()
        self.error: Exception | None = None
        self._model, self._layers, self._cap = model, layers, cap
        self._waiting: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        self._hooks = ExitStack()

    def start(self) -> Self:
        """Put hooks on the layers and on those that read them."""
        for layer in self._layers:
            producer, consumer = submodule(self._model, layer.name), submodule(self._model, layer.consumers[0])
            kept, added = self._looking(partial(self._keep, layer)), self._looking(partial(self._add, layer))
            self._hooks.callback(producer.register_forward_hook(kept, with_kwargs=True).remove)
            self._hooks.callback(consumer.register_forward_pre_hook(added, with_kwargs=True).remove)
        return self

    def stop(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        self._hooks.close()
        if any(self._waiting.values()):
            self.error = self.error or InputError("a layer's output was not read")
        self._waiting = {}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _looking(self, look: Callable[..., None]) -> Callable[..., None]:
        def hook(*seen: Any) -> None:
            if in_backward() or self.error is not None:
                return
            try:
                with torch._C.DisableTorchFunction(), torch.no_grad():  # recorders shall not see what is done here
                    look(*seen)
            except Exception as error:  # noqa: BLE001  # the training goes on
                self.error = error

        return hook

    def _keep(self, layer: HiddenLayer, module: Layer, _args: Any, _kwargs: Any, output: Tensor) -> None:
        self._waiting[layer.name].append(thinned(output.detach(), self._cap, output_layout(module)))

    def _add(self, layer: HiddenLayer, module: Layer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (given,) = (*args, *kwargs.values())
        post = input_layout(module, layer.width).rows(given.detach())
        post = post[:: stride(len(post), self._cap)]
        pre = self._waiting[layer.name].pop(0)
        if pre.shape != post.shape:
            self.unpaired.add(layer.name)
            pre = post
        self.moments[layer.name] = update_moments(self.moments.get(layer.name), pre, post)


def collect_moments(model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape]) -> MomentCollector:
    """Replay tapes and sum up what hidden layers compute; the first error is raised."""
    with MomentCollector(model, layers, _cap(tapes)) as collector:
        for tape in tapes:
            replay(model, tape)
    if collector.error is not None:
        raise collector.error
    return collector


@contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_features(
    model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape], *, power: bool = True
) -> dict[str, Features]:
    """Replay tapes and keep what the given layers put out and their consumers read; without layers never called."""
    cap = _cap(tapes)
    found: dict[str, dict[str, list[Tensor]]] = {
        layer.name: {"pre": [], "power": [], "rows": [], **{name: [] for name in layer.consumers}} for layer in layers
    }

    def producer(store: dict[str, list[Tensor]]) -> Callable[..., None]:
        def hook(module: Layer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            store["pre"].append(thinned(output.detach(), cap, output_layout(module)))
            if not power:
                return
            (given,) = (*args, *kwargs.values())
            rows = thinned(given.detach(), cap, output_layout(module))
            store["power"].append(rows.double().square().sum(dim=0))
            store["rows"].append(torch.tensor(len(rows)))

        return hook

    def consumer(layer: HiddenLayer, store: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
        def hook(module: Layer, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            (given,) = (*args, *kwargs.values())
            store[name].append(thinned(given.detach(), cap, input_layout(module, layer.width)))

        return hook

    handles = []
    for layer in layers:
        store = found[layer.name]
        handles.append(submodule(model, layer.name).register_forward_hook(producer(store), with_kwargs=True))
        handles.extend(
            submodule(model, name).register_forward_pre_hook(consumer(layer, store, name), with_kwargs=True)
            for name in layer.consumers
        )
    with _hooked(handles):
        for tape in tapes:
            replay(model, tape)
    features = {}
    for layer in layers:
        store = found[layer.name]
        if not store["pre"] or not all(store[name] for name in layer.consumers):
            continue
        pre = _joined(store["pre"])
        posts = [_joined(store[name]) for name in layer.consumers]
        features[layer.name] = Features(
            pre=pre,
            post=posts[0],
            input_power=torch.stack(store["power"]).sum(dim=0) / torch.stack(store["rows"]).sum()
            if power
            else torch.empty(0),
            agree=all(torch.equal(one, posts[0]) for one in posts[1:]),
        )
    return features


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def output_gradients(
    model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape], *, seed: int
) -> dict[str, Tensor]:
    """Derivative of a random ±1 combination of the outputs by every hidden value, each of shape (rows, width).

    Its square has the sum over outputs of the squared derivatives as its mean. Where positions are thinned, those that
    stay stand for all. All zero where the outputs are detached.
    """
    cap = _cap(tapes)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    leaves: dict[tuple[str, str], list[Tensor]] = {}

    def probe(key: tuple[str, str]) -> Callable[..., tuple[tuple[Tensor, ...], dict[str, Tensor]]]:
        def hook(
            _module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
        ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            (given,) = (*args, *kwargs.values())
            leaf = torch.zeros_like(given, requires_grad=True)
            if not in_backward():  # a checkpointed block is computed again there
                leaves[key].append(leaf)
            return (given + leaf,), {}

        return hook

    keys = [(layer.name, consumer) for layer in layers for consumer in layer.consumers]
    with _hooked(submodule(model, key[1]).register_forward_pre_hook(probe(key), with_kwargs=True) for key in keys):
        for tape in tapes:
            leaves.update({key: [] for key in keys})
            total = signed_total(replay(model, tape, grad=True), generator)
            every = [leaf for key in keys for leaf in leaves[key]]
            if total.requires_grad and every:
                gradients = iter(torch.autograd.grad(total, every, allow_unused=True, materialize_grads=True))
            else:
                gradients = iter([torch.zeros_like(leaf) for leaf in every])
            by_key = {key: [next(gradients) for _ in leaves[key]] for key in keys}
            for layer in layers:
                # the consumers of one call read one value: their derivatives add up
                calls = zip(*(by_key[layer.name, consumer] for consumer in layer.consumers), strict=True)
                layout = input_layout(submodule(model, layer.consumers[0]), layer.width)  # type: ignore[arg-type]  # a layer
                for call in calls:
                    rows = layout.rows(sum_of(call))
                    taken = thinned(rows, cap)
                    found[layer.name].append(taken * math.sqrt(len(rows) / max(1, len(taken))))
    return {name: torch.cat(parts) for name, parts in found.items()}


def signed_total(outputs: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """A random ±1 combination of all output values through which gradients flow."""
    total = torch.zeros(())
    for output in outputs:
        if output.requires_grad:
            sign = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            total = total.to(output.device) + (output * sign).double().sum()
    return total


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape, in float64."""
    return torch.stack([one.double() for one in tensors]).sum(dim=0)
