"""Sizes that a user asks for: widths by name, or a share of the parameters dealt out over the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer
from lightning_embed.statistics import span_order
from lightning_embed.surgery.change.edit import parameter_count, submodule
from lightning_embed.surgery.nominate.features import Features, output_gradients
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


def fixed(widths: Mapping[str, int]) -> Callable[..., Mapping[str, int]]:
    """Sizes that are given by name, checked against the model when it is known."""

    def sizes(
        model: nn.Module,  # noqa: ARG001  # as `shared`
        graph: Graph,
        features: Mapping[str, Features],  # noqa: ARG001
        tapes: Sequence[Tape],  # noqa: ARG001
    ) -> Mapping[str, int]:
        layers = {layer.name: layer for layer in graph.layers}
        for name, width in widths.items():
            if name not in layers:
                why = f": {graph.refused[name]}" if name in graph.refused else ""
                raise InputError(
                    f"widths names {name!r}, which is no hidden layer of the model{why}. Its hidden layers: "
                    f"{', '.join(layers) or 'none'}."
                )
            layer = layers[name]
            reason = layer.merge_layer if width == 0 else layer.merge_neurons
            if reason is not None and width < layer.width:
                raise InputError(f"widths[{name!r}] = {width} cannot be reached: {reason}.")
            if width > layer.width:
                raise InputError(f"widths[{name!r}] = {width} is more than the {layer.width} neurons that it has.")
        return widths

    return sizes


def shared(parameters: int, *, evenly: bool) -> Callable[..., Mapping[str, int]]:
    """Sizes that leave a number of parameters, once the model is known: an equal share in all layers, or dealt out."""

    def sizes(
        model: nn.Module, graph: Graph, features: Mapping[str, Features], tapes: Sequence[Tape]
    ) -> Mapping[str, int]:
        layers = [one for one in graph.layers if one.merge_neurons is None and one.name in features]
        count = _Parameters(model, layers)
        full = {one.name: one.width for one in layers}
        if count(full) <= parameters:
            return full
        least = count({one.name: 1 for one in layers})
        if least > parameters:
            raise InputError(
                f"Merging neurons cannot leave fewer than {least:,} of the model's parameters, {parameters:,} are "
                "asked for; print(lightning_embed.measure(model, data)) says what holds the others back."
            )
        return (
            even(layers, count, parameters) if evenly else deal_out(model, layers, features, tapes, count, parameters)
        )

    return sizes


def even(layers: Sequence[HiddenLayer], count: _Parameters, wanted: int) -> dict[str, int]:
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
    count: _Parameters,
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
    costs = {one.name: _costs(features[one.name], gradients[one.name], samples) for one in layers}
    widths = {one.name: one.width for one in layers}
    while count(widths) > wanted:
        steps = [_Step(name, width - max(1, math.floor(STEP * width))) for name, width in widths.items() if width > 1]
        best = min(steps, key=lambda step: _price(step, widths, costs[step.layer], count))
        widths[best.layer] = best.width
    return widths


@dataclass(frozen=True)
class _Step:
    layer: str
    width: int


def _costs(features: Features, gradients: Tensor, samples: int) -> Tensor:
    """Foretold squared change of the outputs at every width from 0 to that of the layer, per sample."""
    rows = gradients.double() / math.sqrt(samples)
    order = span_order(features.post, rows, 0.0)
    centred = (features.post.double() - features.post.double().mean(dim=0)) @ rows.T
    total = centred.square().sum() / features.rows
    costs = torch.zeros(features.post.shape[1] + 1, dtype=torch.float64)
    costs[0] = total
    costs[1 : len(order.kept) + 1] = order.residual.cpu().square() * total.cpu()
    return costs


def _price(step: _Step, widths: Mapping[str, int], costs: Tensor, count: _Parameters) -> tuple[float, int]:
    """Change per parameter saved; of free ones the largest saving first."""
    saved = count(widths) - count({**widths, step.layer: step.width})
    return float(costs[step.width] - costs[widths[step.layer]]) / max(1, saved), -saved


class _Parameters:
    """The number of a model's parameters as a function of the widths of its hidden layers."""

    def __init__(self, model: nn.Module, layers: Sequence[HiddenLayer]) -> None:
        self._full = {one.name: one.width for one in layers}
        fed = {consumer: one.name for one in layers for consumer in one.consumers}
        named = {name: one for name, one in tensors_by_name(model).items() if isinstance(one, nn.Parameter)}
        scaled: dict[str, tuple[str, ...]] = {}
        self._biases: list[tuple[int, tuple[str, ...], str]] = []  # that merging gives to consumers without one
        for name in {*self._full, *fed}:
            linear = submodule(model, name)
            own = (name,) if name in self._full else ()
            before = (fed[name],) if name in fed else ()
            scaled[f"{name}.weight"] = own + before
            if getattr(linear, "bias", None) is not None:
                scaled[f"{name}.bias"] = own
            elif before:
                self._biases.append((len(named[f"{name}.weight"]), own, fed[name]))
        scaled.update({tensor: (one.name,) for one in layers for tensor, _ in one.per_neuron})
        self._scaled = [(named[name].numel(), by) for name, by in scaled.items() if name in named and by]
        self._fixed = parameter_count(model) - sum(size for size, _ in self._scaled)

    def __call__(self, widths: Mapping[str, int]) -> int:
        added = [(size, by) for size, by, feeder in self._biases if widths[feeder] < self._full[feeder]]
        return self._fixed + sum(
            round(size * math.prod(widths[name] / self._full[name] for name in by))
            for size, by in (*self._scaled, *added)
        )
