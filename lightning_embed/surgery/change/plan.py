"""What is to be done and what was done, as plain data: plan and records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from lightning_embed.graph import legend


@dataclass(frozen=True, eq=False)
class LayerMerge:
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
    """

    layer: str
    consumers: tuple[str, ...]
    region_modules: tuple[str, ...]
    slope: Tensor
    intercept: Tensor
    input_power: Tensor
    feature_power: float
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "layer"


@dataclass(frozen=True, eq=False)
class NeuronMerge:
    """Keep some neurons of a layer and rewrite its consumers for the others.

    The features φ of all neurons are taken to be mix · φ_kept + shift, so W₂′ = W₂ · mix, b₂′ = b₂ + W₂ · shift.

    Attributes:
        layer: qualified name of the Linear whose neurons are merged.
        consumers: names of the Linears that read it.
        per_neuron: (tensor name, dimension) of parameters and buffers in between that are cut with the neurons.
        kept: increasing indices of the neurons that stay.
        mix: shape (width, kept).
        shift: shape (width,).
        criterion: "null", "condensation", "span" or "size".
        evidence: what nominated it.
    """

    layer: str
    consumers: tuple[str, ...]
    per_neuron: tuple[tuple[str, int], ...]
    kept: tuple[int, ...]
    mix: Tensor
    shift: Tensor
    criterion: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "neurons"

    @property
    def width(self) -> int:
        """Number of neurons before."""
        return int(self.mix.shape[0])


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Add small corrections to Linears so that they put out again what they did before the merges.

    W′ = W + ΔW and b′ = b + Δb (see `lightning_embed.statistics.reconstruct`); shapes stay.

    Attributes:
        layers: qualified names of the Linears, in the order in which they are corrected.
        weights: ΔW of each, shape (fan_out, fan_in).
        biases: Δb of each, shape (fan_out,); zeros where the Linear has no bias.
        evidence: the change of the outputs that called for it.
    """

    layers: tuple[str, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "reconstruction"

    @property
    def layer(self) -> str:
        """The names as one text."""
        return ", ".join(self.layers)


Step = LayerMerge | NeuronMerge | Reconstruction


def plain(value: Any) -> Any:
    """A value as lists, dictionaries, numbers, strings and None, which is what JSON can hold."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value  # strict JSON has no such numbers


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
        return "\n".join(f"{number}. {describe(step)}" for number, step in enumerate(self.steps, 1))

    def to_dict(self) -> dict[str, Any]:
        """The plan as lists, numbers, strings and None (for NaN)."""
        return {"steps": [plain(vars(step)) for step in self.steps]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        return Plan(tuple(_step(entry) for entry in data["steps"]))


def _evidence(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in entry.items()}


def _step(entry: Mapping[str, Any]) -> Step:
    def tensor(name: str) -> Tensor:
        return torch.tensor(entry[name], dtype=torch.float64)

    def tensors(name: str) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(one, dtype=torch.float64) for one in entry[name])

    if entry["kind"] == "reconstruction":
        return Reconstruction(
            tuple(entry["layers"]), tensors("weights"), tensors("biases"), _evidence(entry["evidence"])
        )
    common: dict[str, Any] = {
        "layer": entry["layer"],
        "consumers": tuple(entry["consumers"]),
        "evidence": _evidence(entry["evidence"]),
    }
    if entry["kind"] == "layer":
        return LayerMerge(
            region_modules=tuple(entry["region_modules"]),
            slope=tensor("slope"),
            intercept=tensor("intercept"),
            input_power=tensor("input_power"),
            feature_power=float(entry["feature_power"]),
            **common,
        )
    shift = tensor("shift")
    kept = tuple(entry["kept"])
    return NeuronMerge(
        per_neuron=tuple((name, dim) for name, dim in entry["per_neuron"]),
        kept=kept,
        mix=tensor("mix").reshape(len(shift), len(kept)),
        shift=shift,
        criterion=entry["criterion"],
        **common,
    )


def describe(step: Step) -> str:
    """One line that tells what a step does and why it was nominated."""
    if isinstance(step, Reconstruction):
        what = f"correct {step.layer}"
    elif isinstance(step, LayerMerge):
        what = f"merge layer {step.layer} ({len(step.slope)} neurons) into {', '.join(step.consumers)}"
    else:
        verb = "drop null neurons of" if step.criterion == "null" else "merge neurons of"
        what = f"{verb} {step.layer}: {step.width} → {len(step.kept)}"
    return f"{what}  [{describe_evidence(step.evidence)}]"


def describe_evidence(evidence: Mapping[str, Any]) -> str:
    """Evidence as `key value` pairs, numbers in four significant digits.

    >>> describe_evidence({"mpc": 0.99412345, "fit": "weighted"})
    'mpc 0.9941, fit weighted'
    """
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in evidence.items()
    )


@dataclass(frozen=True)
class Record:
    """One merge that was considered: done or refused, from what evidence, with what effect, and why.

    Attributes:
        kind: "layer", "neurons" or "reconstruction".
        layer: qualified name (of a reconstruction several).
        criterion: "linearization", "condensation", "span", "null", "size" or "reconstruction".
        done: whether the model was changed.
        reason: why it was refused; empty when done.
        evidence: what nominated it.
        change: cumulative change of the outputs on the deciding data with this merge in place (NaN: not tried).
        agreement: share of equal arg-max there.
        metric: the user's own measure (at the start, with this merge in place); None where it was not taken.
        width: neurons of the layer (before, after); 0 of a reconstruction, which cuts none.
        parameters: parameters of the whole model (before, after) when done.
        epoch: epoch of training at whose start it was considered; None outside training.
        step: optimizer steps made by then; None outside training.
    """

    kind: str
    layer: str
    criterion: str
    done: bool
    reason: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    change: float = math.nan
    agreement: float = math.nan
    metric: tuple[float, float] | None = None
    width: tuple[int, int] = (0, 0)
    parameters: tuple[int, int] = (0, 0)
    epoch: int | None = None
    step: int | None = None

    @property
    def verdict(self) -> str:
        """One word: merged, corrected or refused."""
        if not self.done:
            return "refused"
        return "corrected" if self.kind == "reconstruction" else "merged"

    @staticmethod
    def of(
        merge: Step, *, reason: str = "", change: float = math.nan, agreement: float = math.nan, **rest: Any
    ) -> Record:
        """The record of a step: done, or refused for a reason."""
        if isinstance(merge, Reconstruction):
            criterion, before, after = "reconstruction", 0, 0
        elif isinstance(merge, LayerMerge):
            criterion, before, after = "linearization", len(merge.slope), 0
        else:
            criterion, before, after = merge.criterion, merge.width, len(merge.kept)
        return Record(
            kind=merge.kind,
            layer=merge.layer,
            criterion=criterion,
            done=not reason,
            reason=reason,
            evidence=dict(merge.evidence),
            change=change,
            agreement=agreement,
            width=(before, before if reason else after),
            **rest,
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as lists, numbers, strings and None (for NaN and infinite ones)."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`."""
        known = dict(data)
        for name in ("change", "agreement"):
            known[name] = math.nan if data[name] is None else data[name]
        if data.get("metric") is not None:
            known["metric"] = tuple(math.nan if one is None else one for one in data["metric"])
        known["evidence"] = _evidence(data["evidence"])
        known["width"], known["parameters"] = tuple(data["width"]), tuple(data["parameters"])
        return Record(**known)


def records_table(records: Sequence[Record]) -> str:
    """The records as an aligned text table."""
    training = any(record.epoch is not None for record in records)
    measured = any(record.metric is not None for record in records)
    rows = [
        [
            *([record.epoch] if training else []),
            record.verdict,
            record.layer,
            record.criterion,
            f"{record.width[0]} → {record.width[1]}" if any(record.width) else "",
            describe_evidence(record.evidence),
            "" if math.isnan(record.change) else f"{record.change:.4f}",
            "" if math.isnan(record.agreement) else f"{record.agreement:.4f}",
            *(["" if record.metric is None else "{:.4f} → {:.4f}".format(*record.metric)] if measured else []),
            record.reason,
        ]
        for record in records
    ]
    heads = [
        *(["epoch"] if training else []),
        "",
        "layer",
        "criterion",
        "width",
        "evidence",
        "change",
        "agreement",
        *(["metric"] if measured else []),
        "why not",
    ]
    table = str(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
    return "\n".join([table, *legend(record.reason for record in records)])
