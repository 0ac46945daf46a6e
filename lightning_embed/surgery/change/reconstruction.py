"""The step that corrects layers towards what they put out before the merges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import output_weight
from lightning_embed.surgery.change.optimizer import Whole
from lightning_embed.surgery.change.step import Applied, Step, evidence_from, layer_of, plain, require, tensor_from
from lightning_embed.surgery.persist.checkpoint import Attachment


@dataclass(frozen=True, eq=False)
class Reconstruction(Step):
    """Add small corrections to Linears so that they put out again what they did before the merges.

    W′ = W + ΔW and b′ = b + Δb (see `lightning_embed.statistics.reconstruct`); shapes stay.

    Attributes:
        layers: qualified names of the Linears, in the order in which they are corrected.
        weights: ΔW of each, in the shape of its weight as it is stored.
        biases: Δb of each, shape (fan_out,); zeros where the Linear has no bias.
        evidence: the change of the outputs that called for it.
    """

    kind: ClassVar[str] = "reconstruction"

    layers: tuple[str, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        """The names as one text."""
        return ", ".join(self.layers)

    @property
    def criterion(self) -> str:
        """It is nominated by no criterion, but by what other steps have changed."""
        return "reconstruction"

    @property
    def widths(self) -> tuple[int, int]:
        """No neuron is cut."""
        return 0, 0

    def what(self) -> str:
        """What it does, in a few words."""
        return f"correct {self.layer}"

    def to_dict(self) -> dict[str, Any]:
        """The step as lists, numbers, strings and None (for NaN)."""
        written: dict[str, Any] = plain({"kind": self.kind, **vars(self)})
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reconstruction:
        """The inverse of `to_dict`."""
        weights, biases = (tuple(map(tensor_from, data[name])) for name in ("weights", "biases"))
        return cls(tuple(data["layers"]), weights, biases, evidence_from(data["evidence"]))

    def carry_out(self, model: nn.Module, applied: Applied, attachment: Attachment) -> None:
        """Add the corrections."""
        del attachment  # shapes stay
        for name, change, bias_change in zip(self.layers, self.weights, self.biases, strict=True):
            layer = layer_of(model, name)
            fan_out = len(output_weight(layer))
            require(change.shape == layer.weight.shape, name, f"its weight is {tuple(layer.weight.shape)}")
            require(bias_change.shape == (fan_out,), name, f"it has {fan_out} outputs")
            for tensor, addition in (("weight", change), ("bias", bias_change)):
                old = getattr(layer, tensor, None)
                if old is not None:
                    corrected = (old.detach().double() + addition.to(old.device)).to(old.dtype)
                    if not torch.isfinite(corrected).all():
                        raise InputError(f"The corrected {tensor} of {name!r} is not finite in {old.dtype}.")
                    applied.edits.set_tensor(layer, tensor, corrected)
                    applied.moves.append(Whole(old, getattr(layer, tensor)))
