"""Merge linearized layers and condensed neurons during training, check, and train on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from lightning_embed.callbacks import _trainer
from lightning_embed.callbacks.dashboards import send_merges
from lightning_embed.callbacks.history import RunHistory
from lightning_embed.callbacks.recording import StepRecording
from lightning_embed.errors import EmbeddingError, InputError
from lightning_embed.surgery import Criteria, Record, Tolerance, attach, merge
from lightning_embed.surgery.plan import describe_evidence
from lightning_embed.tape import Tape, deal

log = logging.getLogger(__name__)


class EmbeddingPruner(_trainer.Callback):
    """Cut a network in training to the smaller network it has become, check that its function is kept, train on.

    Training steps are recorded during an epoch; at the start of the next one, what the criteria nominate is merged, one
    by one: half of the recorded steps fit, the other half decide, and a merge that changes the outputs by more than
    the tolerance is undone bit for bit. The optimizer objects, their groups and their state are kept (see
    `lightning_embed.surgery.optimizer`), so schedulers go on as planned.

    What happened is in `records`, in the run's log folder as `merges.jsonl` and in its `history.jsonl`, in the
    loggers that take text (TensorBoard, W&B, MLflow, Comet), and in every checkpoint. Checkpoints
    describe their own architecture: they load into a model built at its original size.

    Args:
        criteria: thresholds that nominate.
        tolerance: the bound that decides, per merging event.
        start: nothing is merged before; a share of the planned training (float in 0..1) or an epoch (int). Early in
            training a small-initialised network is linear in every layer, and merging then would take depth that
            training has yet to use. With no planned end an int is required.
        every_n_epochs: epochs between merging events.
        calibration_samples: samples recorded per epoch, at most; spread evenly over the epoch.
        calibration_mib: memory for them, in MiB.
        seed: of the random combination of outputs that weights the fits; every event draws from (seed, step).

    Raises:
        InputError: an argument is out of range, or `start` lies past the planned end.
        MisconfigurationException: at setup, beside what cannot follow a merge (several processes, sharded
            parameters, callbacks that keep copies or masks of the parameters).

    >>> EmbeddingPruner(start=10).start
    10
    """

    def __init__(
        self,
        criteria: Criteria | None = None,
        tolerance: Tolerance | None = None,
        start: int | float = 0.5,  # noqa: PYI041  # LightningCLI would turn an epoch into a float
        every_n_epochs: int = 1,
        calibration_samples: int = 4096,
        calibration_mib: float = 256.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(start, bool) or not isinstance(start, (int, float)) or not start >= 0:
            raise InputError(f"EmbeddingPruner(start=…) must be a share of training or an epoch, got {start!r}.")
        if isinstance(start, float) and start >= 1.0:
            raise InputError(
                f"EmbeddingPruner(start={start}) as a float is a share of the planned training and must be below 1; "
                "give an int for an epoch."
            )
        for name, value in {
            "every_n_epochs": every_n_epochs,
            "calibration_samples": calibration_samples,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"EmbeddingPruner({name}=…) must be a positive integer, got {value!r}.")
        if not calibration_mib > 0:
            raise InputError(f"EmbeddingPruner(calibration_mib=…) must be positive, got {calibration_mib!r}.")
        self.criteria = criteria or Criteria()
        self.tolerance = tolerance or Tolerance()
        self.start = start
        self.every_n_epochs = every_n_epochs
        self.calibration_samples = calibration_samples
        self.calibration_mib = calibration_mib
        self.seed = seed
        self.records: list[Record] = []
        self._start_epoch = 0
        self._tapes: list[Tape] = []
        self._recording = StepRecording()
        self._groups: _trainer.Groups | None = None
        self._due = False
        self._history = RunHistory()

    # when

    def should_merge(self, trainer: Any, pl_module: Any) -> bool:
        """Whether to merge at the start of this epoch. Override it to decide otherwise."""
        del pl_module
        since = trainer.current_epoch - self._start_epoch
        return bool(since >= 0 and since % self.every_n_epochs == 0)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let checkpoints describe themselves; refuse what cannot work; begin anew, as one may serve several fits."""
        attachment = attach(pl_module)
        if stage == "fit":
            _trainer.check_supported(trainer)
            self.records = [Record.from_dict(record) for record in attachment.history]
            self._tapes, self._groups = [], None
            self._due, self._recording = False, StepRecording()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """After a resume, bind the optimizers' groups by name, before their state is loaded."""
        if self._groups is not None:
            _trainer.rebind_groups(trainer, pl_module, self._groups)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Resolve `start` against the planned end."""
        planned = _trainer.planned_epochs(trainer, pl_module)
        if isinstance(self.start, float):
            if planned is None:
                raise InputError(
                    f"EmbeddingPruner(start={self.start}) is a share of the planned training, but this Trainer has no "
                    "planned end; give an int, the epoch from which on to merge."
                )
            self._start_epoch = round(self.start * planned)
        else:
            self._start_epoch = self.start
        if planned is not None and self._start_epoch >= planned:
            raise InputError(
                f"EmbeddingPruner(start={self.start}) begins at epoch {self._start_epoch}, past the end of a training "
                f"of {planned:g} epochs; nothing would ever be merged."
            )
        self._groups = _trainer.group_names(trainer, pl_module)
        self._history = RunHistory()
        self._history.begin(trainer, pl_module, {"criteria": self.criteria, "tolerance": self.tolerance})
        self._history.earlier(self.records)

    # record

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Record this step, when it is one of those spread over the epoch."""
        del batch
        if trainer.current_epoch + 1 < self._start_epoch or self._full():
            return
        stride = 1
        batches = trainer.num_training_batches
        if self._tapes and batches != float("inf"):
            wanted = max(2, self.calibration_samples // max(1, self._tapes[0].samples))
            stride = max(1, int(batches) // wanted)
        if batch_idx % stride == 0:
            self._recording.start(pl_module)

    def _full(self) -> bool:
        samples = sum(tape.samples for tape in self._tapes)
        size = sum(tape.nbytes for tape in self._tapes)
        return samples >= self.calibration_samples or size >= self.calibration_mib * 2**20

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        del trainer, loss
        if pl_module.automatic_optimization:
            self._recording.stop()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the tape of this step."""
        del trainer, pl_module, outputs, batch, batch_idx
        self._recording.stop()
        tape = self._recording.take()
        if tape is not None:
            self._tapes.append(tape)

    # merge

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge, on what the last epoch recorded; after a resume, as soon as something was."""
        tapes, self._tapes = self._tapes, []
        self._due = self.should_merge(trainer, pl_module) or self._due
        if not self._due:
            return
        fit, decide = deal(tapes)
        if not decide:
            log.info("Epoch %d: no merging, no training step has been recorded yet.", trainer.current_epoch)
            return
        self._due = False
        self._merge(trainer, pl_module, fit, decide)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """A step that was skipped has no end of its own."""
        del trainer, pl_module
        self._recording.stop()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Let go of what was recorded."""
        del trainer, pl_module
        self._tapes, self._recording = [], StepRecording()
        self._history.end("finished")
        self._history = RunHistory()

    def _merge(self, trainer: Any, pl_module: Any, fit: Sequence[Tape], decide: Sequence[Tape]) -> None:
        history = attach(pl_module).history
        known = len(history)
        event = self._history.event(pl_module, fit, decide, self.criteria.condensation)
        try:
            with _trainer.unlogged(pl_module):
                _, records = merge(
                    pl_module,
                    fit,
                    decide,
                    criteria=self.criteria,
                    tolerance=self.tolerance,
                    seed=1_000_003 * self.seed + trainer.global_step,
                    optimizers=trainer.optimizers,
                    epoch=trainer.current_epoch,
                    step=trainer.global_step,
                )
        except EmbeddingError as error:
            self._recording.warn(f"Epoch {trainer.current_epoch}: nothing more can be merged", error)
            records = [Record.from_dict(one) for one in history[known:]]  # what was merged before it failed
        self.records.extend(records)
        self._groups = _trainer.group_names(trainer, pl_module)
        self._write(trainer, records)
        event.end(records)
        if trainer.is_global_zero:
            send_merges(trainer.loggers, records, self.records, _trainer.step_axis(trainer))
        for record in records:
            if record.done:
                _trainer.tell(
                    trainer,
                    f"Epoch {record.epoch}: merged {record.layer} ({record.criterion}), width {record.width[0]} → "
                    f"{record.width[1]}, change {record.change:.4f} [{describe_evidence(record.evidence)}]",
                )

    def _write(self, trainer: Any, records: Sequence[Record]) -> None:
        directory = _trainer.log_directory(trainer)
        if directory is None or not records:
            return
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "merges.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record.to_dict()) + "\n" for record in records)

    # checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Records and the names of the parameters in the optimizers' groups, as plain data."""
        return {"records": [record.to_dict() for record in self.records], "groups": self._groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint recorded."""
        self.records = [Record.from_dict(record) for record in state_dict["records"]]
        self._groups = state_dict["groups"]

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        del trainer, pl_module
        self._recording.stop()
        self._history.end(f"stopped by {type(exception).__name__}")
