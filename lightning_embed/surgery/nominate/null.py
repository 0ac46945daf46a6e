"""Null: neurons that are constant on the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_embed.graph import Reason
from lightning_embed.surgery.change.neuron_merge import Fit, NeuronMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView, Stage


class Null(Criterion):
    """Neurons that are constant in all that is read, unless all of them are (then the layer is affine)."""

    name = "null"
    stage: ClassVar[Stage] = "constants"

    def nominate(self, view: LayerView) -> Sequence[NeuronMerge] | Reason:
        """All null neurons; then without those that are read and whose input varies: they may vary on other data."""
        constant = view.features.constant
        if constant.all():
            return []
        unread = ~torch.stack([weight.any(dim=0) for weight in view.consumer_weights]).any(dim=0)
        masks = [constant, constant & (view.features.constant_pre | unread)]
        if torch.equal(*masks):
            masks.pop()
        return [_without(view, null) for null in masks if null.any()]


def _without(view: LayerView, null: Tensor) -> NeuronMerge:
    kept = torch.nonzero(~null).flatten()
    mix = torch.eye(view.layer.width, dtype=torch.float64)[:, kept.cpu()]
    fits = tuple(
        Fit(readers, mix, torch.where(null.cpu(), post.double().mean(dim=0).cpu(), 0.0))
        for post, readers in zip(view.features.posts, view.features.readers, strict=True)
    )
    return view.merge(kept.tolist(), fits, Null.name, {"constant": int(null.sum())})
