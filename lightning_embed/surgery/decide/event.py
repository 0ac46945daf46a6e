"""One merging event: what is to be done, and the bench on which steps are tried, checked, and kept or undone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, Reason, observe
from lightning_embed.surgery.change.apply import settle
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.records import Record
from lightning_embed.surgery.change.step import Applied, Step
from lightning_embed.surgery.decide.check import Check, Effect, batch_norm_lag
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
        self.graph: Graph = observe(event.model, event.fit, self._known_regions)
        self._check = Check(event.model, event.decide, event.tolerance)
        self._unusable: list[Identity] = []
        self.steps: list[Step] = []
        self.records: list[Record] = []
        self._kept: dict[str, Tensor] = {}  # rows that stayed, of those that a layer had before the first merge
        self._original: Original | None = None

    def ready(self) -> bool:
        """Refuse, on record, the layers that cannot be worked on; false if that is all of them."""
        lag = batch_norm_lag(self.model, self.event.fit)
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
        """Forget what was looked at and not changed; what was done."""
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
        for step in candidates:
            if self._original is None:
                self._original = Original(self.model, self.graph, self.event.fit, seed=self.event.seed)
                _ = self._targets
            before = parameter_count(self.model)
            kept = self._kept_after(step)
            try:
                applied = step.apply(self.model, self.attachment)
            except InputError as error:  # the merged weights cannot be held, in half precision for one
                self.records.append(Record.of(step, reason=str(error), parameters=(before, before), **self.event.when))
                continue
            effect = self._check.effect(self.model)
            reason = self._check.refusal(effect)
            correction = self._corrected(effect, kept) if reason and effect.change <= self._worth else None
            if correction is not None:
                effect, reason = correction.effect, self._check.refusal(correction.effect)
            if reason:
                if correction is not None:
                    correction.applied.undo()
                applied.undo()
            self._record(step, applied, effect, reason, before)
            if not reason:
                self._kept = kept
                if correction is not None:
                    self._record(correction.step, correction.applied, effect, "", parameter_count(self.model))
                self.graph = observe(self.model, self.event.fit, self._known_regions)
                return True
        return False

    @property
    def _worth(self) -> float:
        """The change up to which a correction may save a merge."""
        tolerance = self.event.tolerance
        return math.inf if tolerance is None else HOPE * tolerance.change

    def _kept_after(self, step: Step) -> dict[str, Tensor]:
        """For every layer that has fewer rows than at first, which of them stay."""
        if not isinstance(step, NeuronMerge):
            return self._kept
        staying = dict(self._kept)
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
                self._record(correction.step, correction.applied, correction.effect, "", parameter_count(self.model))

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

    def _record(self, step: Step, applied: Applied, effect: Effect, reason: str, before: int) -> None:
        """Write down what became of a step, and make it final if it stays."""
        record = Record.of(
            step,
            reason=reason,
            change=effect.change,
            agreement=effect.agreement,
            metric=effect.metric,
            parameters=(before, parameter_count(self.model)),
            **self.event.when,
        )
        self.records.append(record)
        if not reason:
            settle(self.attachment, applied, self.event.optimizers, record)
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
