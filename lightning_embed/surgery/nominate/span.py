"""Span: neurons whose features lie in the span of the kept ones and the constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView


class SpanCriterion(Criterion):
    """The neurons that carry all that the readers receive, up to a share."""

    name = "span"

    def __init__(self, share: float) -> None:
        self.share = share

    def nominate(self, view: LayerView) -> Sequence[NeuronMerge]:
        """Keep the fewest neurons that greedy choice finds, improved by exchange."""
        kept = view.exchanged(view.order(self.share).kept)
        if not 0 < len(kept) < view.layer.width:
            return []
        evidence: dict[str, Any] = {"span": self.share}
        if not view.exchanges(len(kept)):
            evidence["exchange"] = "left out, too wide"
        return [view.keep(kept, self.name, evidence)]

    def kept_width(self, view: LayerView) -> int | None:
        """The number of neurons that greedy choice finds."""
        return len(view.order(self.share).kept)
