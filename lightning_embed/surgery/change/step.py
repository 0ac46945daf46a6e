"""What every step of a plan is: plain data that describes itself and carries itself out on a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Layer, is_layer
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.surgery.change.optimizer import ParameterMove, Whole
from lightning_embed.surgery.persist.checkpoint import Attachment


@dataclass
class Applied:
    """A step that was carried out: how to take it back, and where every parameter went."""

    edits: Edits = field(default_factory=Edits)
    moves: list[ParameterMove] = field(default_factory=list)

    def extend(self, later: Applied) -> None:
        """Take in a step that was carried out after this one; undoing takes both back."""
        self.edits.extend(later.edits)
        self.moves.extend(later.moves)

    def undo(self) -> None:
        """Put the old parameters, buffers and modules back; the very same objects, so bit for bit."""
        self.edits.undo()
        self.moves.clear()

    def set_bias(self, consumer: Layer, bias: Tensor | None) -> None:
        """Give a consumer its new bias; where it had none, the optimizer learns of one more parameter."""
        if bias is None:
            return
        old = consumer.bias
        self.edits.set_tensor(consumer, "bias", bias, like=consumer.weight)
        self.moves.append(Whole(old, consumer.bias, beside=consumer.weight))


class Step(ABC):
    """One change of a model, as plain data: it describes itself, becomes plain data and back, and is carried out.

    Attributes:
        kind: what it is called in plans and records.
    """

    kind: ClassVar[str]
    if TYPE_CHECKING:  # fields of some steps, properties of others

        @property
        def evidence(self) -> Mapping[str, Any]:
            """What nominated it."""

        @property
        def layer(self) -> str:
            """Qualified name of the layer that it changes; of several, their names as one text."""

        @property
        def criterion(self) -> str:
            """Name of the criterion that nominated it."""

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int]:
        """Neurons of the layer (before, after); 0 where none is cut."""

    @abstractmethod
    def what(self) -> str:
        """What it does, in a few words."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The step as lists, numbers, strings and None (for NaN)."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """The inverse of `to_dict`."""

    @abstractmethod
    def carry_out(self, model: nn.Module, applied: Applied, attachment: Attachment) -> None:
        """Change a model, noting every change in `applied`; check all that can be checked first."""

    def apply(self, model: nn.Module, attachment: Attachment) -> Applied:
        """Change a model; on an error nothing is changed.

        Raises:
            InputError: the step does not fit the model, or what it makes is not finite.
        """
        applied = Applied()
        try:
            self.carry_out(model, applied, attachment)
        except Exception:
            applied.undo()
            raise
        return applied

    def __str__(self) -> str:
        return f"{self.what()}  [{describe_evidence(self.evidence)}]"


def module_of(model: nn.Module, name: str) -> nn.Module:
    """The module that a plan names."""
    try:
        return submodule(model, name)
    except KeyError:
        raise InputError(
            f"The plan names {name!r}, which the model does not have; was the plan made for another model?"
        ) from None


def layer_of(model: nn.Module, name: str) -> Layer:
    """The layer that a plan names."""
    module = module_of(model, name)
    if not is_layer(module):
        raise InputError(
            f"The plan merges {name!r}, which is a {type(module).__name__} in this model and no Linear or convolution; "
            "was it applied already?"
        )
    return module


def require(fits: bool, layer: str, what: str) -> None:
    """Refuse a plan that does not fit the model."""
    if not fits:
        raise InputError(f"The plan does not fit layer {layer!r} of this model: {what}. Propose it anew.")


def plain(value: Any) -> Any:
    """A value as lists, dictionaries, numbers, strings and None, which is what JSON can hold."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value  # strict JSON has no such numbers


def tensor_from(plain_values: Any) -> Tensor:
    """A float64 tensor from what `plain` made of it."""
    return torch.tensor(plain_values, dtype=torch.float64)


def evidence_from(plain_evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence from what `plain` made of it."""
    return {key: math.nan if value is None else value for key, value in plain_evidence.items()}


def describe_evidence(evidence: Mapping[str, Any]) -> str:
    """Evidence as `key value` pairs, numbers in four significant digits.

    >>> describe_evidence({"mpc": 0.99412345, "fit": "weighted"})
    'mpc 0.9941, fit weighted'
    """
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in evidence.items()
    )
