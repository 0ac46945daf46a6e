"""Try and check: how far a changed model's outputs are from what they were, on data that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.graph import HiddenLayer, Reason
from lightning_embed.surgery.change.edit import Edits
from lightning_embed.surgery.collect import Collector
from lightning_embed.surgery.decide.scale import Scale, outputs_of, relative, still_outputs
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.tape import modules_by_name, preserved, set_modes

SHOWN = 4  # columns that a reason names


@dataclass(frozen=True)
class Effect:
    """What a changed model does to the outputs (see `Tolerance`), or why it failed.

    The metric is None where it is not asked for, or where the other bounds refuse already. `error` is the standard
    error of the change, over the samples that decide; `where` the output and the columns that change most, in words.
    """

    change: float
    agreement: float
    failure: str = ""
    metric: tuple[float, float] | None = None
    error: float = 0.0
    where: str = ""

    @property
    def fall(self) -> float:
        """How far the metric has fallen; 0 where it was not taken."""
        return 0.0 if self.metric is None else self.metric[0] - self.metric[1]


class Check:
    """The outputs of a model on the deciding tapes, as they are now, to compare the changed model with.

    change = ‖f′ − f‖_F / ‖f − mean f‖_F with the mean over samples; of several output tensors, and of columns in
    different units, the worst counts (see `Scale`). It replays on the plain model, with no hooks. Part of the check is
    that every parameter that gets a gradient now still gets one (or is gone).

    Args:
        model: as it is now.
        tapes: on which outputs are compared.
        tolerance: the bounds; None allows everything that runs.
        layers: hidden layers of the model, so that what they cannot change does not count; none if it is not known.

    Raises:
        InputError: the outputs are not finite, there is no floating-point output, or the tolerance's metric fails.
    """

    def __init__(
        self,
        model: nn.Module,
        tapes: Sequence[Tape],
        tolerance: Tolerance | None,
        layers: Sequence[HiddenLayer] = (),
    ) -> None:
        self._tapes = tapes
        self._tolerance = tolerance
        self._outputs = outputs_of(model, self._tapes)
        self._trained = self._with_gradient(model)
        if not self._outputs:
            raise InputError("The calibration calls return no floating-point tensor; say which with output=.")
        still = still_outputs(model, layers, self._tapes) if layers else None
        alike = still is not None and [one.shape for one in still] == [one.shape for one in self._outputs]
        beside: Sequence[Tensor | None] = still if still is not None and alike else [None] * len(self._outputs)
        scales = [Scale.of(output, held) for output, held in zip(self._outputs, beside, strict=True)]
        self._scales = [scale for scale in scales if scale is not None]
        if len(self._scales) < len(scales):
            raise InputError(
                "The model's outputs on the calibration data hold NaN or infinite values, so no merge can be checked; "
                "look at the data and at the weights."
            )
        if tolerance is not None and tolerance.agreement is not None and all(one.shape[1] < 2 for one in self._outputs):
            raise InputError(
                "Tolerance(agreement=…) compares the arg-max of class scores, but the outputs have a single column; "
                "leave agreement=None for a regression."
            )
        if tolerance is not None and tolerance.metric is not None:
            self._metric = _measured(model, tolerance.metric)

    def effect(self, model: nn.Module) -> Effect:
        """The cumulative effect of all changes since this object was made."""
        try:
            outputs = outputs_of(model, self._tapes)
            lost = self._trained - self._with_gradient(model)
        except ReplayError as failure:
            return Effect(math.nan, math.nan, f"the calibration calls fail on the merged model: {failure}")
        if not self._alike(outputs):
            return Effect(math.nan, math.nan, "the shapes of the outputs change")
        lost &= {name for name, _ in model.named_parameters()}
        change, error, where = self._largest(outputs)
        scores = [(old, new) for old, new in zip(self._outputs, outputs, strict=True) if old.shape[1] > 1]
        agreement = min(((o.argmax(1) == n.argmax(1)).double().mean().item() for o, n in scores), default=math.nan)
        if lost:
            return Effect(change, agreement, f"{', '.join(sorted(lost))} would get no gradient any more", error=error)
        return self._with_metric(model, Effect(change, agreement, error=error, where=where))

    @property
    def spread(self) -> float:
        """‖f − mean f‖² of all outputs together, per sample."""
        squares = sum(float(scale.deviation.square().sum()) for scale in self._scales)
        return squares / max(1, self._samples)

    @property
    def squares(self) -> list[Tensor]:
        """For every output and column the squared spread by which a squared change is divided."""
        return [scale.squares for scale in self._scales]

    def change(self, model: nn.Module) -> float:
        """The change alone, with no look at gradients; infinite where the calls fail."""
        try:
            outputs = outputs_of(model, self._tapes)
        except ReplayError:
            return math.inf
        return self._largest(outputs)[0] if self._alike(outputs) else math.inf

    def _alike(self, outputs: Sequence[Tensor]) -> bool:
        return [one.shape for one in outputs] == [one.shape for one in self._outputs]

    @property
    def _samples(self) -> int:
        return sum(tape.samples for tape in self._tapes)

    def _largest(self, outputs: Sequence[Tensor]) -> tuple[float, float, str]:
        """The largest change, its standard error, and where it is, in words, if there are several places."""
        found = [scale.change(new, self._samples) for scale, new in zip(self._scales, outputs, strict=True)]
        worst = max(range(len(found)), key=lambda place: found[place][0])
        change, error, columns = found[worst]
        where = f" in output {worst}" if len(found) > 1 else ""
        if len(self._scales[worst].groups) > 1:
            numbers = ", ".join(map(str, columns[:SHOWN].tolist())) + ("…" if len(columns) > SHOWN else "")
            where += f" in column{'s' * (len(columns) > 1)} {numbers}"
        return change, error, where

    def refusal(self, effect: Effect) -> str:
        """Why an effect is not allowed; empty when it is."""
        if effect.failure or self._tolerance is None:
            return effect.failure
        if self._tolerance.allows(effect.change, effect.agreement, effect.fall, error=effect.error):
            return ""
        if effect.change == math.inf:
            return "change inf: an output overflows, or one changes that is constant on the deciding data"
        if not effect.change <= self._tolerance.change:
            return f"change {effect.change:.4g} > {self._tolerance.change:g}{effect.where}"
        if not effect.change + effect.error <= self._tolerance.change:
            return f"change {effect.change:.4g} ± {effect.error:.2g} on few samples may be > {self._tolerance.change:g}"
        if effect.metric is not None:
            return f"metric falls by {effect.fall:.4g} > {self._tolerance.drop:g}"
        return f"agreement {effect.agreement:.4f} < {self._tolerance.agreement:g}"

    def _with_metric(self, model: nn.Module, effect: Effect) -> Effect:
        """The effect with the user's own measure, which may be costly, where all else is allowed."""
        tolerance = self._tolerance
        if tolerance is None or tolerance.metric is None or self.refusal(effect):
            return effect
        try:
            return replace(effect, metric=(self._metric, _measured(model, tolerance.metric)))
        except InputError as error:
            return replace(effect, failure=str(error))

    def _with_gradient(self, model: nn.Module) -> set[str]:
        """Names of the parameters that the outputs of one tape depend on."""
        named = [(name, one) for name, one in model.named_parameters() if one.requires_grad and not is_lazy(one)]
        outputs = [one for one in replay(model, self._tapes[0], grad=True) if one.requires_grad]
        if not named or not outputs:
            return set()
        total = torch.stack([one.double().sum() for one in outputs]).sum()
        gradients = torch.autograd.grad(total, [one for _, one in named], allow_unused=True)
        return {name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is not None}


def _measured(model: nn.Module, metric: Callable[[nn.Module], float]) -> float:
    """The value of a user's own measure of a model, which is left as it was."""
    try:
        with preserved(model), torch.no_grad():
            set_modes(model, training=False)
            value = metric(model)
    except Exception as error:
        raise InputError(f"Tolerance(metric=…) fails on the model: {type(error).__name__}: {error}") from error
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, Real) or not math.isfinite(number):
        raise InputError(
            f"Tolerance(metric=…) must return a finite number, the higher the better; it returned {value!r}."
        )
    return float(number)


def batch_norm_lag(model: nn.Module, tapes: Sequence[Tape]) -> Reason | None:
    """Why eval mode cannot be trusted yet: running statistics that are far from those of the calibration data.

    With statistics that have settled, the outputs differ from those with the mean statistics of the calibration batches
    by the error of the running ones, which average some training batches. It falls with the root of the batch size and
    adds up over the batch norms; the calibration batches stand for those of the training.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and _running(one)]
    if not norms:
        return None
    tapes = [tape for tape in tapes if tape.samples > 1]  # a single sample has no variance to normalise by
    if not tapes:
        return Reason("batch-norm statistics lag", "batches of a single sample cannot tell; give larger ones")
    outputs = outputs_of(model, tapes)
    settled = settle_norms(model, tapes)
    try:
        anew = outputs_of(model, tapes)
    finally:
        settled.undo()
    pairs = zip(outputs, anew, strict=True)
    worst = max((relative(new - old, old - old.mean(dim=0)) for old, new in pairs), default=0.0)
    bound = min(1.0, 3.0 * math.sqrt(len(norms) / max(tape.samples for tape in tapes)))
    if worst <= bound:
        return None
    return Reason("batch-norm statistics lag", f"outputs differ by {worst:.2g} from settled ones, bound {bound:.2g}")


def settled_lag(
    model: nn.Module, fit: Sequence[Tape], decide: Sequence[Tape], *, settle: bool
) -> tuple[Reason | None, Edits | None]:
    """Why eval mode cannot be trusted yet; where `settle`, the statistics are put right if that holds on other data.

    Returns:
        The reason that is left, and what was changed, for `undo`.
    """
    reason = batch_norm_lag(model, fit)
    if reason is None or not settle:
        return reason, None
    settled = settle_norms(model, fit)
    if batch_norm_lag(model, decide) is None:
        return None, settled
    settled.undo()
    return reason, None


def settle_norms(model: nn.Module, tapes: Sequence[Tape]) -> Edits:
    """Give batch norms the running statistics that they would have on the tapes; `undo` takes that back.

    Each is given the mean of the batches' statistics while those before it normalise by the batch, as in training.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and _running(one)]
    tapes = [tape for tape in tapes if tape.samples > 1]  # a single sample has no variance to normalise by
    without, edits = Edits(), Edits()
    try:
        for norm in norms:  # without running statistics a batch norm takes those of the batch, in eval mode too
            without.set(norm, "running_mean", None)
            without.set(norm, "running_var", None)
        statistics = _statistics(model, norms, tapes)
    finally:
        without.undo()
    for called, (mean, variance) in statistics.items():
        for name, value in (("running_mean", mean), ("running_var", variance)):
            edits.set(called, name, value.to(getattr(called, name).dtype))
    return edits


def _statistics(
    model: nn.Module, norms: Sequence[nn.Module], tapes: Sequence[Tape]
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """What each norm is given, channel by channel: mean and variance of the batches, averaged by their sizes."""

    def look(given: Tensor) -> tuple[int, Tensor, Tensor]:
        rows = given.transpose(0, 1).flatten(1)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows.shape[1], wide.mean(1), wide.var(1)

    names = {norm: name for name, norm in reversed(modules_by_name(model).items())}
    collector = Collector(model)
    seen = {norm: collector.reads(names[norm], look) for norm in norms}
    collector.run(tapes)
    settled = {}
    for norm, parts in seen.items():
        if not parts:
            continue
        total = sum(rows for rows, _, _ in parts)
        mean = torch.stack([rows / total * mean for rows, mean, _ in parts]).sum(0)
        settled[norm] = (mean, torch.stack([rows / total * variance for rows, _, variance in parts]).sum(0))
    return settled


def _running(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return norm.running_mean is not None and norm.running_var is not None
