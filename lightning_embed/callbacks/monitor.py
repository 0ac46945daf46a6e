"""Watch a training: linearization, condensation and gradients of every hidden layer, logged as metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_embed.analysis.growing import layer_curvatures, splittable
from lightning_embed.analysis.tangent import rank_of_run
from lightning_embed.callbacks._trainer import Callback, agreed, all_have, log_epoch, log_step, step_axis, unlogged
from lightning_embed.callbacks.dashboards import check_drawing, send_figures
from lightning_embed.callbacks.history import RunHistory
from lightning_embed.callbacks.recording import Observed, StepRecording, check_functions, without
from lightning_embed.callbacks.sharing import HasCriteria, shared_criteria
from lightning_embed.errors import EmbeddingError, InputError
from lightning_embed.statistics import gradient_l1, gradient_norms, named_gradients
from lightning_embed.surgery import Criteria, Measurement
from lightning_embed.surgery.nominate.features import collect_moments
from lightning_embed.surgery.nominate.measure import measure_layers, measure_moments
from lightning_embed.tape import Tape, from_plain, replay, to_plain
from lightning_embed.tape.tree import canonical_name

log = logging.getLogger(__name__)

_LIVE = (
    "_recording",
    "_observed",
    "_sampled_step",
    "_sampled",
    "_stepped",
    "_gradients",
    "_metrics",
    "_saved",
    "_history",
)


class EmbeddingMonitor(HasCriteria, Callback):
    """Log, per hidden layer, how linear it acts, how many neurons are needed, and its gradient.

    On every `every_n_steps`-th optimizer step the layers are measured on its training batch, in eval mode: in the
    step's own forward pass where the model computes the same in both modes, else in a replay of it:

    - `mpc/<layer>`: minimal Pearson correlation of pre- and post-activations (paper 000, eq. 5.1);
    - `depth`: hidden layers observed, `linear_layers`: those with MPC of at least `criteria.linearization`;
    - `grad_norm/<layer>`: L2 norm of the gradient of a layer's parameters, and `grad_norm/l1`: the L1 norm of the whole
      gradient, the papers' criterion of a critical point (both unscaled and before clipping).

    At the end of every epoch, on its last sampled batch: `width/cosine/<layer>` and `width/span/<layer>`, the neurons
    that the two criteria would keep, `width`, the number of neurons in all hidden layers, and `non_affine/<layer>`, the
    share of what a layer passes on that is not affine in its input (see `statistics.non_affine_share`).

    Two more are measured where they are asked for, as they cost more than a step. With `splitting_loss`, on every
    sampled step, `splitting/<layer>`: the least splitting curvature of a layer's neurons
    (`analysis.splitting_curvature`), negative where a wider layer could lower the loss. With `tangent_rank`, at the end
    of every epoch, `tangent_rank`: as how many parameters the network acts on the last sampled batch
    (`analysis.tangent_rank`); the report tells the last.

    All this is kept in the run's log folder too, as `history.jsonl`, from which `lightning-embed report` makes a page.
    With `figures_every_n_epochs` the figures of `lightning_embed.reporting.figures` reach the loggers that take figures
    (TensorBoard, W&B, MLflow, Comet), or the folder `figures` as PNG files.

    Every metric reaches the loggers and `trainer.callback_metrics`, so that EarlyStopping and ModelCheckpoint can
    monitor it. Training is not influenced: weights, buffers and random state stay as they would be without it.

    Args:
        every_n_steps: optimizer steps between two samples.
        criteria: the thresholds at which layers and kept neurons are counted; if None those that an EmbeddingPruner of
            the same Trainer was given, or the defaults.
        checkpoint_mib: how large the latest sampled batch may be, in MiB, to be kept in checkpoints; it is what the
            epoch's kept widths are measured on. With 0 none is kept.
        figures_every_n_epochs: epochs between figures for the dashboards; None: no figures.
        output: which tensor(s) of what the recorded calls return are the model's outputs, (returned) → tensors; what
            is returned beside them, hidden layers for one, is none. By default those that lead to the loss.
        call: how to run the model on a batch, (module, batch) → outputs, where the training step cannot be recorded;
            by default the module's `calibration_step(batch)` if it has one, else the step itself is recorded.
        splitting_loss: a function of the module and a batch that runs the module and gives the loss, the mean over the
            samples; it is called in eval mode. None: no splitting curvature.
        tangent_rank: whether to measure the tangent rank of the last output that a step computes.

    Raises:
        InputError: `every_n_steps` or `figures_every_n_epochs` is no positive integer, `checkpoint_mib` negative, or
            `output`, `call` or `splitting_loss` no function.
        ImportError: figures are asked for, and matplotlib is not installed.

    >>> EmbeddingMonitor(every_n_steps=10).every_n_steps
    10
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        criteria: Criteria | None = None,
        checkpoint_mib: float = 32.0,
        figures_every_n_epochs: int | None = None,
        output: Callable[[Any], Any] | None = None,
        call: Callable[[Any, Any], Any] | None = None,
        splitting_loss: Callable[[Any, Any], Tensor] | None = None,
        tangent_rank: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise InputError(f"EmbeddingMonitor(every_n_steps=…) must be a positive integer, got {every_n_steps!r}.")
        check_drawing("EmbeddingMonitor", figures_every_n_epochs)
        self.every_n_steps = every_n_steps
        if not checkpoint_mib >= 0:
            raise InputError(f"EmbeddingMonitor(checkpoint_mib=…) must be at least 0, got {checkpoint_mib!r}.")
        self.figures_every_n_epochs = figures_every_n_epochs
        self.splitting_loss, self.tangent_rank = splitting_loss, tangent_rank
        self.given_criteria = criteria
        self._criteria = criteria or Criteria()
        self.checkpoint_mib = checkpoint_mib
        check_functions("EmbeddingMonitor", output=output, call=call, splitting_loss=splitting_loss)
        self.output, self.call = output, call
        self._begin()

    def _begin(self) -> None:
        self.measurement: Measurement | None = None
        self._recording = StepRecording(self.output, self.call)
        self._observed = Observed()
        self._sampled_step = -1
        self._sampled = False  # whether there was a sample since the last epoch
        self._stepped: set[int] | None = None  # optimizers that stepped in the sampled step; None outside of it
        self._gradients: dict[str, float] = {}
        self._metrics: dict[str, float] = {}  # of the sampled step
        self._saved: dict[str, Any] | None = None
        self._history = RunHistory()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: the options and the measurement, and nothing of a training under way."""
        return without(self, _LIVE)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin anew with the same options."""
        vars(self).update(state)
        self._begin()
        self.measurement = state["measurement"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew; a callback may serve several fits."""
        del pl_module
        if stage == "fit":
            self._criteria = shared_criteria(trainer, self)
            self._begin()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the history; after a resume, take the latest sample from the checkpoint."""
        self._history.begin(
            trainer, pl_module, {"criteria": self.criteria, "sampled every": f"{self.every_n_steps} steps"}
        )
        if self.figures_every_n_epochs is not None and not trainer.loggers:
            log.warning("EmbeddingMonitor draws no figures: the Trainer has no logger, so there is no log folder.")
        if self._saved is not None:
            self._recording.last, self._saved = from_plain(self._saved, pl_module.device), None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to record, when this step is one to sample."""
        del batch_idx
        step = trainer.global_step
        # with several optimizers one batch takes several steps, and may pass over the multiple
        if step // self.every_n_steps != self._sampled_step // self.every_n_steps or self._recording.again:
            self._sampled_step, self._sampled, self._stepped, self._metrics = step, True, set(), {}
            graph = None if self._recording.asked(pl_module) else self._observed.latest(pl_module)
            alike = graph is not None and graph.modeless and pl_module.automatic_optimization
            self._recording.start(pl_module, batch, graph if alike else None)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward pass is over."""
        del trainer
        self._recording.leads_to(loss)
        if pl_module.automatic_optimization:
            self._recording.stop()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are complete here, unscaled and not yet clipped; of several steps (LBFGS) the first counts."""
        if self._stepped is None or id(optimizer) in self._stepped:
            return
        if pl_module.automatic_optimization:  # the weights are still those of the forward pass
            self._sample(trainer, pl_module)
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        mine = {name for name, one in pl_module.named_parameters() if id(one) in held and one.grad is not None}
        gradients = {name: gradient for name, gradient in named_gradients(pl_module).items() if name in mine}
        if not gradients:
            return
        self._stepped.add(id(optimizer))
        found = {f"grad_norm/{canonical_name(name)}": one.item() for name, one in gradient_norms(gradients).items()}
        for name, norm in found.items():
            self._gradients[name] = math.hypot(self._gradients.get(name, 0.0), norm)
        self._gradients["grad_norm/l1"] = self._gradients.get("grad_norm/l1", 0.0) + gradient_l1(gradients).item()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure what was recorded, and log."""
        del batch_idx
        self._recording.stop()
        if self._stepped is None:
            return
        self._sample(trainer, pl_module)
        self._metrics |= self._splitting(pl_module, batch)
        metrics = agreed(trainer, self._gradients | self._metrics)
        self._gradients, self._metrics = {}, {}
        if "grad_norm/l1" in metrics:
            self._stepped = None
        if metrics:
            log_step(trainer, metrics)
            self._history.sample(self._sampled_step, metrics, outputs)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count the neurons that the criteria would keep, where there was a new sample; else all is as it was."""
        self._recording.stop()  # a step that was skipped has no end
        if not self._sampled:
            self._history.epoch({}, {})  # what the training logs is kept all the same
            return
        self._sampled = False
        tape = all_have(trainer, self._recording.last)
        measured = {} if tape is None else self._measure(trainer, pl_module, tape, widths=True)
        metrics = agreed(trainer, measured | ({} if tape is None else self._rank(pl_module, tape)))
        self._keep(trainer, pl_module, metrics, tape)
        shown: dict[str, float] = {name: metrics.pop(name) for name in ("depth", "width") if name in metrics}
        log_epoch(pl_module, metrics)
        log_epoch(pl_module, shown, prog_bar=True)

    def _keep(self, trainer: Any, module: Any, metrics: dict[str, float], tape: Tape | None) -> None:
        """Write the epoch into the history, and draw when it is time."""
        layers = () if self.measurement is None or tape is None else self.measurement.layers
        self._history.epoch(metrics, {one.layer: one.width for one in layers})
        self._history.look("start", module, tape, self.criteria.condensation)
        every = self.figures_every_n_epochs
        if every is not None and (trainer.current_epoch + 1) % every == 0 and self._history.file is not None:
            self._history.look("now", module, tape, self.criteria.condensation)
            send_figures(trainer.loggers, self._history.file.path, step_axis(trainer))

    def _sample(self, trainer: Any, module: Any) -> None:
        """Measure the step that was just recorded, once."""
        tape = all_have(trainer, self._recording.take(module))
        if tape is not None:
            self._metrics |= self._measure(trainer, module, tape, widths=False)

    def _measure(self, trainer: Any, module: Any, tape: Tape, *, widths: bool) -> dict[str, float]:
        """Measure a tape; what it shows as metrics, nothing (and a warning) where the model does not allow it."""
        try:
            with unlogged(module):
                known = self._observed.latest(module)
                graph = self._observed.graph(module, [tape])
                if widths:
                    found = measure_layers(module, graph, [tape], self.criteria)
                else:
                    # the step itself has shown all, unless it was of another kind than the one before
                    collected = all_have(trainer, self._recording.collected if graph is known else None)
                    found = measure_moments(graph, collected or collect_moments(module, graph.layers, [tape]))
        except Exception as error:  # noqa: BLE001  # whatever a model does, its training goes on
            why = error if isinstance(error, EmbeddingError) else f"{type(error).__name__}: {error}"
            self._recording.warn("The model could not be measured", why)
            return {}
        if not found.layers and found.refused:
            why = "; ".join(f"{name}: {reason}" for name, reason in found.refused)
            self._recording.warn("No hidden layer can be measured", why)
        self.measurement = found
        metrics = {"depth": float(found.depth)}
        if widths:
            metrics["width"] = float(sum(one.width for one in found.layers))
            kept: list[tuple[str, float | None]] = [
                (f"width/cosine/{one.layer}", one.width_cosine) for one in found.layers
            ]
            kept += [(f"width/span/{one.layer}", one.width_span) for one in found.layers]
            kept += [(f"width/{name}/{one.layer}", width) for one in found.layers for name, width in one.widths.items()]
            kept += [(f"non_affine/{one.layer}", one.non_affine) for one in found.layers]
            return metrics | {name: float(value) for name, value in kept if value is not None and not math.isnan(value)}
        if self.criteria.linearization is not None:
            metrics["linear_layers"] = float(found.linear_layers(self.criteria.linearization))
        return metrics | {f"mpc/{one.layer}": one.mpc for one in found.layers if one.mpc is not None}

    def _splitting(self, module: Any, batch: Any) -> dict[str, float]:
        """The least splitting curvature of every layer that has one, where it is asked for."""
        loss, graph = self.splitting_loss, self._observed.latest(module)
        if loss is None or graph is None:
            return {}
        try:
            with unlogged(module):
                layers = splittable(module, graph, None)
                return {
                    f"splitting/{one.layer}": one.least
                    for one in layer_curvatures(module, layers, lambda: loss(module, batch))
                }
        except Exception as error:  # noqa: BLE001  # whatever a model does, its training goes on
            self._recording.warn("The splitting curvature could not be measured", error)
            return {}

    def _rank(self, module: Any, tape: Tape) -> dict[str, float]:
        """The tangent rank, where it is asked for."""
        if not self.tangent_rank:
            return {}
        try:
            with unlogged(module):
                found = rank_of_run(module, lambda: replay(module, tape, grad=True)[-1])
        except Exception as error:  # noqa: BLE001  # whatever a model does, its training goes on
            self._recording.warn("The tangent rank could not be measured", error)
            return {}
        return {"tangent_rank": float(found.rank), "tangent_rows": float(found.rows)}

    def state_dict(self) -> dict[str, Any]:
        """The latest sample, so that a resumed run measures what an uninterrupted one would, as plain data."""
        tape, plain = self._recording.last, None
        if tape is not None and tape.nbytes <= self.checkpoint_mib * 2**20:
            try:
                plain = to_plain(tape)
            except InputError as error:
                self._recording.warn("A run resumed from this checkpoint measures widths after its first sample", error)
        return {"sampled_step": self._sampled_step, "tape": plain}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the latest sample."""
        self._sampled_step, self._saved = state_dict["sampled_step"], state_dict["tape"]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the history."""
        del trainer
        self._history.look("end", pl_module, self._recording.last, self.criteria.condensation)
        self._history.end("finished")
        self._history = RunHistory()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no hook behind."""
        del trainer, pl_module
        self._recording.stop()
        self._history.end(f"stopped by {type(exception).__name__}")
