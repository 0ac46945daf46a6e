"""Sizes that a user asks for: widths by name, or a share of the parameters dealt out over the layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, kind_of, output_weight
from lightning_embed.statistics import span_order
from lightning_embed.surgery.change.edit import parameter_count, submodule
from lightning_embed.surgery.nominate.features import Features, output_gradients, summed
from lightning_embed.tape import Tape
from lightning_embed.tape.tape import tensors_by_name

STEP = 0.03  # share of a layer's neurons that is taken away at a time


def check_sizes(widths: Mapping[str, int] | None, budget: float | None) -> None:
    """Refuse sizes that mean nothing.

    Raises:
        InputError: both are given, a width is no whole number of at least 0, or the budget not in (0, 1].
    """
    if widths is not None and budget is not None:
        raise InputError("widths= and budget= both say how small the model shall be; give one of them.")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1):
        raise InputError(f"budget must be a share of the parameters, above 0 and at most 1, got {budget!r}.")
    if widths is None:
        return
    if not isinstance(widths, Mapping) or not widths:
        raise InputError(f"widths must name layers and their number of neurons, {{'net.0': 64}}, got {widths!r}.")
    for name, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, int) or width < 0:
            raise InputError(f"widths[{name!r}] must be a whole number of at least 0 (0 removes it), got {width!r}.")


class Sizes(ABC):
    """How many neurons are to be left in which layers (0 removes a layer), once the model is known."""

    @abstractmethod
    def check(self, graph: Graph) -> None:
        """Refuse what the model cannot have, before anything is changed.

        Raises:
            InputError: with the reason.
        """

    @abstractmethod
    def choose(
        self, model: nn.Module, graph: Graph, features: Mapping[str, Features], tapes: Sequence[Tape]
    ) -> Mapping[str, int]:
        """The widths, by name of the layer.

        Raises:
            InputError: they cannot be reached.
        """


@dataclass(frozen=True)
class Widths(Sizes):
    """Sizes that are given by name: that of the hidden layer, or of any layer that makes its neurons."""

    widths: Mapping[str, int]

    def check(self, graph: Graph) -> None:
        """Every name is a hidden layer's, and its width can be reached."""
        layers = {layer.name: layer for layer in graph.layers}
        for name, width in self.widths.items():
            if len(by_producer(graph, name)) > 1:
                names = ", ".join(layer.name for layer in by_producer(graph, name))
                raise InputError(f"widths names {name!r}, whose rows belong to several hidden layers; name {names}.")
            layer = next(iter(by_producer(graph, name)), None)
            if layer is None:
                why = f": {graph.refused[name]}" if name in graph.refused else ""
                raise InputError(
                    f"widths names {name!r}, which is no hidden layer of the model{why}. Its hidden layers: "
                    f"{', '.join(layers) or 'none'}."
                )
            reason = layer.merge_layer if width == 0 else layer.merge_neurons
            if reason is not None and width < layer.width:
                raise InputError(f"widths[{name!r}] = {width} cannot be reached: {reason}.")
            if width > layer.width:
                raise InputError(f"widths[{name!r}] = {width} is more than the {layer.width} neurons that it has.")
        named = [by_producer(graph, name)[0].name for name in self.widths]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"widths names the layer {twice!r} twice, by several of those that make its neurons.")

    def choose(
        self,
        model: nn.Module,  # noqa: ARG002  # as `ParameterShare`
        graph: Graph,
        features: Mapping[str, Features],  # noqa: ARG002
        tapes: Sequence[Tape],  # noqa: ARG002
    ) -> Mapping[str, int]:
        """The widths, by name of the hidden layer."""
        return {layer.name: width for name, width in self.widths.items() for layer in by_producer(graph, name)}


def by_producer(graph: Graph, name: str) -> list[HiddenLayer]:
    """The hidden layer of a name, or those whose neurons a layer of that name makes."""
    named = [layer for layer in graph.layers if layer.name == name]
    return named or [layer for layer in graph.layers if name in layer.producers]


@dataclass(frozen=True)
class ParameterShare(Sizes):
    """Sizes that leave a number of parameters: an equal share in all layers, or dealt out (see `deal_out`)."""

    parameters: int
    evenly: bool

    def check(self, graph: Graph) -> None:
        """Nothing is asked of any one layer."""

    def choose(
        self, model: nn.Module, graph: Graph, features: Mapping[str, Features], tapes: Sequence[Tape]
    ) -> Mapping[str, int]:
        """The widths of all layers whose neurons may be merged."""
        layers = [layer for layer in graph.layers if layer.merge_neurons is None and layer.name in features]
        count = ParameterCount(model, layers)
        full = {layer.name: layer.width for layer in layers}
        if count(full) <= self.parameters:
            return full
        least = count({layer.name: 1 for layer in layers})
        if least > self.parameters:
            raise InputError(
                f"Merging neurons cannot leave fewer than {least:,} of the model's parameters, {self.parameters:,} are "
                "asked for; print(lightning_embed.measure(model, data)) says what holds the others back."
            )
        if self.evenly:
            return even(layers, count, self.parameters)
        return deal_out(model, layers, features, tapes, count, self.parameters)


def even(layers: Sequence[HiddenLayer], count: ParameterCount, wanted: int) -> dict[str, int]:
    """The largest equal share of every layer's neurons with which the model has at most `wanted` parameters."""
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        fits = count({one.name: max(1, math.floor(share * one.width)) for one in layers}) <= wanted
        low, high = (share, high) if fits else (low, share)
    return {one.name: max(1, math.floor(low * one.width)) for one in layers}


def deal_out(
    model: nn.Module,
    layers: Sequence[HiddenLayer],
    features: Mapping[str, Features],
    tapes: Sequence[Tape],
    count: ParameterCount,
    wanted: int,
) -> dict[str, int]:
    r"""Widths with which the model has at most `wanted` parameters, dealt out so that the outputs change least.

    The change that leaving k neurons in layer l makes to the outputs is foretold to first order as
    $e_l(k) = \mathrm{tr}\,M_l R_l(k)$, where R is the covariance of what the k best features leave (see
    `span_order`) and M the second moment of the outputs' derivative by the features; the changes of several layers
    are taken to add up. From the layer where it costs least per parameter a few neurons at a time are taken away.
    """
    gradients = output_gradients(model, layers, tapes, seed=0)
    samples = max(1, sum(tape.samples for tape in tapes))
    costs = {layer.name: _costs(features[layer.name], gradients[layer.name], samples) for layer in layers}
    widths = {layer.name: layer.width for layer in layers}
    while count(widths) > wanted:
        cuts = [_Cut(name, width - max(1, math.floor(STEP * width))) for name, width in widths.items() if width > 1]
        cheapest = min(cuts, key=lambda cut: _price(cut, widths, costs[cut.layer], count))
        widths[cheapest.layer] = cheapest.width
    return widths


@dataclass(frozen=True)
class _Cut:
    layer: str
    width: int


def _costs(features: Features, gradients: Mapping[str, Tensor], samples: int) -> Tensor:
    """Foretold squared change of the outputs at every width from 0 to that of the layer, per sample."""
    rows = [summed(gradients, readers) / math.sqrt(samples) for readers in features.readers]
    order = span_order(features.posts, rows, 0.0, shares=False)
    total = torch.zeros((), dtype=torch.float64)
    for post, row in zip(features.posts, rows, strict=True):
        centred = (post.double() - post.double().mean(dim=0)) @ row.T
        total = total.to(post.device) + centred.square().sum() / len(post)
    costs = torch.zeros(features.post.shape[1] + 1, dtype=torch.float64)
    costs[0] = total
    costs[1 : len(order.kept) + 1] = order.residual.cpu().square() * total.cpu()
    return costs


def _price(cut: _Cut, widths: Mapping[str, int], costs: Tensor, count: ParameterCount) -> tuple[float, int]:
    """Change per parameter saved; of free ones the largest saving first."""
    saved = count(widths) - count({**widths, cut.layer: cut.width})
    return float(costs[cut.width] - costs[widths[cut.layer]]) / max(1, saved), -saved


class ParameterCount:
    """The number of a model's parameters as a function of the widths of its hidden layers.

    A tensor loses along each of its dimensions the entries of every neuron that is cut there; several hidden layers
    may share a dimension, as in a reader of a concatenation.
    """

    def __init__(self, model: nn.Module, layers: Sequence[HiddenLayer]) -> None:
        self._full = {layer.name: layer.width for layer in layers}
        named = {name: tensor for name, tensor in tensors_by_name(model).items() if isinstance(tensor, nn.Parameter)}
        cut: dict[str, dict[int, list[tuple[str, int]]]] = {}  # tensor, dimension -> layers and entries of a neuron
        feeders: dict[str, list[str]] = {}

        def note(tensor: str, dim: int, layer: HiddenLayer, entries: int) -> None:
            if tensor in named:
                cut.setdefault(tensor, {}).setdefault(dim, []).append((layer.name, entries))

        for layer in layers:
            for name, layout in layer.producers.items():
                module = submodule(model, name)
                note(f"{name}.weight", _row_dim(module), layer, layout.size)
                note(f"{name}.bias", 0, layer, layout.size)
            for name, layout in layer.reads.items():
                note(f"{name}.weight", 1 - _row_dim(submodule(model, name)), layer, layout.size)
                feeders.setdefault(name, []).append(layer.name)
            for name, layout in layer.per_neuron:
                note(name, layout.dim, layer, layout.size)
        self._cut = [(tuple(named[name].shape), dims) for name, dims in cut.items()]
        self._fixed = parameter_count(model) - sum(math.prod(shape) for shape, _ in self._cut)
        # biases that merging gives to readers without one
        self._biases = [
            (
                len(output_weight(submodule(model, name))),
                cut.get(f"{name}.weight", {}).get(_row_dim(submodule(model, name)), []),
                by,
            )
            for name, by in feeders.items()
            if getattr(submodule(model, name), "bias", None) is None
        ]

    def _left(self, size: int, cuts: Sequence[tuple[str, int]], widths: Mapping[str, int]) -> int:
        return size - sum(entries * (self._full[name] - widths[name]) for name, entries in cuts)

    def __call__(self, widths: Mapping[str, int]) -> int:
        """The number with these widths."""
        total = self._fixed
        for shape, dims in self._cut:
            total += math.prod(self._left(size, dims.get(dim, ()), widths) for dim, size in enumerate(shape))
        for rows, cuts, feeders in self._biases:
            if any(widths[name] < self._full[name] for name in feeders):
                total += self._left(rows, cuts, widths)
        return total


def _row_dim(layer: nn.Module) -> int:
    """The dimension of a layer's weight, as it is stored, that counts its rows."""
    kind = kind_of(layer)
    return 1 if kind is not None and kind.transposed else 0
