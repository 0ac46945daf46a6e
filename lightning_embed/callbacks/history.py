"""What the callbacks write into the history of a run: on rank 0, and never to the harm of training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from lightning_embed.callbacks._trainer import is_sharded, log_directory, unlogged
from lightning_embed.errors import EmbeddingError
from lightning_embed.graph import observe
from lightning_embed.reporting.environment import environment
from lightning_embed.reporting.history import NAME, HistoryFile, rounded, snapshot_entry
from lightning_embed.surgery import Record, Snapshot, snapshot
from lightning_embed.surgery.persist.snapshot import agreement
from lightning_embed.tape import Tape

COMPARED = 12  # layers whose similarities are written when nothing was merged

log = logging.getLogger(__name__)


class RunHistory:
    """The history of one fit, as one callback writes it.

    Until `begin`, on other ranks than 0 and where nothing is logged, every method does nothing.
    """

    def __init__(self) -> None:
        self.file: HistoryFile | None = None
        self._trainer: Any = None
        self._tape: Tape | None = None  # the same for all looks, so that their times can be compared

    def begin(self, trainer: Any, module: nn.Module, settings: Mapping[str, Any]) -> None:
        """Open the file in the run's log folder and write where the fit begins. Every rank has to call.

        Args:
            trainer: of the fit.
            module: what is trained.
            settings: options of the callback, by name.
        """
        directory = log_directory(trainer)  # asks all ranks
        dry = any(type(one).__name__ == "DummyLogger" for one in trainer.loggers)  # a search for a rate, fast_dev_run
        if directory is None or dry or not trainer.is_global_zero:
            return
        self.file, self._trainer = HistoryFile(directory / NAME), trainer
        self.add(
            "start",
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            model=type(module).__name__,
            environment=environment(),
            settings={name: _plain(value) for name, value in settings.items()},
        )
        self.file.flush()

    def add(self, event: str, *, at: int | None = None, **data: Any) -> None:
        """Add an entry at the present step, or at another."""
        if self.file is not None:
            step = self._trainer.global_step if at is None else at
            self.file.add(event, step=int(step), epoch=int(self._trainer.current_epoch), **data)

    def flush(self) -> None:
        """Write out what is buffered."""
        if self.file is not None:
            self.file.flush()

    def sample(self, step: int, metrics: Mapping[str, float], outputs: Any) -> None:
        """Metrics of a sampled step, and the loss of its batch."""
        if self.file is not None:
            loss = batch_loss(outputs, self._trainer)
            self.add("sample", at=step, values=rounded({**metrics, **({} if loss is None else {"loss": loss})}))

    def epoch(self, ours: Mapping[str, float], widths: Mapping[str, int]) -> None:
        """Metrics of an epoch: ours, the width of every layer, and whatever the training itself has logged."""
        if self.file is None:
            return
        theirs = own_metrics(self._trainer.callback_metrics)
        neurons = {f"neurons/{layer}": float(width) for layer, width in widths.items()}
        self.add("epoch", values=rounded({**ours, **neurons}), metrics=rounded(theirs))
        self.flush()

    def look(self, when: str, module: nn.Module, tape: Tape | None, threshold: float | None) -> None:
        """A snapshot of the model at the start or the end, or now, on the first tape that there was."""
        if self.file is None or tape is None or (when == "start" and self._tape is not None):
            return
        if is_sharded(self._trainer):
            return  # this process cannot run the model alone
        self._tape = self._tape or tape
        shot = take(module, [self._tape], (), threshold)
        if shot is not None:
            few = {one.layer for one in shot.similarity[:COMPARED]}
            self.add("snapshot", when=when, snapshot=snapshot_entry(shot, set() if when == "start" else few))
            self.flush()

    def event(
        self, module: nn.Module, fit: Sequence[Tape], decide: Sequence[Tape], threshold: float | None
    ) -> MergingEvent:
        """Look at the model right before a merging event; its `end` writes down what became of it."""
        return MergingEvent(self, module, fit, decide, threshold)

    def earlier(self, records: Sequence[Record]) -> None:
        """What was merged before a resume, which may write into a new folder."""
        if self.file is not None and self._trainer.global_step:
            for record in records:
                self.add("merge", record=record.to_dict())
            self.flush()

    def end(self, status: str) -> None:
        """The last entry."""
        self.add("end", status=status)
        self.flush()


class MergingEvent:
    """A merging event, from right before it to right after.

    Args:
        history: where it is written.
        module: what is merged.
        fit: tapes of which the first is timed.
        decide: tapes on which predictions are compared.
        threshold: smallest similarity within a group of neurons.
    """

    def __init__(
        self,
        history: RunHistory,
        module: nn.Module,
        fit: Sequence[Tape],
        decide: Sequence[Tape],
        threshold: float | None,
    ) -> None:
        self._history, self._module = history, module
        self._tapes, self._threshold = (fit, decide), threshold
        self._was = self._look()

    def _look(self) -> Snapshot | None:
        if self._history.file is None:
            return None
        return take(self._module, *self._tapes, self._threshold)

    def end(self, records: Sequence[Record]) -> None:
        """Write down what was nominated, and the model before and after where anything was merged."""
        history = self._history
        for record in records:
            history.add("merge", record=record.to_dict())
        became = self._look() if any(record.done for record in records) else None
        if self._was is not None and became is not None:
            layers = {record.layer for record in records if record.done and record.kind == "neurons"}
            history.add("snapshot", when="before", snapshot=snapshot_entry(self._was, layers))
            history.add("snapshot", when="after", snapshot=snapshot_entry(became, layers))
            counts = agreement(self._was, became)
            if counts is not None:
                history.add("agreement", counts=counts)
        history.flush()


def take(module: nn.Module, fit: Sequence[Tape], decide: Sequence[Tape], threshold: float | None) -> Snapshot | None:
    """A snapshot, or None where the model allows none: whoever writes a history must not end a training."""
    try:
        with unlogged(module):
            return snapshot(module, observe(module, fit), fit, decide, threshold=threshold)
    except EmbeddingError as error:
        log.debug("No snapshot for the history: %s", error)
        return None


def batch_loss(outputs: Any, trainer: Any) -> float | None:
    """The loss of a training batch, from what `training_step` returned (Lightning divides it by the accumulation)."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return float(loss) * int(trainer.accumulate_grad_batches)
    return own_metrics(trainer.callback_metrics).get("loss")


def own_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """What the training itself has logged, without the metrics of the monitor; of an epoch the mean alone.

    >>> own_metrics({"mpc/net.0": 0.9, "loss": 1.0, "loss_step": 1.0, "loss_epoch": 2.0, "accuracy": 0.5})
    {'loss_epoch': 2.0, 'accuracy': 0.5}
    """
    monitors = {name for name in logged if name.startswith(("mpc/", "grad_norm/", "width/", "splitting/"))}
    monitors |= {"depth", "width", "linear_layers", "tangent_rank", "tangent_rows"}
    return {
        name: float(value)
        for name, value in logged.items()
        if name not in monitors and not name.endswith("_step") and f"{name}_epoch" not in logged
    }


def _plain(value: Any) -> Any:
    """An option as plain data; a function by its name, another object by that of its class."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(one) for name, one in vars(value).items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return getattr(value, "__name__", type(value).__name__)
