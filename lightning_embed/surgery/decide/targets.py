"""What several readers read of one layer before the first merge, towards which later merges are refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.tape import Tape


class Targets:
    """The features of hidden layers that several layers make or that are read as different values.

    In a residual stage a merge of one layer changes what all later ones read. Refitting each to what it reads now would
    let those errors add up; each is refitted to what it read at first. A layer that one other makes and whose readers
    read equal values is refitted as it is now, and corrected later (see `Original`).
    """

    def __init__(self, model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape]) -> None:
        several = [layer for layer in layers if len(layer.producers) > 1 or len(layer.reads) > 1]
        features = collect_features(model, several, tapes, power=False) if several else {}
        self._layers = {
            layer.name: layer
            for layer in several
            if layer.name in features and (len(layer.producers) > 1 or len(features[layer.name].posts) > 1)
        }
        self._read = {
            name: {
                reader: post
                for post, readers in zip(features[name].posts, features[name].readers, strict=True)
                for reader in readers
            }
            for name in self._layers
        }

    def of(self, layer: HiddenLayer, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each reader of a layer read at first, (rows, width) of the neurons that are left.

        Args:
            layer: as it is now.
            kept: the rows that stayed of the layers that have fewer than at first.
        """
        for first in self._layers.values():
            units = _units_of(first, layer, kept)
            if units is not None:
                known = self._read[first.name]
                return {
                    reader: known[reader][:, units.to(known[reader].device)]
                    for reader in layer.reads
                    if reader in known
                }
        return {}


def _units_of(first: HiddenLayer, now: HiddenLayer, kept: Mapping[str, Tensor]) -> Tensor | None:
    """The numbers that the units of a layer had at first; None where it is another layer."""
    for name, layout in now.producers.items():
        if name not in first.producers:
            continue
        at_first = first.producers[name].index
        assert layout.index is not None
        assert at_first is not None
        rows = layout.index[:, 0]
        rows = kept[name][rows] if name in kept else rows
        places = torch.nonzero(rows[:, None] == at_first[None, :, 0])
        if len(places) == len(rows):
            return places[:, 1]
    return None
