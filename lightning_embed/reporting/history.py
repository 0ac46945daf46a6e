"""The history of a run: one JSON object a line, only ever appended to, readable while the run goes on.

Every line has an `event`, a `step` (optimizer steps made by then) and an `epoch`:

- `start`: a fit begins or is resumed, with `time`, `model`, `environment` and `settings`;
- `sample`: `values` of the monitor's metrics at a sampled step, and `loss`;
- `epoch`: `values` at the end of an epoch (widths), and `metrics` that the training itself has logged;
- `merge`: a `record` of what was done or refused (`Record.to_dict`);
- `snapshot`: `when` it was taken, and the model's size, layers, latency and similarities (`snapshot_entry`);
- `agreement`: `counts` of the classes predicted before (rows) and after (columns) a merging event;
- `end`: the `status` with which the fit ended.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lightning_embed.errors import InputError
from lightning_embed.reporting.curves import Curve
from lightning_embed.reporting.environment import environment
from lightning_embed.surgery import Measurement, Record, Result, Size, Snapshot
from lightning_embed.surgery.change.step import plain
from lightning_embed.surgery.persist.snapshot import LayerShape, Similarity, agreement

NAME = "history.jsonl"
SECONDS = 5.0  # entries are written out at least as often, if any come

log = logging.getLogger(__name__)


class HistoryFile:
    """Where a run writes its history. Entries are buffered; what was written out is never touched again.

    A line that a crash has torn stays alone on its line, where `read_history` passes over it. A disk that is full or
    gone is no reason to end a training: a warning says that the history ends here.

    Args:
        path: the file; it is made with the first entry, or appended to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[str] = []
        self._flushed = time.monotonic()
        self._opened = self._failed = False

    def add(self, event: str, *, step: int, epoch: int, **data: Any) -> None:
        """Add an entry; NaN and infinite numbers become null."""
        if self._failed:
            return
        entry = {"event": event, "step": step, "epoch": epoch, **data}
        self._lines.append(json.dumps(plain(entry), allow_nan=False, separators=(",", ":"), default=str))
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write out what is buffered."""
        if not self._lines or self._failed:
            return
        text = "".join(f"{line}\n" for line in self._lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._opened and _torn(self.path):
                text = "\n" + text
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self._failed = True
            log.warning("The history of this run ends here, %s cannot be written: %s", self.path.name, error)
        self._opened, self._lines, self._flushed = True, [], time.monotonic()


def _torn(path: Path) -> bool:
    """Whether a file ends in the middle of a line."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Values in seven significant digits, as many as single precision holds."""
    return {name: float(f"{value:.7g}") for name, value in values.items()}


def snapshot_entry(shot: Snapshot, layers: set[str] | None = None) -> dict[str, Any]:
    """A snapshot as plain data, with the similarities of some layers (None: of all); without predictions."""
    return {
        "size": asdict(shot.size),
        "layers": [asdict(one) for one in shot.layers],
        "latency": shot.latency,
        "samples": shot.samples,
        "device": shot.device,
        "similarity": [
            {
                **{name: getattr(one, name) for name in ("layer", "neurons", "groups", "absolute")},
                "cosine": base64.b64encode(one.cosine.contiguous().numpy().tobytes()).decode(),
            }
            for one in shot.similarity
            if layers is None or one.layer in layers
        ],
    }


def _snapshot(entry: Mapping[str, Any]) -> Snapshot:
    """The inverse of `snapshot_entry`."""
    similarities = []
    for one in entry["similarity"]:
        shown = sum(one["groups"])
        cosine = torch.frombuffer(bytearray(base64.b64decode(one["cosine"])), dtype=torch.int8).reshape(shown, shown)
        similarities.append(
            Similarity(str(one["layer"]), int(one["neurons"]), tuple(one["groups"]), bool(one["absolute"]), cosine)
        )
    shapes = [
        LayerShape(**{**one, "consumers": tuple(one["consumers"]), "between": tuple(one["between"])})
        for one in entry["layers"]
    ]
    latency = math.nan if entry["latency"] is None else float(entry["latency"])
    return Snapshot(
        Size(**entry["size"]), tuple(shapes), latency, int(entry["samples"]), str(entry["device"]), tuple(similarities)
    )


@dataclass(frozen=True, eq=False)
class Moment:
    """A snapshot in the course of a run; `when` is "start", "before" or "after" merges, "now" or "end"."""

    when: str
    step: int | None
    epoch: int | None
    snapshot: Snapshot


@dataclass(frozen=True, eq=False)
class Agreement:
    """Which classes were predicted before and after the merges of an event: counts, rows before, columns after."""

    step: int | None
    epoch: int | None
    counts: tuple[tuple[int, ...], ...]

    @property
    def samples(self) -> int:
        """Number of predictions."""
        return sum(map(sum, self.counts))

    @property
    def share(self) -> float:
        """Share of equal predictions; NaN of none."""
        equal = sum(row[at] for at, row in enumerate(self.counts))
        return equal / self.samples if self.samples else math.nan


@dataclass(frozen=True, eq=False)
class History:
    """What is known of a run, or of an offline pruning.

    Attributes:
        title: class of the model.
        began: when it began or was made, in ISO 8601; empty if not known.
        status: "finished", "running or cut off", or how it ended.
        settings: criteria, tolerance and other options by name.
        environment: versions and device (`environment`).
        curves: what the monitor measured, by metric ("mpc/net.0", "grad_norm/l1", "loss", "neurons/net.0", …).
        metrics: the user's own metrics at the ends of epochs.
        records: everything nominated, in order.
        moments: snapshots in order.
        agreements: of the merging events.
        measured: what the hidden layers measured (before, after); None of a run, whose curves show it.
        damaged: number of lines that could not be read.
    """

    title: str = "model"
    began: str = ""
    status: str = "running or cut off"
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    metrics: dict[str, Curve] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    moments: tuple[Moment, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    measured: tuple[Measurement, Measurement] | None = None
    damaged: int = 0

    @property
    def merges(self) -> tuple[Record, ...]:
        """The records of what was done."""
        return tuple(record for record in self.records if record.done)

    @property
    def was(self) -> Snapshot | None:
        """The first snapshot."""
        return self.moments[0].snapshot if self.moments else None

    @property
    def became(self) -> Snapshot | None:
        """The last snapshot."""
        return self.moments[-1].snapshot if self.moments else None

    def series(self, prefix: str) -> dict[str, Curve]:
        """The curves of every layer under a prefix such as "mpc/"."""
        return {name.removeprefix(prefix): curve for name, curve in self.curves.items() if name.startswith(prefix)}

    @property
    def merge_steps(self) -> list[int]:
        """The steps at which something was merged, each once."""
        return sorted({record.step for record in self.merges if record.step is not None})

    def similarities(self) -> list[list[tuple[str, Similarity]]]:
        """Of every layer whose neurons were merged the similarities before and after; if there is none, the latest."""
        before: dict[str, tuple[str, Similarity]] = {}
        after: dict[str, tuple[str, Similarity]] = {}
        latest: dict[str, tuple[str, Similarity]] = {}
        for moment in self.moments:
            when = moment.when if moment.epoch is None else f"{moment.when} (epoch {moment.epoch})"
            for one in moment.snapshot.similarity:
                latest[one.layer] = (when, one)
                if moment.when == "before":
                    before.setdefault(one.layer, (when, one))
                elif moment.when == "after":
                    after[one.layer] = (when, one)
        merged = {record.layer for record in self.merges if record.kind == "neurons"}
        pairs = [[before[name], after[name]] for name in after if name in merged and name in before]
        return pairs or [[one] for one in latest.values()]

    def threshold(self, criterion: str) -> float | None:
        """A threshold of the criteria, if it is known."""
        value = (self.settings.get("criteria") or {}).get(criterion)
        return float(value) if isinstance(value, (int, float)) else None


def history_of(result: Result) -> History:
    """What `prune` did, as a history without a course of time."""
    was, became = result.snapshots
    counts = agreement(was, became)
    return History(
        title=type(result.model).__name__,
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        status="finished",
        environment=environment(),
        records=result.records,
        moments=(Moment("before", None, None, was), Moment("after", None, None, became)),
        agreements=() if counts is None else (Agreement(None, None, tuple(map(tuple, counts.tolist()))),),
        measured=(result.before, result.after),
    )


def read_history(path: Path | str) -> History:
    """Read the history of a run, finished or not.

    After a resume, what was recorded past the step of its checkpoint is superseded. Lines that are no JSON, as the
    last one of a run that was killed may be, are passed over and counted.

    Args:
        path: a run's log folder, or the file itself.

    Raises:
        InputError: there is no such file, or it holds no history; the message lists the histories nearby.
    """
    path = Path(path)
    file = path / NAME if path.is_dir() else path
    if not file.is_file():
        near = sorted(str(one.parent) for one in path.glob(f"**/{NAME}"))[:5] if path.is_dir() else []
        hint = f" There is one in {', '.join(near)}." if near else " EmbeddingMonitor and EmbeddingPruner write one."
        raise InputError(f"{path} holds no {NAME}.{hint}")
    reading = _Reading()
    for line in _lines(file):
        reading.take(line)
    if not reading.begun:
        raise InputError(f"{file} holds no history of a run that lightning-embed has written.")
    return reading.history()


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        yield from (line for line in lines if line.strip())


class _Reading:
    """A history in the making, line by line."""

    def __init__(self) -> None:
        self.begun = False
        self.damaged = 0
        self.start: dict[str, Any] = {}
        self.status = ""
        self.samples: dict[str, Curve] = {}
        self.epochs: dict[str, Curve] = {}
        self.metrics: dict[str, Curve] = {}
        self.records: dict[str, Record] = {}  # by their text: a resume tells again what came before it
        self.moments: list[Moment] = []
        self.agreements: list[Agreement] = []

    def take(self, line: bytes) -> None:
        """Take in a line; one that is damaged is counted."""
        try:
            entry = json.loads(line)
            handler = {
                "start": self._start,
                "sample": self._sample,
                "epoch": self._epoch,
                "merge": self._merge,
                "snapshot": self._moment,
                "agreement": self._agreement,
                "end": self._end,
            }[entry["event"]]
            handler(int(entry["step"]), entry)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            self.damaged += 1

    def _start(self, step: int, entry: dict[str, Any]) -> None:
        began = self.start.get("began") if step and self.begun else None  # a resume goes on with what began earlier
        settings = {**self.start.get("settings", {}), **entry["settings"]}
        self.start = {**entry, "settings": settings, "began": began or entry["time"]}
        self.begun, self.status = True, ""
        for curve in self.samples.values():
            curve.cut(step)
        for curve in (*self.epochs.values(), *self.metrics.values()):
            curve.cut(step + 1)  # an epoch that ends at this step is in the checkpoint, a step that begins here is not
        self.records = {told: one for told, one in self.records.items() if one.step is None or one.step < step}
        self.agreements = [one for one in self.agreements if one.step is None or one.step < step]
        self.moments = [
            one for one in self.moments if one.step is None or one.step + (one.when in {"before", "after"}) <= step
        ]

    @staticmethod
    def _add(curves: dict[str, Curve], step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            curve = curves.get(name)
            if curve is None:
                curve = curves[name] = Curve()
            curve.set(step, math.nan if value is None else float(value))

    def _sample(self, step: int, entry: dict[str, Any]) -> None:
        self._add(self.samples, step, entry["values"])

    def _epoch(self, step: int, entry: dict[str, Any]) -> None:
        self._add(self.epochs, step, entry["values"])
        self._add(self.metrics, step, entry["metrics"])

    def _merge(self, step: int, entry: dict[str, Any]) -> None:
        del step
        told = json.dumps(entry["record"], sort_keys=True)
        self.records.setdefault(told, Record.from_dict(entry["record"]))

    def _moment(self, step: int, entry: dict[str, Any]) -> None:
        if entry["when"] == "start" and self.moments:
            return  # of a process that went on from a checkpoint
        self.moments.append(Moment(str(entry["when"]), step, int(entry["epoch"]), _snapshot(entry["snapshot"])))

    def _agreement(self, step: int, entry: dict[str, Any]) -> None:
        self.agreements.append(Agreement(step, int(entry["epoch"]), tuple(map(tuple, entry["counts"]))))

    def _end(self, step: int, entry: dict[str, Any]) -> None:
        del step
        self.status = str(entry["status"])

    def history(self) -> History:
        """What was taken in."""
        curves = {name: one for name, one in {**self.samples, **self.epochs}.items() if len(one)}
        return History(
            title=str(self.start.get("model", "model")),
            began=str(self.start["began"]),
            status=self.status or "running or cut off",
            settings=self.start["settings"],
            environment={str(name): str(value) for name, value in self.start.get("environment", {}).items()},
            curves=curves,
            metrics={name: one for name, one in self.metrics.items() if len(one)},
            records=tuple(self.records.values()),
            moments=tuple(self.moments),
            agreements=tuple(self.agreements),
            damaged=self.damaged,
        )
