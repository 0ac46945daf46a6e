"""What was done to a model and what was considered and refused, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

from lightning_embed.graph import legend
from lightning_embed.surgery.change.step import Step, describe_evidence, evidence_from, plain


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
        error: standard error of `change`, over the samples that decide.
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
    error: float = math.nan

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
        before, after = merge.widths
        return Record(
            kind=merge.kind,
            layer=merge.layer,
            criterion=merge.criterion,
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
        for name in ("change", "agreement", "error"):
            known[name] = math.nan if data.get(name) is None else data[name]
        if data.get("metric") is not None:
            known["metric"] = tuple(math.nan if one is None else one for one in data["metric"])
        known["evidence"] = evidence_from(data["evidence"])
        known["width"], known["parameters"] = tuple(data["width"]), tuple(data["parameters"])
        return Record(**known)


def _with_error(change: float, error: float) -> str:
    """A change and its error; the error is left out where it would be zeros.

    >>> _with_error(0.0412, 0.0021), _with_error(0.0412, float("nan")), _with_error(0.0, 0.0)
    ('0.0412 ± 0.0021', '0.0412', '0.0000')
    """
    if math.isnan(change):
        return ""
    return f"{change:.4f} ± {error:.4f}" if error >= 0.5e-4 else f"{change:.4f}"


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
            _with_error(record.change, record.error),
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
