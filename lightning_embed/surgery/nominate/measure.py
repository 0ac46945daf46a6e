"""Measure the hidden layers of a model on calibration data: the figures that nominate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_embed.graph import Graph, HiddenLayer, is_layer, is_sharded, legend
from lightning_embed.statistics import Moments, cosine_groups, mpc_of_moments, non_affine_share
from lightning_embed.surgery.change.edit import parameter_count, submodule
from lightning_embed.surgery.nominate.amplitude import Amplitude
from lightning_embed.surgery.nominate.condensation import Condensation
from lightning_embed.surgery.nominate.counting import tensors_of
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.features import MomentCollector, collect_features
from lightning_embed.surgery.nominate.linearization import reaches
from lightning_embed.surgery.nominate.span import SpanCriterion
from lightning_embed.tape import Tape
from lightning_embed.tape.tape import modules_by_name, tensors_by_name


@dataclass(frozen=True)
class LayerMeasurement:
    """One hidden layer on the calibration data.

    Attributes:
        layer: its name, mostly that of the Linear or convolution.
        width: number of neurons.
        constant: number of neurons whose feature is constant on the data; they are left out of `mpc`.
        mpc: minimal Pearson correlation (NaN where every neuron is constant); None where pooling lies between pre and
            post.
        width_cosine: neurons that condensation would keep; None where the neurons' functions differ.
        width_span: neurons that the span criterion would keep.
        merge_neurons: why neurons may not be merged; None when they may.
        merge_layer: why the layer may not be removed; None when it may.
        producers: names of all layers that make its neurons; several where they are tied, as by a gate.
        non_affine: share of what the layer passes on that is not affine in its input, on samples that the fit has not
            seen (see `lightning_embed.statistics.non_affine_share`); None where pooling or other layers come in, and
            for convolutions.
        widths: neurons that other criteria would keep, by their names: "amplitude", whose others are left out of `mpc`
            and `width_cosine`, and those of the user's own.
    """

    layer: str
    width: int
    constant: int
    mpc: float | None
    width_cosine: int | None
    width_span: int | None
    merge_neurons: str | None = None
    merge_layer: str | None = None
    producers: tuple[str, ...] = ()
    non_affine: float | None = None
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """Every hidden layer of a model on the calibration data, and the Linears that were left alone and why.

    Attributes:
        layers: the hidden layers.
        refused: (name, reason) of the other Linears and convolutions.
        share: share of the model's parameters whose number falls when neurons are merged: rows and columns of layers,
            and tensors between, that may be cut.
        unseen: (type of module, share of the parameters) of what is no Linear and no convolution and is not cut with
            one, the largest first.
    """

    layers: tuple[LayerMeasurement, ...]
    refused: tuple[tuple[str, str], ...]
    share: float = math.nan
    unseen: tuple[tuple[str, float], ...] = ()

    @property
    def depth(self) -> int:
        """Number of hidden layers that are observed."""
        return len(self.layers)

    def linear_layers(self, threshold: float) -> int:
        """Number of layers with MPC of at least `threshold`; one whose neurons are all constant counts."""
        return sum(reaches(one.mpc, threshold) for one in self.layers if one.mpc is not None)

    def __str__(self) -> str:
        rows = [
            [
                ", ".join([one.layer, *one.producers[1:]]),
                one.width,
                one.constant or "",
                "" if one.mpc is None else "constant" if math.isnan(one.mpc) else f"{one.mpc:.4f}",
                "" if one.non_affine is None or math.isnan(one.non_affine) else f"{one.non_affine:.3f}",
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
            "non-affine",
            "width/cosine",
            "width/span",
            "neurons may merge",
            "layer may go",
        ]
        table = str(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
        reasons = [reason or "" for one in self.layers for reason in (one.merge_neurons, one.merge_layer)]
        reasons += [reason for _, reason in self.refused]
        left_alone = [f"left alone: {name}: {reason}" for name, reason in self.refused]
        return "\n".join([table, *left_alone, *legend(reasons), *self._seen()])

    def _seen(self) -> list[str]:
        """A line on how much of the model may merge at all."""
        if math.isnan(self.share):
            return []
        others = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in self.unseen if share >= 0.01)
        beside = f"; not looked into: {others}" if others else ""
        return [f"{100 * self.share:.0f} % of the parameters lie in neurons that may merge{beside}"]


def measure_layers(model: nn.Module, graph: Graph, tapes: Sequence[Tape], criteria: Criteria) -> Measurement:
    """Measure every hidden layer of a graph on tapes."""
    layers = list(graph.layers)
    features = collect_features(model, layers, tapes, power=False, inputs=True) if layers else {}
    measured = []
    for layer in layers:
        if layer.name in features:
            view = LayerView(model, graph, layer, features[layer.name])
            measured.append(_layer_of_view(view, criteria))
    return replace(_measurement(graph, measured), **_shares(model, graph))


def _layer_of_view(view: LayerView, criteria: Criteria) -> LayerMeasurement:
    """One layer, without the neurons that an amplitude criterion leaves out."""
    seen, widths = view.features, _kept_widths(view, criteria)
    moments = seen.moments
    if criteria.amplitude is not None and widths.get(Amplitude.name, view.layer.width) < view.layer.width:
        large = Amplitude(criteria.amplitude).large(view)
        assert large is not None
        pre = seen.pre if seen.paired else seen.post
        moments = Moments.of(pre[:, large.to(pre.device)], seen.post[:, large.to(pre.device)])
        vectors = view.input_weights
        if criteria.condensation is not None and vectors is not None:
            kept = [rows[large] for rows in vectors]
            widths[Condensation.name] = len(cosine_groups(kept, criteria.condensation, absolute=view.layer.odd))
    return replace(_layer(view.layer, moments, paired=seen.paired, widths=widths), non_affine=_non_affine(view))


def _non_affine(view: LayerView) -> float | None:
    seen = view.features
    weights = _weights_at_hand(view)
    if not seen.paired or seen.inputs is None or len(seen.inputs) != len(seen.post) or not weights or not seen.finite:
        return None
    if not bool(torch.isfinite(seen.inputs).all()):
        return None
    passed_on = [post.double() @ rows.T.double() for post, rows in zip(seen.posts, view.consumer_weights, strict=True)]
    return float(non_affine_share(seen.inputs, torch.cat(passed_on, dim=1)))


def _weights_at_hand(view: LayerView) -> bool:
    """Whether all weights are in this process, and finite."""
    modules = [submodule(view.model, name) for name in (*view.layer.producers, *view.layer.reads)]
    return not any(map(is_sharded, modules)) and all(
        bool(torch.isfinite(weight).all()) for weight in view.consumer_weights
    )


def _kept_widths(view: LayerView, criteria: Criteria) -> dict[str, int]:
    """How many neurons each criterion would keep; none where no weight is at hand, or values are not finite."""
    if not view.features.finite or not _weights_at_hand(view):
        return {}
    kept = {criterion.name: criterion.kept_width(view) for criterion in criteria.chosen()}
    return {name: width for name, width in kept.items() if width is not None}


def measure_moments(graph: Graph, collected: MomentCollector) -> Measurement:
    """What collected moments tell of every hidden layer of a graph: all but kept widths and shares of parameters."""
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


def _shares(model: nn.Module, graph: Graph) -> dict[str, Any]:
    """The share of the parameters that lie in neurons that may merge; by type of module, that which is not seen."""
    total = parameter_count(model)
    named = {name: tensor for name, tensor in tensors_by_name(model).items() if isinstance(tensor, nn.Parameter)}
    masks = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in named.items() if not is_lazy(tensor)}
    for layer in graph.layers:
        if layer.merge_neurons is None:
            for name, dim, layout in tensors_of(model, layer):
                if name in masks and layout.index is not None:
                    masks[name].index_fill_(dim, layout.index.flatten(), True)
    held = sum(int(mask.sum()) for mask in masks.values())
    unseen: dict[str, int] = {}
    for name, module in modules_by_name(model).items():
        if not is_layer(module):
            for tensor in module._parameters:
                mask = masks.get(f"{name}.{tensor}" if name else tensor)
                if mask is not None and not bool(mask.any()):
                    unseen[type(module).__name__] = unseen.get(type(module).__name__, 0) + mask.numel()
    largest = sorted(unseen.items(), key=lambda item: -item[1])
    return {
        "share": held / max(1, total),
        "unseen": tuple((kind, count / max(1, total)) for kind, count in largest),
    }


def _layer(
    layer: HiddenLayer, moments: Moments, *, paired: bool, widths: Mapping[str, int] | None = None
) -> LayerMeasurement:
    kept = dict(widths or {})
    return LayerMeasurement(
        layer=layer.name,
        width=layer.width,
        constant=int(moments.constant.sum()),
        mpc=float(mpc_of_moments(moments)) if paired else None,
        width_cosine=kept.pop(Condensation.name, None),
        width_span=kept.pop(SpanCriterion.name, None),
        merge_neurons=layer.merge_neurons,
        merge_layer=layer.merge_layer,
        producers=tuple(layer.producers),
        widths=kept,
    )
