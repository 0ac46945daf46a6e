"""Amplitude: neurons that are small beside the largest of their layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_embed.statistics import amplitudes
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView, Stage


class Amplitude(Criterion):
    """Neurons whose amplitude is below a share of the largest in their layer.

    Norm of the input weights [w, b] times norm of the output weights (004, Fig. 5). The papers drop those below a tenth
    before they measure (000, App. C): a neuron that nobody reads hides a linear layer. Here they go before all others
    but the constant ones, by a refit of the readers' weights, and are left out of what is measured.
    """

    name = "amplitude"
    stage: ClassVar[Stage] = "constants"

    def __init__(self, share: float) -> None:
        self.share = share

    def large(self, view: LayerView) -> Tensor | None:
        """Which neurons are not below the share; None where input weights do not tell features."""
        if view.input_weights is None:
            return None
        size = amplitudes(torch.cat(view.input_weights, dim=1), torch.cat(view.consumer_weights))
        return size >= self.share * size.max()

    def nominate(self, view: LayerView) -> Sequence[NeuronMerge]:
        """Keep the large ones."""
        large = self.large(view)
        if large is None or large.all() or not large.any():
            return []
        kept = large.nonzero().flatten().tolist()
        return [view.keep(kept, self.name, {"amplitude": self.share, "below": view.layer.width - len(kept)})]

    def kept_width(self, view: LayerView) -> int | None:
        """How many are large."""
        large = self.large(view)
        return None if large is None else int(large.sum())
