"""Size: the neurons that carry the readers' input best, as many as are asked for."""

from __future__ import annotations

from typing import Any

from lightning_embed.statistics import Span
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView


class Size(Criterion):
    """At most so many neurons of a layer.

    Args:
        width: number of neurons to leave.
        name: what it is called in records.
        order: of at least `width` neurons, where it is known already; its first neurons are kept as they are.
    """

    def __init__(self, width: int, name: str = "size", order: Span | None = None) -> None:
        self.width, self.name, self._order = width, name, order

    def nominate(self, view: LayerView) -> list[NeuronMerge]:
        """Keep the first neurons of the order that each adds most, improved by exchange."""
        order = self._order or view.order(0.0, most=self.width)
        kept = order.kept[: self.width] or (0,)
        if self._order is None:
            kept = view.exchanged(kept)
        share = float(order.residual[min(self.width, len(order.kept)) - 1]) if len(order.kept) else 0.0
        evidence: dict[str, Any] = {"span": share}
        if self._order is None and not view.exchanges(len(kept)):
            evidence["exchange"] = "left out, too wide"
        return [view.keep(kept, self.name, evidence)]

    def kept_width(self, view: LayerView) -> int | None:
        """The width asked for, or all."""
        return min(self.width, view.layer.width)


def milder(view: LayerView, refused: NeuronMerge) -> list[NeuronMerge]:
    """Steps between one that changes too much and none: 1/2, 1/4 and 1/8 of the neurons that it would have cut."""
    width = view.layer.width
    cut = width - len(refused.kept)
    widths = [one for one in dict.fromkeys(width - cut // part for part in (2, 4, 8)) if one < width]
    if not widths:
        return []
    order = view.order(0.0, most=max(widths))
    nominated = [Size(one, "span", order).nominate(view) for one in widths]
    steps = [step for found in nominated for step in found]
    distinct = {step.kept: step for step in steps}  # fewer than asked for may span all
    return [step for kept, step in distinct.items() if kept != refused.kept and len(kept) < width]
