"""Merge linearized layers and condensed neurons during training, check, and train on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lightning_embed.callbacks import _trainer
from lightning_embed.callbacks.dashboards import send_merges
from lightning_embed.callbacks.history import RunHistory
from lightning_embed.callbacks.recording import StepRecording, check_functions, without
from lightning_embed.callbacks.sharing import HasCriteria, shared_criteria
from lightning_embed.callbacks.together import Training, everywhere, gather, merge_together
from lightning_embed.callbacks.when import After, Once, When
from lightning_embed.errors import EmbeddingError, InputError
from lightning_embed.graph import Reason, excluded, is_layer
from lightning_embed.surgery import Criteria, Record, Tolerance, attach, detach, merge
from lightning_embed.surgery.nominate.sizes import Counted, check_sizes, size_asked_for
from lightning_embed.surgery.persist.checkpoint import is_attached
from lightning_embed.tape import Tape, deal, from_plain, to_plain
from lightning_embed.tape.tape import modules_by_name

log = logging.getLogger(__name__)

_LIVE = (
    "_tapes",
    "_saved",
    "_recording",
    "_groups",
    "_due",
    "_epoch",
    "_rest",
    "_resting",
    "_share",
    "_stopped",
    "_history",
    "_attached",
)

_TOLD = 6  # merges of an event that its line names


class EmbeddingPruner(HasCriteria, _trainer.Callback):
    """Cut a network in training to the smaller network it has become, check that its function is kept, train on.

    Training steps are recorded during an epoch; at the start of the next one, what the criteria nominate is merged, one
    by one: half of the recorded steps fit, the other half decide, and a merge that changes the outputs by more than
    the tolerance is undone bit for bit. The optimizer objects, their groups and their state are kept (see
    `lightning_embed.surgery.change.optimizer`), so schedulers go on as planned. Averaged copies of the weights follow.
    Under DDP the steps of all processes are merged on, by the first process, and the others become what it has become.

    What was merged is in `records` (with what the latest event refused) and in every checkpoint; what every event did
    and refused is in the run's log folder as `merges.jsonl` and in its `history.jsonl`, and in the loggers that take
    text (TensorBoard, W&B, MLflow, Comet). With `ddp_spawn`, `records` stays with the processes that trained;
    `lightning_embed.attach(model).history` comes back with the weights. Checkpoints describe their own architecture:
    they load into a model built at its original size. They also hold the calibration data recorded so far, so that a
    resumed run merges as an uninterrupted one would.

    With `budget` or `widths` the network is cut to that size instead, once and early, so that the rest of the training
    is that of a small network. The optimizers' state of what was changed begins anew then.

    Args:
        criteria: thresholds that nominate.
        tolerance: the bound that decides, per merging event; with a size there is none unless it is given.
        when: an object that says at the start of each epoch whether to merge: `After`, `Once`, `NearEnd`, `OnPlateau`,
            `NearCriticalPoint`, or one of your own (`When`). A share of the planned training (float in 0..1) or an
            epoch (int) stands for `After` that point, in every epoch, or, with a size, for `Once`. None: in every epoch
            of the second half, or, with a size, once after a tenth of the training.
        calibration_samples: samples recorded per epoch, at most, in all processes together; spread over the epoch.
        calibration_mib: memory for them, in MiB, in each process; under DDP the first one holds all of them while it
            merges, and the others wait: give the strategy a `timeout` that is longer than merging takes.
        checkpoint_mib: how much of them a checkpoint may hold, in MiB; with more, or with 0 where the data are private,
            it holds none, and a resumed run merges once it has recorded anew.
        rate_factor: multiplies all learning rates after an event that merged something (and where schedulers start
            from); 1 leaves them as they are. SGD near its largest stable rate needs about 0.25, because the loss
            becomes sharper as gradients of merged neurons add up; Adam needs none.
        seed: of the random combination of outputs that weights the fits; every event draws from (seed, step).
        output: which tensor(s) of what the recorded calls return are compared, (returned) → tensors; what is returned
            beside them, hidden layers for one, may change. By default those that lead to the loss.
        call: how to run the model on a batch, (module, batch) → outputs, where the training step cannot be recorded;
            by default the module's `calibration_step(batch)` if it has one, else the step itself is recorded.
        budget: share to leave at most of what `of` names, as in `lightning_embed.prune`; in place of criteria.
        of: what the budget counts: "parameters", "flops" or "latency".
        widths: number of neurons to leave in these layers, by name, as in `lightning_embed.prune`.
        include: the only layers that may be touched, as names or patterns, as in `lightning_embed.prune`. What no
            optimizer trains is never touched.
        exclude: layers that are not touched.

    Raises:
        InputError: an argument is out of range; at the start, when `when` cannot be met.
        MisconfigurationException: at setup, beside what cannot follow a merge (sharded parameters or optimizer state,
            callbacks that keep masks of the parameters).

    >>> EmbeddingPruner(when=10).when.every_n_epochs
    1
    >>> EmbeddingPruner(budget=0.25).when.first  # once, after a tenth of the training
    0.1
    """

    def __init__(
        self,
        criteria: Criteria | None = None,
        tolerance: Tolerance | None = None,
        when: int | float | When | None = None,  # noqa: PYI041  # LightningCLI would turn an epoch into a float
        calibration_samples: int = 4096,
        calibration_mib: float = 256.0,
        checkpoint_mib: float = 32.0,
        rate_factor: float = 1.0,
        seed: int = 0,
        output: Callable[[Any], Any] | None = None,
        call: Callable[[Any, Any], Any] | None = None,
        budget: float | None = None,
        of: Counted = "parameters",
        widths: Mapping[str, int] | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        check_functions("EmbeddingPruner", output=output, call=call)
        check_sizes(widths, budget, of)
        self.sizes = size_asked_for(widths, budget, of)
        if criteria is not None and self.sizes is not None:
            raise InputError(
                "criteria= nominates by thresholds, widths= and budget= ask for a size; give one of the two."
            )
        if not isinstance(calibration_samples, int) or calibration_samples < 1:
            raise InputError(
                f"EmbeddingPruner(calibration_samples=…) must be a positive integer, got {calibration_samples!r}."
            )
        if not calibration_mib > 0:
            raise InputError(f"EmbeddingPruner(calibration_mib=…) must be positive, got {calibration_mib!r}.")
        if not checkpoint_mib >= 0:
            raise InputError(f"EmbeddingPruner(checkpoint_mib=…) must be at least 0, got {checkpoint_mib!r}.")
        if not 0 < rate_factor <= 1:
            raise InputError(f"EmbeddingPruner(rate_factor=…) must be above 0 and at most 1, got {rate_factor!r}.")
        self.given_criteria = criteria
        self._criteria = criteria or Criteria()
        self.tolerance = tolerance or (Tolerance() if self.sizes is None else None)
        self.when = when if isinstance(when, When) else self._when(when)
        self.calibration_samples = calibration_samples
        self.calibration_mib = calibration_mib
        self.checkpoint_mib = checkpoint_mib
        self.rate_factor = rate_factor
        self.seed = seed
        self.include, self.exclude = include, exclude
        self.output, self.call = output, call
        self.records: list[Record] = []
        self._begin()

    def _when(self, start: float | None) -> When:
        if self.sizes is None:
            return After(0.5 if start is None else start)
        return Once(0.1 if start is None else start)

    def _begin(self) -> None:
        self._tapes: list[Tape] = []
        self._saved: list[list[Any]] = []  # what a checkpoint holds of them, by process
        self._recording = StepRecording(self.output, self.call)
        self._groups: _trainer.Groups | None = None
        self._due = False
        self._rest = self._resting = 0  # events to be left out after one in vain, and how many of them are to come
        self._epoch = -1  # the last one whose start was seen
        self._share = self.calibration_samples
        self._stopped = False
        self._attached = False  # whether it was this callback that attached the module
        self._history = RunHistory()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: the options and the records, and nothing of a training that is under way."""
        return without(self, _LIVE)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew with the same options."""
        vars(self).update(state)
        self._begin()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let checkpoints describe themselves; refuse what cannot work; begin anew, as one may serve several fits."""
        known = is_attached(pl_module)
        attachment = attach(pl_module)
        if stage == "fit":
            _trainer.check_supported(trainer, attached=known)
            for copy in _trainer.averaged_copies(trainer):
                attach(copy)
            self.records = [Record.from_dict(record) for record in attachment.history]
            self._criteria = shared_criteria(trainer, self)
            self.when.reset()
            self._begin()
        self._attached = not known

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave a module as it came where nothing was merged: packages pickle it whole."""
        del trainer, stage
        if self._attached and not attach(pl_module).architecture(pl_module):
            detach(pl_module)
        self._attached = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """After a resume, bind the optimizers' groups by name, before their state is loaded."""
        _trainer.check_optimizers(trainer)
        if self._groups is not None:
            _trainer.rebind_groups(trainer, pl_module, self._groups)
        excluded(pl_module, self.include, self.exclude)  # names that match nothing are told before training

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at the Trainer's plans, and take this process's part of the saved calibration data."""
        self.when.start(trainer, pl_module)
        self._groups = _trainer.group_names(trainer, pl_module)
        self._share = math.ceil(self.calibration_samples / trainer.world_size)
        for rank, tapes in enumerate(self._saved):
            if rank % trainer.world_size == trainer.global_rank:
                self._tapes.extend(from_plain(one, pl_module.device) for one in tapes)
        self._saved = []
        self._history.begin(trainer, pl_module, {"criteria": self.criteria, "tolerance": self.tolerance})
        self._history.earlier(self.records)

    # record

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Record this step, when it is one of those spread over the epoch."""
        if self._full() or self._resting or not (self._due or self.when.soon(trainer)):
            return
        stride = 1
        batches = trainer.num_training_batches
        if self._tapes and batches != float("inf"):
            wanted = max(2, self._share // max(1, self._tapes[0].samples))
            stride = max(1, int(batches) // wanted)
        if batch_idx % stride == 0:
            self._recording.start(pl_module, batch)

    def _full(self) -> bool:
        samples = sum(tape.samples for tape in self._tapes)
        return samples >= self._share or self._size >= self.calibration_mib * 2**20

    @property
    def _size(self) -> int:
        return sum(tape.nbytes for tape in self._tapes)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        del trainer
        self._recording.leads_to(loss)
        if pl_module.automatic_optimization:
            self._recording.stop()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the tape of this step."""
        del trainer, outputs, batch, batch_idx
        self._recording.stop()
        tape = self._recording.take(pl_module)
        self._recording.last = None  # the tapes are kept here
        if tape is not None:
            self._tapes.append(tape)

    # merge

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge, on what the last epoch recorded; without calibration data as soon as there are some."""
        if trainer.current_epoch == self._epoch:  # some versions of Lightning call it again after a resume in mid-epoch
            return
        self._epoch = trainer.current_epoch
        tapes, self._tapes = self._tapes, []
        now = trainer.is_global_zero and self.when(trainer, pl_module)
        now = _trainer.agreed(trainer, bool(now))
        if now and self._resting:
            self._resting, now = self._resting - 1, False
        self._due = self._due or now
        if not self._due:
            return
        records = self._merge_everywhere(trainer, pl_module, tapes)
        if records is None:
            log.info("Epoch %d: no merging, no training step has been recorded yet.", trainer.current_epoch)
            return
        self._due = False
        # a network in which nothing was found is not asked again at once, and each time in vain later
        self._rest = 0 if any(record.done for record in records) else 2 * self._rest + 1
        self._resting = self._rest
        self._note(trainer, pl_module, records)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Let `when` look at the epoch's metrics; a step that was skipped has no end of its own."""
        del pl_module
        self._recording.stop()
        if trainer.is_global_zero:  # some metrics are logged there alone
            self.when.observe(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the history."""
        del trainer, pl_module
        self._recording.stop()
        self._history.end("finished")
        self._history = RunHistory()

    def _merge_everywhere(self, trainer: Any, pl_module: Any, tapes: Sequence[Tape]) -> list[Record] | None:
        copies = _trainer.averaged_copies(trainer)

        def here(given: Sequence[Tape]) -> list[dict[str, Any]] | None:
            records = self._merge(trainer, pl_module, copies, given)
            return None if records is None else [record.to_dict() for record in records]

        if trainer.world_size == 1:
            records = self._merge(trainer, pl_module, copies, tapes)
            if any(record.done for record in records or ()):
                _trainer.wrap_again(trainer)  # Lightning wraps a single process too, where DDP is asked for
            return records
        training = Training(
            pl_module,
            copies,
            trainer.optimizers,
            names=lambda: _trainer.group_names(trainer, pl_module),
            bind=lambda groups, before: _trainer.rebind_groups(trainer, pl_module, groups, before),
        )
        found = merge_together(training, tapes, here)
        if found is None:
            return None
        if any(record["done"] for record in found):
            _trainer.wrap_again(trainer)
        return [Record.from_dict(record) for record in found]

    def _merge(
        self, trainer: Any, pl_module: Any, copies: Sequence[torch.nn.Module], tapes: Sequence[Tape]
    ) -> list[Record] | None:
        fit, decide = deal(tapes)
        if not decide:
            return None
        history = attach(pl_module).history
        known = len(history)
        event = self._history.event(pl_module, fit, decide, self.criteria.condensation)
        try:
            with _trainer.unlogged(pl_module):
                records = merge(
                    pl_module,
                    fit,
                    decide,
                    criteria=self.criteria if self.sizes is None else None,
                    tolerance=self.tolerance,
                    sizes=self.sizes,
                    left_alone=self._left_alone(trainer, pl_module),
                    anew=self.sizes is not None,  # after a deep cut the old second moments are too large
                    seed=1_000_003 * self.seed + trainer.global_step,
                    optimizers=trainer.optimizers,
                    copies=copies,
                    epoch=trainer.current_epoch,
                    step=trainer.global_step,
                    settle_norms=True,
                ).records
        except EmbeddingError as error:
            self._recording.warn(f"Epoch {trainer.current_epoch}: nothing more can be merged", error)
            records = [Record.from_dict(one) for one in history[known:]]  # what was merged before it failed
        event.end(records)
        return records

    def _left_alone(self, trainer: Any, pl_module: Any) -> dict[str, Reason]:
        """The layers that the user excludes, and those that nothing trains."""
        trained = {
            id(one) for optimizer in trainer.optimizers for group in optimizer.param_groups for one in group["params"]
        }
        fixed = {
            name: Reason("not trained")
            for name, module in modules_by_name(pl_module).items()
            if is_layer(module)
            and not all(id(one) in trained and one.requires_grad for one in module.parameters(recurse=False))
        }
        return fixed | excluded(pl_module, self.include, self.exclude)

    def _note(self, trainer: Any, pl_module: Any, records: Sequence[Record]) -> None:
        """Keep, write down and tell what happened; of what was refused, the latest event's: the run may be long."""
        self.records = [*(one for one in self.records if one.done), *records]
        self._groups = _trainer.group_names(trainer, pl_module)
        if any(record.done for record in records) and self.rate_factor != 1.0:
            _trainer.scale_rates(trainer, self.rate_factor)
        self._write(trainer, records)
        if trainer.is_global_zero:
            send_merges(trainer.loggers, records, self.records, _trainer.step_axis(trainer))
        told = summary(records)
        if told:
            _trainer.tell(trainer, told)

    def _write(self, trainer: Any, records: Sequence[Record]) -> None:
        directory = _trainer.log_directory(trainer)  # asks all processes
        if directory is None or not records or not trainer.is_global_zero:
            return
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "merges.jsonl").open("a+", encoding="utf-8") as file:
            file.seek(0)
            known = set(file)  # a run that was interrupted and resumed in the same folder comes by here again
            file.writelines(line for line in (json.dumps(one.to_dict()) + "\n" for one in records) if line not in known)

    # checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Records, the names of the parameters in the optimizers' groups, and what `when` knows, as plain data."""
        return {
            "records": [record.to_dict() for record in self.records],
            "groups": self._groups,
            "due": self._due,
            "rest": [self._rest, self._resting],
            "epoch": self._epoch,
            "when": [type(self.when).__name__, self.when.state_dict()],
        }

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the calibration data of all processes, as far as `checkpoint_mib` allows.

        A run that is being stopped saves in each process when its turn comes, so none waits for the others' data.
        """
        del pl_module
        tapes: list[list[Any]] = self._saved  # a search for a learning rate saves before training has begun
        if not tapes and self.checkpoint_mib and not self._stopped:
            alone = trainer.world_size == 1
            size = sum([self._size] if alone else everywhere(self._size))
            if size <= self.checkpoint_mib * 2**20:
                mine = self._plain_tapes()
                tapes = [mine] if alone else gather(mine)
            else:
                self._later(f"{size / 2**20:.0f} MiB of calibration data, checkpoint_mib={self.checkpoint_mib:g}")
        _trainer.save_for_callback(checkpoint, self, "tapes", tapes)

    def _plain_tapes(self) -> list[Any]:
        """Recorded steps as plain data; none, where they cannot be written so."""
        try:
            return [to_plain(tape) for tape in self._tapes]
        except InputError as error:
            self._later(error)
            return []

    def _later(self, why: object) -> None:
        self._recording.warn("A run resumed from this checkpoint records anew before it merges", why)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a checkpoint recorded."""
        self.records = [Record.from_dict(record) for record in state_dict["records"]]
        self._groups = state_dict["groups"]
        self._due, self._epoch = state_dict.get("due", False), state_dict.get("epoch", -1)
        self._rest, self._resting = state_dict.get("rest", (0, 0))
        self._saved = state_dict.get("tapes", [])
        kind, state = state_dict.get("when", ("", {}))
        if kind == type(self.when).__name__:  # what another kind has learnt is of no use to this one
            self.when.load_state_dict(state)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        del trainer, pl_module
        self._stopped = True
        self._recording.stop()
        self._history.end(f"stopped by {type(exception).__name__}")


def summary(records: Sequence[Record]) -> str:
    """An event in one line; nothing where nothing was done.

    >>> one = Record("neurons", "net.0", "span", done=True, change=0.01, width=(40, 5), parameters=(99, 64), epoch=3)
    >>> summary([one])
    'Epoch 3: merged net.0 (span) 40 → 5; parameters 99 → 64, change 0.0100'
    """
    done = [one for one in records if one.done]
    merged = [one for one in done if one.kind != "reconstruction"]
    if not merged:
        return ""
    first, last = merged[0], done[-1]
    told = ", ".join(f"{one.layer} ({one.criterion}) {one.width[0]} → {one.width[1]}" for one in merged[:_TOLD])
    more = f" and {len(merged) - _TOLD} more" if len(merged) > _TOLD else ""
    return (
        f"Epoch {first.epoch}: merged {told}{more}; parameters {first.parameters[0]:,} → {last.parameters[1]:,}, "
        f"change {last.change:.4f}"
    )
