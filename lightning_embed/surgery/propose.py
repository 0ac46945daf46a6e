"""Nominate merges from what was measured. Nothing here changes a model or decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer, Reason
from lightning_embed.statistics import (
    Span,
    affine_fit,
    amplitudes,
    cosine_groups,
    exchange,
    mpc_of_moments,
    refit,
    representatives,
    span_order,
    tangent_fit,
)
from lightning_embed.surgery.criteria import Criteria
from lightning_embed.surgery.features import Features
from lightning_embed.surgery.measure import condensation_vectors, consumer_weight
from lightning_embed.surgery.plan import LayerMerge, NeuronMerge

SAMPLES = 8  # fitting samples below which nothing is nominated: two points always lie on a line
SAMPLES_PER_NEURON = 2  # fitting samples that the refit needs for every neuron it keeps


def nominate_null(model: nn.Module, layer: HiddenLayer, features: Features) -> list[NeuronMerge]:
    """The neurons of a layer that are constant on the data, unless all of them are (then the layer is affine).

    A second candidate leaves those that are read and whose input varies: they may be constant on these data alone.
    """
    constant = features.constant
    if layer.merge_neurons is not None or constant.all():
        return []
    unread = ~consumer_weight(model, layer).any(dim=0)
    masks = [constant, constant & (features.constant_pre | unread)]
    if torch.equal(*masks):
        masks.pop()
    return [_null(layer, features, constant) for constant in masks if constant.any()]


def _null(layer: HiddenLayer, features: Features, constant: Tensor) -> NeuronMerge:
    kept = torch.nonzero(~constant).flatten()
    mix = torch.eye(layer.width, dtype=torch.float64)[:, kept.cpu()]
    value = features.post.double().mean(dim=0).cpu()
    return _neurons(
        layer,
        kept.tolist(),
        mix,
        torch.where(constant.cpu(), value, 0.0),
        "null",
        {"constant": int(constant.sum())},
    )


def nominate_layer(
    layer: HiddenLayer,
    features: Features,
    threshold: float,
    sensitivity: Tensor,
    region: Callable[[Tensor], Tensor],
) -> list[LayerMerge]:
    """The candidate fits of λ and μ for a layer whose MPC reaches the threshold; empty when it does not.

    Weighted least squares (each value weighted by the squared derivative of the outputs), plain least squares,
    and the tangent at the mean. A layer that is constant throughout is affine with slope 0.
    """
    mpc = float(mpc_of_moments(features.moments))
    if mpc < threshold:
        return []
    fits = {
        "weighted": affine_fit(features.pre, features.post, sensitivity),
        "plain": affine_fit(features.pre, features.post),
        "tangent": tangent_fit(region, features.pre),
    }
    power = float(features.post.double().square().mean())
    return [
        LayerMerge(
            layer=layer.name,
            consumers=layer.consumers,
            region_modules=layer.region_modules,
            slope=fit.slope.double().cpu(),
            intercept=fit.intercept.double().cpu(),
            input_power=features.input_power.cpu(),
            feature_power=power,
            evidence={"mpc": mpc, "fit": name},
        )
        for name, fit in fits.items()
        if bool(torch.isfinite(fit.slope).all() and torch.isfinite(fit.intercept).all())
    ]


def nominate_neurons(
    model: nn.Module, layer: HiddenLayer, features: Features, criteria: Criteria
) -> tuple[list[NeuronMerge], dict[str, str]]:
    """Candidates for merging a layer's neurons, the one that keeps fewest first; by criterion, why there is none."""
    keeps: dict[str, tuple[list[int], dict[str, float]]] = {}
    weight = consumer_weight(model, layer)
    refused: dict[str, str] = {}
    if criteria.condensation is not None:
        vectors = condensation_vectors(model, layer)
        if vectors is not None:
            groups = cosine_groups(vectors, criteria.condensation, absolute=layer.odd)
            chosen = representatives(groups, amplitudes(vectors, weight))
            keeps["condensation"] = (sorted(chosen), {"cosine": criteria.condensation, "groups": len(groups)})
    if criteria.span is not None:
        span = span_order(features.post, weight, criteria.span, intercept=layer.intercept)
        better = exchange(features.post, weight, span.kept, intercept=layer.intercept)
        keeps["span"] = (list(better), {"span": criteria.span})
    candidates = []
    for criterion, (kept, evidence) in sorted(keeps.items(), key=lambda item: len(item[1][0])):
        if not 0 < len(kept) < layer.width:
            continue
        needed = SAMPLES_PER_NEURON * len(kept)
        if features.rows < needed:
            what = f"keeping {len(kept)} neurons needs {needed} to fit, there are {features.rows}"
            refused[criterion] = str(Reason("too few samples", what))
            continue
        mix, shift = refit(features.post, kept, intercept=layer.intercept)
        candidates.append(_neurons(layer, kept, mix.cpu(), shift.cpu(), criterion, evidence))
    return candidates, refused


def nominate_width(
    model: nn.Module,
    layer: HiddenLayer,
    features: Features,
    width: int,
    criterion: str = "size",
    order: Span | None = None,
) -> NeuronMerge | Reason:
    """Keep the neurons that carry the consumers' input best, at most `width` of them; or why that cannot be done.

    An order that is known already, of at least `width` neurons, is not sought again.
    """
    if features.rows < SAMPLES_PER_NEURON * width:
        needed = SAMPLES_PER_NEURON * width
        what = f"keeping {width} neurons needs {needed} to fit, there are {features.rows}"
        return Reason("too few samples", what)
    weight = consumer_weight(model, layer)
    span = order or span_order(features.post, weight, 0.0, intercept=layer.intercept, most=width)
    kept = list(exchange(features.post, weight, span.kept[:width] or (0,), intercept=layer.intercept))
    share = float(span.residual[min(width, len(span.kept)) - 1]) if len(span.kept) else 0.0
    mix, shift = refit(features.post, kept, intercept=layer.intercept)
    return _neurons(layer, kept, mix.cpu(), shift.cpu(), criterion, {"span": share})


def milder(model: nn.Module, layer: HiddenLayer, features: Features, refused: NeuronMerge) -> list[NeuronMerge]:
    """Steps between one that changes too much and none: 1/2, 1/4 and 1/8 of the neurons that it would have cut."""
    cut = layer.width - len(refused.kept)
    widths = dict.fromkeys(layer.width - cut // part for part in (2, 4, 8))
    weight = consumer_weight(model, layer)
    order = span_order(features.post, weight, 0.0, intercept=layer.intercept, most=max(widths))
    steps = [nominate_width(model, layer, features, one, "span", order) for one in widths if one < layer.width]
    distinct = {one.kept: one for one in steps if isinstance(one, NeuronMerge)}  # fewer than asked for may span all
    return [one for kept, one in distinct.items() if kept != refused.kept and len(kept) < layer.width]


def _neurons(
    layer: HiddenLayer,
    kept: list[int],
    mix: Tensor,
    shift: Tensor,
    criterion: str,
    evidence: dict[str, float],
) -> NeuronMerge:
    return NeuronMerge(
        layer=layer.name,
        consumers=layer.consumers,
        per_neuron=tuple((tensor, layout.dim) for tensor, layout in layer.per_neuron),
        kept=tuple(kept),
        mix=mix.double(),
        shift=shift.double(),
        criterion=criterion,
        evidence=evidence,
    )


def refreshed(step: LayerMerge, layer: HiddenLayer, features: Features) -> LayerMerge:
    """The same fit for a layer whose neighbours have changed by another merge."""
    return replace(
        step,
        consumers=layer.consumers,
        region_modules=layer.region_modules,
        input_power=features.input_power.cpu(),
    )
