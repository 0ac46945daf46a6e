"""The step that merges a linearized layer into its consumers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_embed.operators import merge_layers
from lightning_embed.surgery.change.optimizer import Fresh, Whole
from lightning_embed.surgery.change.step import (
    Applied,
    Step,
    evidence_from,
    layer_of,
    module_of,
    plain,
    require,
    tensor_from,
)
from lightning_embed.surgery.persist.checkpoint import Attachment


@dataclass(frozen=True, eq=False)
class LayerMerge(Step):
    """Merge a linearized hidden layer into its consumers (paper 000, eq. 4.2 read from right to left).

    W′ = W₂ diag(λ) W₁ and b′ = W₂ (λ∘b₁ + μ) + b₂ for every consumer (W₂, b₂); the layer and what lies between
    become identities.

    Attributes:
        layer: qualified name of the Linear that is removed.
        consumers: names of the Linears that read it.
        region_modules: names of the modules between, which become identities.
        slope: λ, shape (width,).
        intercept: μ, shape (width,).
        input_power: mean square of the layer's inputs, shape (fan_in,), from which the optimizer's second moments
            of W′ are seeded.
        feature_power: mean square of the layer's features over samples and neurons, for the same purpose.
        evidence: what nominated it.
        criterion: name of the criterion that did.
    """

    kind: ClassVar[str] = "layer"

    layer: str
    consumers: tuple[str, ...]
    region_modules: tuple[str, ...]
    slope: Tensor
    intercept: Tensor
    input_power: Tensor
    feature_power: float
    evidence: Mapping[str, Any] = field(default_factory=dict)
    criterion: str = "linearization"

    @property
    def widths(self) -> tuple[int, int]:
        """The layer's neurons, and none."""
        return len(self.slope), 0

    def what(self) -> str:
        """What it does, in a few words."""
        return f"merge layer {self.layer} ({len(self.slope)} neurons) into {', '.join(self.consumers)}"

    def to_dict(self) -> dict[str, Any]:
        """The step as lists, numbers, strings and None (for NaN)."""
        written: dict[str, Any] = plain({"kind": self.kind, **vars(self)})
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerMerge:
        """The inverse of `to_dict`."""
        return cls(
            layer=data["layer"],
            consumers=tuple(data["consumers"]),
            region_modules=tuple(data["region_modules"]),
            slope=tensor_from(data["slope"]),
            intercept=tensor_from(data["intercept"]),
            input_power=tensor_from(data["input_power"]),
            feature_power=float(data["feature_power"]),
            evidence=evidence_from(data["evidence"]),
            criterion=data.get("criterion", "linearization"),
        )

    def carry_out(self, model: nn.Module, applied: Applied, attachment: Attachment) -> None:
        """Put the products into the consumers, and identities in the place of what was merged."""
        layer = _linear(model, self.layer)
        width, fan_in = layer.weight.shape
        require(self.slope.shape == self.intercept.shape == (width,), self.layer, f"its width is {width}")
        require(self.input_power.shape == (fan_in,), self.layer, f"it has {fan_in} inputs")
        consumers = [_linear(model, name) for name in self.consumers]
        slope, intercept = self.slope.to(layer.weight.device), self.intercept.to(layer.weight.device)
        merged = []
        for name, consumer in zip(self.consumers, consumers, strict=True):
            require(consumer.in_features == width, name, f"it reads {consumer.in_features} inputs, not {width}")
            merged.append(merge_layers(layer.weight, layer.bias, consumer.weight, consumer.bias, slope, intercept))

        edits = applied.edits
        for name, consumer, (weight, bias) in zip(self.consumers, consumers, merged, strict=True):
            attachment.remember(model, name)
            old, old_bias = consumer.weight, consumer.bias
            edits.set_tensor(consumer, "weight", weight)
            edits.sync_counts(consumer)
            applied.moves.append(Fresh(old, consumer.weight, old_bias, self.input_power, self.feature_power))
            applied.set_bias(consumer, bias)
        for name in (self.layer, *self.region_modules):
            gone = module_of(model, name)
            attachment.remember(model, name)
            edits.set_slot(model, name, nn.Identity().train(gone.training))
            applied.moves.extend(Whole(parameter, None) for parameter in gone.parameters())


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module: torch.nn.Module = layer_of(model, name)
    require(isinstance(module, nn.Linear), name, f"it is a {type(module).__name__}, which has no such merge")
    assert isinstance(module, nn.Linear)
    return module
