"""Measure the hidden layers of a model on calibration data: the figures that nominate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn

from lightning_embed.graph import Graph, HiddenLayer, input_rows, is_layer, is_sharded, legend
from lightning_embed.statistics import (
    Moments,
    augmented_weights,
    cosine_groups,
    mpc_of_moments,
    span_order,
)
from lightning_embed.surgery.criteria import Criteria
from lightning_embed.surgery.edit import submodule
from lightning_embed.surgery.features import Features, MomentCollector, collect_features
from lightning_embed.tape import Tape

_ENTRIES = 2**24  # of weights that are taken to double precision at a time


@dataclass(frozen=True)
class LayerMeasurement:
    """One hidden layer on the calibration data.

    Attributes:
        layer: qualified name of the Linear.
        width: number of neurons.
        constant: number of neurons whose feature is constant on the data; they are left out of `mpc`.
        mpc: minimal Pearson correlation (NaN where every neuron is constant); None where pooling lies between pre and
            post.
        width_cosine: neurons that condensation would keep; None where the neurons' functions differ.
        width_span: neurons that the span criterion would keep.
        merge_neurons: why neurons may not be merged; empty when they may.
        merge_layer: why the layer may not be removed; empty when it may.
    """

    layer: str
    width: int
    constant: int
    mpc: float | None
    width_cosine: int | None
    width_span: int | None
    merge_neurons: str = ""
    merge_layer: str = ""


@dataclass(frozen=True)
class Measurement:
    """Every hidden layer of a model on the calibration data, and the Linears that were left alone and why."""

    layers: tuple[LayerMeasurement, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def depth(self) -> int:
        """Number of hidden layers that are observed."""
        return len(self.layers)

    def linear_layers(self, threshold: float) -> int:
        """Number of layers with MPC of at least `threshold`; one whose neurons are all constant counts."""
        measured = [one.mpc for one in self.layers if one.mpc is not None]
        return sum(math.isnan(mpc) or mpc >= threshold for mpc in measured)

    def __str__(self) -> str:
        rows = [
            [
                one.layer,
                one.width,
                one.constant or "",
                "" if one.mpc is None else "constant" if math.isnan(one.mpc) else f"{one.mpc:.4f}",
                "" if one.width_cosine is None else one.width_cosine,
                "" if one.width_span is None else one.width_span,
                one.merge_neurons or "yes",
                one.merge_layer or "yes",
            ]
            for one in self.layers
        ]
        heads = [
            "layer",
            "width",
            "constant",
            "MPC",
            "width/cosine",
            "width/span",
            "neurons may merge",
            "layer may go",
        ]
        table = str(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
        reasons = [reason for one in self.layers for reason in (one.merge_neurons, one.merge_layer)]
        reasons += [reason for _, reason in self.refused]
        left_alone = [f"left alone: {name}: {reason}" for name, reason in self.refused]
        return "\n".join([table, *left_alone, *legend(reasons)])


def measure_layers(model: nn.Module, graph: Graph, tapes: Sequence[Tape], criteria: Criteria) -> Measurement:
    """Measure every hidden layer of a graph on tapes."""
    layers = list(graph.layers)
    features = collect_features(model, layers, tapes, power=False) if layers else {}
    measured = []
    for layer in layers:
        if layer.name in features:
            found = features[layer.name]
            cosine, span = _widths(model, layer, found, criteria)
            measured.append(_layer(layer, found.moments, paired=found.paired, cosine=cosine, span=span))
    return _measurement(graph, measured)


def measure_moments(graph: Graph, collected: MomentCollector) -> Measurement:
    """What collected moments tell of every hidden layer of a graph: all but the kept widths."""
    return _measurement(
        graph,
        [
            _layer(layer, collected.moments[layer.name], paired=layer.name not in collected.unpaired)
            for layer in graph.layers
            if layer.name in collected.moments
        ],
    )


def _measurement(graph: Graph, layers: Sequence[LayerMeasurement]) -> Measurement:
    return Measurement(tuple(layers), tuple((name, str(reason)) for name, reason in graph.refused.items()))


def _layer(
    layer: HiddenLayer, moments: Moments, *, paired: bool, cosine: int | None = None, span: int | None = None
) -> LayerMeasurement:
    return LayerMeasurement(
        layer=layer.name,
        width=layer.width,
        constant=int(moments.constant.sum()),
        mpc=float(mpc_of_moments(moments)) if paired else None,
        width_cosine=cosine,
        width_span=span,
        merge_neurons=layer.merge_neurons or "",
        merge_layer=layer.merge_layer or "",
    )


def _widths(
    model: nn.Module, layer: HiddenLayer, features: Features, criteria: Criteria
) -> tuple[int | None, int | None]:
    """How many neurons condensation and the span criterion would keep; None where no weight is at hand."""
    cosine = span = None
    if any(is_sharded(submodule(model, one)) for one in (layer.name, *layer.consumers)):
        return None, None
    if features.finite and bool(torch.isfinite(consumer_weight(model, layer)).all()):
        vectors = condensation_vectors(model, layer)
        if vectors is not None and criteria.condensation is not None:
            cosine = len(cosine_groups(vectors, criteria.condensation, absolute=layer.odd))
        if criteria.span is not None:
            weight = consumer_weight(model, layer)
            span = len(span_order(features.post, weight, criteria.span, intercept=layer.intercept).kept)
    return cosine, span


def consumer_weight(model: nn.Module, layer: HiddenLayer) -> Tensor:
    """The weights W of all consumers of a layer, one below the other: (sum of fan_outs, width).

    Every tap of a convolution's kernel and every position of a flattened map counts as an output. Where there are many
    more of them than neurons, a square matrix with the same WᵀW stands for them.
    """
    weights = [submodule(model, name).weight.detach() for name in layer.consumers]  # type: ignore[operator]  # layers by construction
    if sum(one.numel() for one in weights) <= 4 * layer.width**2:
        return torch.cat([input_rows(one, layer.width).double() for one in weights])
    gram = weights[0].new_zeros(layer.width, layer.width, dtype=torch.float64)
    for weight in weights:
        for part in weight.split(max(1, _ENTRIES // weight[0].numel())):
            rows = input_rows(part, layer.width).double()
            gram += rows.T @ rows
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root.T


def condensation_vectors(model: nn.Module, layer: HiddenLayer) -> Tensor | None:
    """Augmented input weights [w, b] whose cosine similarity nominates condensed neurons; None where it may not.

    Equal directions mean equal features only if every column has the same activation. A batch norm right behind
    the Linear is folded into the weights: w γ/s, (b − mean) γ/s + β. One further on changes nothing: the features
    that it reads are equal.
    """
    linear = submodule(model, layer.name)
    assert is_layer(linear)
    weight = linear.weight.detach().double().flatten(1)
    bias = None if linear.bias is None else linear.bias.detach().double()
    owners = {name.rpartition(".")[0] for name, _ in layer.per_neuron}
    if layer.uniform:
        return augmented_weights(weight, bias)
    norm = submodule(model, owners.pop()) if len(owners) == 1 else None
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    if layer.functions[0] != "batch_norm":
        return augmented_weights(weight, bias)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    shift = (shift if bias is None else shift + bias) * scale
    if norm.affine:
        scale = scale * norm.weight.detach().double()
        shift = shift * norm.weight.detach().double() + norm.bias.detach().double()
    return augmented_weights(weight * scale[:, None], shift)
