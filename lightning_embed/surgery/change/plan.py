"""What is to be done to a model, as plain data: steps in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_embed.errors import InputError
from lightning_embed.surgery.change.layer_merge import LayerMerge
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.step import Step

KINDS: dict[str, type[Step]] = {steps.kind: steps for steps in (LayerMerge, NeuronMerge, Reconstruction)}


@dataclass(frozen=True, eq=False)
class Plan:
    """Merges in the order in which they are to be made. Plain data: print it, compare it, save it, send it.

    The indices of a step count the neurons that the steps before it leave.

    >>> print(Plan(()))
    nothing to merge
    """

    steps: tuple[Step, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # compared by value, and values are long

    def __str__(self) -> str:
        if not self.steps:
            return "nothing to merge"
        return "\n".join(f"{number}. {step}" for number, step in enumerate(self.steps, 1))

    def to_dict(self) -> dict[str, Any]:
        """The plan as lists, numbers, strings and None (for NaN)."""
        return {"steps": [step.to_dict() for step in self.steps]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`; plans of earlier versions are read too.

        Raises:
            InputError: a step is of an unknown kind.
        """
        for entry in data["steps"]:
            if entry["kind"] not in KINDS:
                raise InputError(f"The plan holds a step of kind {entry['kind']!r}; known are {', '.join(KINDS)}.")
        return Plan(tuple(KINDS[entry["kind"]].from_dict(entry) for entry in data["steps"]))
