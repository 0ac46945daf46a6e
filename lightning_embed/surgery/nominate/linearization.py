"""Linearization: layers that act affinely on the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch

from lightning_embed.graph import HiddenLayer, Reason
from lightning_embed.statistics import affine_fit, mpc_of_moments, tangent_fit
from lightning_embed.surgery.change.layer_merge import LayerMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView, Stage
from lightning_embed.surgery.nominate.features import Features, summed


def reaches(mpc: float, threshold: float) -> bool:
    """Whether a minimal Pearson correlation nominates: a layer all of whose neurons are constant (NaN) is affine too.

    >>> reaches(0.99, 0.99), reaches(0.98, 0.99), reaches(float("nan"), 0.99)
    (True, False, True)
    """
    return not mpc < threshold


class Linearization(Criterion):
    """Layers whose minimal Pearson correlation (paper 000, eq. 5.1) is at least a threshold."""

    name = "linearization"
    stage: ClassVar[Stage] = "layers"
    gradients: ClassVar[bool] = True

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def nominate(self, view: LayerView) -> Sequence[LayerMerge] | Reason:
        """The candidate fits of λ and μ.

        Weighted least squares (each value weighted by the squared derivative of the outputs), plain least squares,
        and the tangent at the mean. A layer that is constant throughout is affine with slope 0.
        """
        layer, features = view.layer, view.features
        if layer.merge_layer is not None or not features.paired:
            return []
        if len(features.posts) > 1:
            return Reason("consumers differ")
        mpc = float(mpc_of_moments(features.moments))
        if not reaches(mpc, self.threshold):
            return []
        sensitivity = summed(view.gradients, layer.consumers).square()
        fits = {
            "weighted": affine_fit(features.pre, features.post, sensitivity),
            "plain": affine_fit(features.pre, features.post),
            "tangent": tangent_fit(
                lambda pre: view.graph.run_region(view.model, layer.name, pre, layer.consumers[0]), features.pre
            ),
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


def refreshed(step: LayerMerge, layer: HiddenLayer, features: Features) -> LayerMerge:
    """The same fit for a layer whose neighbours have changed by another merge."""
    return replace(
        step,
        consumers=layer.consumers,
        region_modules=layer.region_modules,
        input_power=features.input_power.cpu(),
    )
