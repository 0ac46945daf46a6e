"""Condensation: neurons whose input weights point in one direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_embed.statistics import amplitudes, cosine_groups, representatives
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView


class Condensation(Criterion):
    """Groups of neurons whose augmented input weights [w, b] have pairwise cosine similarity of at least a threshold.

    Where several layers make one neuron, the similarity in each of them counts, and in all together.
    """

    name = "condensation"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def groups(self, view: LayerView) -> list[list[int]] | None:
        """Groups of neurons; None where input weights do not tell features apart."""
        vectors = view.input_weights
        return None if vectors is None else cosine_groups(vectors, self.threshold, absolute=view.layer.odd)

    def nominate(self, view: LayerView) -> Sequence[NeuronMerge]:
        """Keep the neuron of largest amplitude of every group."""
        groups = self.groups(view)
        if groups is None or len(groups) == view.layer.width or view.input_weights is None:
            return []
        together = torch.cat(view.input_weights, dim=1)
        chosen = representatives(groups, amplitudes(together, torch.cat(view.consumer_weights)))
        return [view.keep(chosen, self.name, {"cosine": self.threshold, "groups": len(groups)})]

    def kept_width(self, view: LayerView) -> int | None:
        """The number of groups."""
        groups = self.groups(view)
        return None if groups is None else len(groups)
