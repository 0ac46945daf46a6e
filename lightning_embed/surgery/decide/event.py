"""One merging event: what is to be done, and the bench on which steps are tried, checked, and kept or undone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, Reason, observe, restricted
from lightning_embed.surgery.change.apply import settle
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.in_turn import graph_after, in_turn
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.records import Record
from lightning_embed.surgery.change.step import Applied, Step
from lightning_embed.surgery.decide.check import Check, Effect, settled_lag
from lightning_embed.surgery.decide.factors import scaled_entries
from lightning_embed.surgery.decide.matching import matched
from lightning_embed.surgery.decide.original import Original
from lightning_embed.surgery.decide.targets import Targets
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.features import Features, collect_features
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.tape import Tape

HOPE = 5.0  # a merge whose change exceeds the tolerance by more than this factor is not worth a correction
EXACT = 1e-4  # a change below which there is nothing to correct
SAMPLES = 8  # fitting samples below which nothing is nominated: two points always lie on a line

# a producer and the rows that a layer's neurons had in it before the first merge: names tell of present rows
Identity = tuple[str, frozenset[int]]


@dataclass(frozen=True, eq=False)
class Event:
    """What an event is about.

    Attributes:
        model: changed in place.
        fit: tapes from which everything is measured and fitted.
        decide: tapes on which the effect is measured.
        tolerance: what decides; None accepts every nominated merge that can be computed.
        seed: of the random combination of outputs that weights the fits.
        optimizers: edited in place with every merge that is kept.
        copies: models of the same architecture with weights of their own that follow every merge.
        epoch: written into the records.
        step: written into the records.
        settle_norms: where the running statistics of batch norms lag, re-estimate them on the fitting data first, if
            they hold on the deciding data too; taken back where nothing is merged.
        graph: what was observed of the model on the fitting tapes, if it was already.
        anew: whether the optimizers' state of what is changed begins anew.
        left_alone: layers that must not be touched, by name, and why.
        original: a copy of the model as it is, where the outputs are to be matched in the end (see `match_outputs`).
    """

    model: nn.Module
    fit: Sequence[Tape]
    decide: Sequence[Tape]
    tolerance: Tolerance | None
    seed: int = 0
    optimizers: Sequence[torch.optim.Optimizer] = ()
    copies: Sequence[nn.Module] = ()
    epoch: int | None = None
    step: int | None = None
    settle_norms: bool = False
    graph: Graph | None = None
    original: nn.Module | None = None
    anew: bool = False
    left_alone: Mapping[str, Reason] = field(default_factory=dict)

    @property
    def when(self) -> dict[str, Any]:
        """The moment, for records."""
        return {"epoch": self.epoch, "step": self.step}


@dataclass(frozen=True, eq=False)
class _Correction:
    """A reconstruction that is in place, and the effect of all changes with it."""

    applied: Applied
    step: Reconstruction
    effect: Effect


@dataclass(frozen=True, eq=False)
class _Trial:
    """Steps that are carried out and not settled.

    Attributes:
        done: what was applied.
        counts: parameters before the first step and after each.
        kept: rows that stay (see `Bench._kept_after`).
        effect: of all changes so far, with the correction.
        reason: why it is not allowed; empty where it is.
        correction: what was corrected besides.
    """

    done: list[Applied]
    counts: list[int]
    kept: Mapping[str, Tensor]
    effect: Effect
    reason: str
    correction: _Correction | None = None

    def undo(self) -> None:
        """Take all back, the last first."""
        if self.correction is not None:
            self.correction.applied.undo()
        for applied in reversed(self.done):
            applied.undo()


class Bench:
    """The model on which an event works: what is known of it now, and what was done to it so far.

    Attributes:
        event: what is to be done.
        graph: what was observed of the model as it is now.
        steps: those that were done, in order.
        records: of everything that was considered.
    """

    def __init__(self, event: Event) -> None:
        self.event, self.model = event, event.model
        self.attachment = attach(event.model)
        self._copies = [(copy, attach(copy)) for copy in event.copies]
        self._known_regions: dict[Any, Any] = {}  # those that a merge elsewhere has not changed
        seen = event.graph or observe(event.model, event.fit, self._known_regions)
        self.graph: Graph = restricted(seen, event.left_alone)
        self._derived = False
        self._lag, self._settled = settled_lag(event.model, event.fit, event.decide, settle=event.settle_norms)
        try:
            self._check = Check(event.model, event.decide, event.tolerance, self.graph.layers)
        except InputError:
            if self._settled is not None:
                self._settled.undo()
            raise
        self._unusable: list[Identity] = []
        self.steps: list[Step] = []
        self.records: list[Record] = []
        self._kept: Mapping[str, Tensor] = {}  # rows that stayed, of those that a layer had before the first merge
        self._original: Original | None = None

    def ready(self) -> bool:
        """Refuse, on record, the layers that cannot be worked on; false if that is all of them."""
        lag = self._lag
        features = {} if lag else collect_features(self.model, self.graph.layers, self.event.fit)
        decided = collect_features(self.model, self.graph.layers, self.event.decide).keys()
        for layer in self.graph.layers:
            reason = lag or _unusable(features.get(layer.name))
            if reason is None and layer.name not in decided:
                reason = Reason("never called", "in the half of the data that decides")
            if reason is not None:
                self.refuse(layer, "all", str(reason))
                self._unusable.append(self.identity(layer))
        return len(self._unusable) < len(self.graph.layers)

    def close(self) -> Plan:
        """Forget what was looked at and not changed; what was done.

        Batch norms that were settled stay so, on record, where something was merged.
        """
        if self._settled is not None and self.steps:
            record = Record("reconstruction", "batch norms", "running statistics", done=True, **self.event.when)
            self.records.insert(0, record)
            self.attachment.history.append(record.to_dict())
        elif self._settled is not None:
            self._settled.undo()
        for model, attachment in ((self.model, self.attachment), *self._copies):
            attachment.forget_untouched(model)
        return Plan(tuple(self.steps))

    # looking

    def usable(self, layer: HiddenLayer) -> bool:
        """Whether a layer can be worked on."""
        name, rows = self.identity(layer)
        return not any(name == other and rows <= others for other, others in self._unusable)

    def identity(self, layer: HiddenLayer) -> Identity:
        """What a layer of the present graph can be found again by (see `layer_now`)."""
        name, layout = next(iter(layer.producers.items()))
        assert layout.index is not None
        rows = layout.index[:, 0]
        return name, frozenset((self._kept[name][rows] if name in self._kept else rows).tolist())

    def layer_now(self, identity: Identity) -> HiddenLayer | None:
        """A layer as it is after the merges so far; None where it is none any more."""
        name, rows = identity
        for layer in self.graph.layers:
            if next(iter(layer.producers)) == name and self.identity(layer)[1] <= rows:
                return layer
        return None

    def features(self, layers: Sequence[HiddenLayer] | None = None) -> dict[str, Features]:
        """Features of the layers that can be worked on."""
        layers = self.graph.layers if layers is None else layers
        return collect_features(self.model, [layer for layer in layers if self.usable(layer)], self.event.fit)

    def view(self, layer: HiddenLayer, features: Features, gradients: Mapping[str, Tensor] | None = None) -> LayerView:
        """A layer as criteria see it."""
        targets = self._targets.of(layer, self._kept) if self.steps else {}
        return LayerView(self.model, self.graph, layer, features, gradients or {}, targets)

    @cached_property
    def _targets(self) -> Targets:
        """Made before the first merge, as `_attempt` sees to."""
        return Targets(self.model, self.graph.layers, self.event.fit)

    # trying

    def effect_alone(self, step: Step, probe: Check) -> float:
        """The change that one step makes by itself, on the data of a check."""
        try:
            applied = step.apply(self.model, self.attachment)
        except InputError:  # a candidate that cannot be computed comes last
            return float("inf")
        try:
            return probe.change(self.model)
        finally:
            applied.undo()

    def attempt(self, candidates: Sequence[Step]) -> bool:
        """Try candidates for one layer, the boldest first, until one is allowed; record what happened."""
        return any(self.together([step]) for step in candidates)

    def together(self, computed: Sequence[Step], *, note_refusal: bool = True) -> bool:
        """Try several steps at once: all of them are kept, or none.

        Args:
            computed: one step, or merges of neurons of different layers, as they were computed on the present model.
            note_refusal: whether a refusal is recorded; the steps that are kept always are.
        """
        self._begin()
        merges = [step for step in computed if isinstance(step, NeuronMerge)]
        steps = [self._with_factors(step) for step in (in_turn(merges) if len(computed) > 1 else computed)]
        trial = self._try(steps)
        if trial.reason:
            trial.undo()
            for step in steps if note_refusal else ():
                self._note(step, trial.effect, trial.reason, (trial.counts[0], trial.counts[0]))
            return False
        for step, applied, counts in zip(steps, trial.done, pairwise(trial.counts), strict=True):
            self._keep(step, applied, trial.effect, counts)
        self._kept = trial.kept
        if trial.correction is not None:
            size = trial.counts[-1]
            self._keep(trial.correction.step, trial.correction.applied, trial.effect, (size, size))
        if merges:
            self.graph, self._derived = graph_after(self.graph, merges), True
        else:
            self.observe()
        return True

    def would_be_allowed(self, computed: Sequence[NeuronMerge]) -> bool:
        """Whether merges of neurons of different layers would be kept, all at once; nothing is changed."""
        self._begin()
        trial = self._try(in_turn(computed))
        trial.undo()
        return not trial.reason

    def _begin(self) -> None:
        """Look at the model as it is before the first step."""
        if self._original is None:
            self._original = Original(self.model, self.graph, self.event.fit, self.event.left_alone)
            _ = self._targets

    def _try(self, steps: Sequence[Step]) -> _Trial:
        """Carry steps out, one after the other, and correct the model where that may save them."""
        counts, kept, done = [parameter_count(self.model)], self._kept, []
        for step in steps:
            after = self._kept_after(step, kept)
            try:
                done.append(step.apply(self.model, self.attachment))
            except InputError as error:  # the merged weights cannot be held, in half precision for one
                return _Trial(done, counts, kept, Effect(math.nan, math.nan), str(error))
            kept = after
            counts.append(parameter_count(self.model))
        if counts[-1] > counts[0]:  # a factored layer is smaller than the product of its factors
            size = f"{counts[0]:,} → {counts[-1]:,} parameters"
            effect = Effect(math.nan, math.nan, f"it would make the network larger: {size}")
            return _Trial(done, counts, kept, effect, effect.failure)
        effect = self._check.effect(self.model)
        reason = self._check.refusal(effect)
        correction = self._corrected(effect, kept) if reason and effect.change <= self._worth else None
        if correction is not None:
            effect, reason = correction.effect, self._check.refusal(correction.effect)
        return _Trial(done, counts, kept, effect, reason, correction)

    def match(self) -> bool:
        """Match the outputs of the model before the first step, if that is asked for; whether they are more alike."""
        if self.event.original is None or not self.steps:
            return False
        found = matched(self.model, self.event.original, self.event.fit, self._check, self.event.left_alone)
        if found is not None:
            step, applied, effect = found
            size = parameter_count(self.model)
            self._keep(step, applied, effect, (size, size))
        return found is not None

    @property
    def allowed(self) -> float:
        """The squared change of the outputs that is allowed, per sample and all outputs together."""
        tolerance = self.event.tolerance
        return math.inf if tolerance is None else tolerance.change**2 * self._check.spread

    def observe(self) -> None:
        """Look at the model anew, where its graph was only derived or a layer has gone."""
        seen = observe(self.model, self.event.fit, self._known_regions)
        self.graph, self._derived = restricted(seen, self.event.left_alone), False

    def observe_where_derived(self) -> None:
        """Look at the model anew unless it was."""
        if self._derived:
            self.observe()

    def _with_factors(self, step: Step) -> Step:
        """A step that tells the optimizers which factors of its neurons scale with them."""
        if not self.event.optimizers or not isinstance(step, NeuronMerge):
            return step
        scaled = scaled_entries(self.model, self.graph[step.layer], self.event.fit[0])
        return replace(step, scaled=scaled) if scaled else step

    @property
    def _worth(self) -> float:
        """The change up to which a correction may save a merge."""
        tolerance = self.event.tolerance
        return math.inf if tolerance is None else HOPE * tolerance.change

    def _kept_after(self, step: Step, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """For every layer that has fewer rows than at first, which of them stay after one more step."""
        staying = dict(kept)
        if not isinstance(step, NeuronMerge):
            return staying
        for name, stays in step.rows_that_stay(self.model).items():
            known = self._kept.get(name)
            staying[name] = stays if known is None else known[stays]
        return staying

    def _corrected(self, effect: Effect, kept: Mapping[str, Tensor]) -> _Correction | None:
        """Correct the model towards its original; None, and nothing is changed, where that makes it no better."""
        if self._original is None or effect.failure or not effect.change > EXACT:
            return None
        correction = self._original.reconstruct(self.model, self.attachment, kept)
        if correction is None:
            return None
        applied, step = correction
        better = self._check.effect(self.model)
        if (
            better.failure
            or not better.change < effect.change
            or (self._agreement_counts and better.agreement < effect.agreement)
            or (effect.metric is not None and better.fall > effect.fall)
        ):
            applied.undo()
            return None
        return _Correction(applied, replace(step, evidence={"change before": effect.change}), better)

    @property
    def _agreement_counts(self) -> bool:
        tolerance = self.event.tolerance
        return tolerance is not None and tolerance.agreement is not None

    def reconstruct(self) -> None:
        """The last correction, with all merges in place."""
        if self.steps and not isinstance(self.steps[-1], Reconstruction):
            correction = self._corrected(self._check.effect(self.model), self._kept)
            if correction is not None:
                size = parameter_count(self.model)
                self._keep(correction.step, correction.applied, correction.effect, (size, size))

    # recording

    def refuse(self, layer: HiddenLayer | str, criterion: str, reason: str) -> None:
        """Write down that nothing is nominated, and why."""
        kind = "layer" if criterion in {"all", "linearization"} else "neurons"
        name, width = (layer, 0) if isinstance(layer, str) else (layer.name, layer.width)
        self.records.append(
            Record(kind, name, criterion, done=False, reason=reason, width=(width, width), **self.event.when)
        )

    def refuse_step(self, step: Step, reason: str) -> None:
        """Write down that a nominated step is not tried, and why."""
        self.records.append(Record.of(step, reason=reason, **self.event.when))

    def forget_refusals_but_the_last(self) -> None:
        """Of what was refused several times keep the last record, and none of what was done after all."""
        last = {(record.kind, record.layer, record.criterion): record for record in self.records}
        self.records = [
            record
            for record in self.records
            if record.done or last[record.kind, record.layer, record.criterion] is record
        ]

    def _note(self, step: Step, effect: Effect, reason: str, parameters: tuple[int, int]) -> Record:
        """Write down what became of a step; without a reason it stays."""
        record = Record.of(
            step,
            reason=reason,
            change=effect.change,
            agreement=effect.agreement,
            metric=effect.metric,
            error=effect.error,
            parameters=parameters,
            **self.event.when,
        )
        self.records.append(record)
        return record

    def _keep(self, step: Step, applied: Applied, effect: Effect, parameters: tuple[int, int]) -> None:
        """Make a step that was carried out final."""
        record = self._note(step, effect, "", parameters)
        settle(self.attachment, applied, self.event.optimizers, record, anew=self.event.anew)
        self._let_copies_follow(step, record)
        self.steps.append(step)

    def _let_copies_follow(self, step: Step, record: Record) -> None:
        """Let the copies take a step that is final in the model."""
        for copy, attachment in self._copies:
            try:
                settle(attachment, step.apply(copy, attachment), (), record)
            except InputError as error:  # the model has gone ahead, so this must not pass as a refused merge
                raise RuntimeError(
                    f"An averaged copy of the weights cannot follow the merge of {record.layer}: {error} Resume from "
                    "the last checkpoint, without the callback that averages."
                ) from error


def _unusable(features: Features | None) -> Reason | None:
    if features is None:
        return Reason("never called", "in the half of the data that fits")
    if not features.finite:
        return Reason("values not finite")
    if features.rows < SAMPLES:
        return Reason("too few samples", f"{features.rows} to fit, at least {SAMPLES} are needed")
    return None
