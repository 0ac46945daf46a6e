"""The one pipeline: observe, measure, propose, try, check, keep or undo, record.

`prune`, `propose` and the training callback all run `merge`; they differ in which model they hand over and in
whether a tolerance decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, Reason, observe
from lightning_embed.surgery.change.apply import Applied, apply_step, settle
from lightning_embed.surgery.change.edit import parameter_count, submodule
from lightning_embed.surgery.change.plan import LayerMerge, NeuronMerge, Plan, Reconstruction, Record, Step
from lightning_embed.surgery.decide.check import Check, Effect, batch_norm_lag
from lightning_embed.surgery.decide.original import Original
from lightning_embed.surgery.nominate.criteria import Criteria, Tolerance
from lightning_embed.surgery.nominate.features import Features, collect_features, output_gradients
from lightning_embed.surgery.nominate.propose import (
    SAMPLES,
    milder,
    nominate_layer,
    nominate_neurons,
    nominate_null,
    nominate_width,
    refreshed,
)
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.tape import Tape

HOPE = 5.0  # a merge whose change exceeds the tolerance by more than this factor is not worth a correction
EXACT = 1e-4  # a change below which there is nothing to correct

Sizes = Callable[[nn.Module, Graph, Mapping[str, Features], Sequence[Tape]], Mapping[str, int]]


@torch.inference_mode(mode=False)
@torch.enable_grad()
def merge(
    model: nn.Module,
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    *,
    criteria: Criteria,
    tolerance: Tolerance | None,
    seed: int = 0,
    sizes: Sizes | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    epoch: int | None = None,
    step: int | None = None,
) -> tuple[Plan, list[Record]]:
    """Merge what the criteria nominate and the tolerance allows, in place.

    Order: null neurons, then layers, then neurons, because one dead neuron hides a linear layer. At the end, and
    wherever a merge would be refused for the change that it makes, the Linears are corrected towards what they put out
    before the first merge.

    Args:
        model: changed in place; every refused merge is undone bit for bit.
        fit: tapes from which everything is measured and fitted.
        decide: tapes on which the effect is measured.
        criteria: what nominates.
        tolerance: what decides; None accepts every nominated merge that can be computed.
        seed: of the random combination of outputs that weights the fits.
        sizes: tells from the model, its graph and features how many neurons to leave in which layers (0 removes a
            layer), in place of the criteria for neurons.
        optimizers: edited in place with every merge that is kept.
        copies: models of the same architecture with weights of their own (running averages) that follow every merge.
        epoch: written into the records.
        step: written into the records.

    Returns:
        The merges that were made, in order, and the record of everything that was nominated.
    """
    when = {"epoch": epoch, "step": step}
    return _Merging(model, fit, decide, criteria, tolerance, seed, optimizers, copies, when).run(sizes)


@dataclass(frozen=True, eq=False)
class _Correction:
    """A reconstruction that is in place, and the effect of all changes with it."""

    applied: Applied
    step: Reconstruction
    effect: Effect


class _Merging:
    """One run of the pipeline."""

    def __init__(
        self,
        model: nn.Module,
        fit: Sequence[Tape],
        decide: Sequence[Tape],
        criteria: Criteria,
        tolerance: Tolerance | None,
        seed: int,
        optimizers: Sequence[torch.optim.Optimizer],
        copies: Sequence[nn.Module],
        when: dict[str, Any],
    ) -> None:
        self.model, self.fit, self.decide = model, fit, decide
        self.criteria, self.tolerance, self.seed = criteria, tolerance, seed
        self.optimizers, self.copies, self.when = optimizers, copies, when
        for one in (model, *copies):
            attach(one)
        self.known: dict[Any, Any] = {}  # of regions that a merge elsewhere has not changed
        self.graph: Graph = observe(model, fit, self.known)
        self.check = Check(model, decide, tolerance)
        self.unusable: set[str] = set()
        self.steps: list[Step] = []
        self.records: list[Record] = []
        self.kept: dict[str, Tensor] = {}  # numbers of the neurons that stayed, of those before the first merge
        self.original: Original | None = None

    def run(self, sizes: Sizes | None) -> tuple[Plan, list[Record]]:
        """All three criteria, in order; or the sizes that are asked for."""
        try:
            if self._ready():
                self._null_neurons()
                self._layers()
                if sizes is None:
                    self._neurons()
                else:
                    self._sizes(sizes(self.model, self.graph, self._features(), self.fit))
                self._reconstruct()
        finally:
            for one in (self.model, *self.copies):
                attach(one).forget_untouched(one)
        return Plan(tuple(self.steps)), self.records

    def _ready(self) -> bool:
        """Refuse, on record, the layers that cannot be worked on; false if that is all of them."""
        lag = batch_norm_lag(self.model, self.fit)
        features = {} if lag else collect_features(self.model, self.graph.layers, self.fit)
        decided = collect_features(self.model, self.graph.layers, self.decide).keys()
        for layer in self.graph.layers:
            reason = lag or _unusable(features.get(layer.name))
            if reason is None and layer.name not in decided:
                reason = Reason("never called", "in the half of the data that decides")
            if reason is not None:
                self._refuse(layer, "all", str(reason))
                self.unusable.add(layer.name)
        return len(self.unusable) < len(self.graph.layers)

    # the three criteria, in order

    def _null_neurons(self) -> None:
        features = self._features()
        for layer in list(self.graph.layers):
            if layer.name in features:
                self._attempt(nominate_null(self.model, layer, features[layer.name]))

    def _layers(self, names: Container[str] | None = None) -> None:
        """Fit against the network as it is now, rank by the effect of each merge alone, then merge one by one.

        Layers given by name are merged whatever their MPC.
        """
        threshold = self.criteria.linearization if names is None else 0.0
        if threshold is None:
            return
        features = self._features()
        layers = [one for one in self.graph.layers if one.merge_layer is None and one.name in features]
        layers = [one for one in layers if names is None or one.name in names]
        if not layers:
            return
        gradients = output_gradients(self.model, layers, self.fit, seed=self.seed)
        probe = Check(self.model, self.fit, None)
        nominated: list[tuple[float, LayerMerge]] = []
        for layer in layers:
            fits = nominate_layer(
                layer,
                features[layer.name],
                threshold,
                gradients[layer.name].square(),
                lambda pre, name=layer.name: self.graph.run_region(self.model, name, pre),  # type: ignore[misc]  # bound now
            )
            if fits and self._partly_frozen(layer):
                self._refuse(layer, "linearization", str(Reason("frozen beside trainable")))
                continue
            effects = [(self._alone(step, probe), step) for step in fits]
            if effects:
                nominated.append(min(effects, key=lambda pair: pair[0]))
        for _, step in sorted(nominated, key=lambda pair: pair[0]):
            # the merges before it may have changed its consumers
            now = self._layer_now(step.layer)
            if now is None or now.merge_layer is not None:
                why = str(self.graph.refused.get(step.layer)) if now is None else now.merge_layer
                self.records.append(Record.of(step, reason=f"after the merges before it: {why}", **self.when))
                continue
            self._attempt([refreshed(step, now, self._features([now])[step.layer])])

    def _neurons(self) -> None:
        """Layer after layer, on the features of the network as it has become."""
        for layer in list(self.graph.layers):
            features = self._features([layer]).get(layer.name)
            if layer.merge_neurons is not None or features is None:
                continue
            candidates, refused = nominate_neurons(self.model, layer, features, self.criteria)
            for criterion, reason in refused.items():
                self._refuse(layer, criterion, reason)
            if not self._attempt(candidates) and candidates:
                self._attempt(milder(self.model, layer, features, candidates[-1]))

    def _sizes(self, sizes: Mapping[str, int]) -> None:
        """Leave the wanted number of neurons in each layer; those that are to go altogether first."""
        self._layers({name for name, width in sizes.items() if width == 0})
        for name in [one.name for one in self.graph.layers if sizes.get(one.name)]:
            layer = self._layer_now(name)
            if layer is None or layer.merge_neurons is not None:  # a merge before has changed what lies behind it
                why = str(self.graph.refused.get(name)) if layer is None else str(layer.merge_neurons)
                self._refuse(layer or name, "size", f"after the merges before it: {why}")
            elif name not in self.unusable and sizes[name] < layer.width:
                step = nominate_width(self.model, layer, self._features([layer])[name], sizes[name])
                if isinstance(step, Reason):
                    self._refuse(layer, "size", str(step))
                else:
                    self._attempt([step])

    def _layer_now(self, name: str) -> HiddenLayer | None:
        """A layer as it is after the merges so far; None where it is none any more."""
        return next((one for one in self.graph.layers if one.name == name), None)

    # measuring

    def _partly_frozen(self, layer: HiddenLayer) -> bool:
        """Whether some of the weights that would become one product are trained and others not."""
        names = (layer.name, *layer.consumers)
        return len({submodule(self.model, name).weight.requires_grad for name in names}) > 1

    def _features(self, layers: Sequence[HiddenLayer] | None = None) -> dict[str, Features]:
        """Features of the layers that can be worked on."""
        layers = self.graph.layers if layers is None else layers
        return collect_features(self.model, [one for one in layers if one.name not in self.unusable], self.fit)

    def _alone(self, step: LayerMerge, probe: Check) -> float:
        """The change that one merge makes by itself, on the fitting data."""
        try:
            applied = apply_step(self.model, step)
        except InputError:  # a candidate that cannot be computed comes last
            return float("inf")
        try:
            return probe.change(self.model)
        finally:
            applied.undo()

    # try and check

    def _attempt(self, candidates: Sequence[Step]) -> bool:
        """Try candidates for one layer, the boldest first, until one is allowed; record what happened."""
        for step in candidates:
            if self.original is None:
                self.original = Original(self.model, self.graph, self.fit, seed=self.seed)
            before = parameter_count(self.model)
            try:
                applied = apply_step(self.model, step)
            except InputError as error:  # the merged weights cannot be held, in half precision for one
                self.records.append(Record.of(step, reason=str(error), parameters=(before, before), **self.when))
                continue
            kept = self._kept_after(step)
            effect = self.check.effect(self.model)
            reason = self.check.refusal(effect)
            correction = self._corrected(effect, kept) if reason and effect.change <= self._worth else None
            if correction is not None:
                effect, reason = correction.effect, self.check.refusal(correction.effect)
            if reason:
                if correction is not None:
                    correction.applied.undo()
                applied.undo()
            self._record(step, applied, effect, reason, before)
            if not reason:
                self.kept = kept
                if correction is not None:
                    self._record(correction.step, correction.applied, effect, "", parameter_count(self.model))
                self.graph = observe(self.model, self.fit, self.known)
                return True
        return False

    @property
    def _worth(self) -> float:
        """The change up to which a correction may save a merge."""
        return math.inf if self.tolerance is None else HOPE * self.tolerance.change

    def _record(self, step: Step, applied: Applied, effect: Effect, reason: str, before: int) -> None:
        """Write down what became of a step, and make it final if it stays."""
        record = Record.of(
            step,
            reason=reason,
            change=effect.change,
            agreement=effect.agreement,
            metric=effect.metric,
            parameters=(before, parameter_count(self.model)),
            **self.when,
        )
        self.records.append(record)
        if not reason:
            settle(self.model, applied, self.optimizers, record)
            self._follow(step, record)
            self.steps.append(step)

    def _follow(self, step: Step, record: Record) -> None:
        """Let the copies take a step that is final in the model."""
        for one in self.copies:
            try:
                settle(one, apply_step(one, step), (), record)
            except InputError as error:  # the model has gone ahead, so this must not pass as a refused merge
                raise RuntimeError(
                    f"An averaged copy of the weights cannot follow the merge of {record.layer}: {error} Resume from "
                    "the last checkpoint, without the callback that averages."
                ) from error

    def _kept_after(self, step: Step) -> dict[str, Tensor]:
        """For every layer that is narrower than at first, which of its neurons stay."""
        if not isinstance(step, NeuronMerge):
            return self.kept
        now = torch.tensor(step.kept)
        known = self.kept.get(step.layer)
        return {**self.kept, step.layer: now if known is None else known[now]}

    def _corrected(self, effect: Effect, kept: Mapping[str, Tensor]) -> _Correction | None:
        """Correct the model towards its original; None, and nothing is changed, where that makes it no better."""
        if self.original is None or effect.failure or not effect.change > EXACT:
            return None
        found = self.original.reconstruct(self.model, kept)
        if found is None:
            return None
        applied, step = found
        better = self.check.effect(self.model)
        if (
            better.failure
            or not better.change < effect.change
            or (self._agrees and better.agreement < effect.agreement)
            or (effect.metric is not None and better.fall > effect.fall)
        ):
            applied.undo()
            return None
        return _Correction(applied, replace(step, evidence={"change before": effect.change}), better)

    @property
    def _agrees(self) -> bool:
        """Whether agreement counts."""
        return self.tolerance is not None and self.tolerance.agreement is not None

    def _reconstruct(self) -> None:
        """The last correction, with all merges in place."""
        if self.steps and not isinstance(self.steps[-1], Reconstruction):
            correction = self._corrected(self.check.effect(self.model), self.kept)
            if correction is not None:
                self._record(correction.step, correction.applied, correction.effect, "", parameter_count(self.model))

    def _refuse(self, layer: HiddenLayer | str, criterion: str, reason: str) -> None:
        kind = "layer" if criterion in {"all", "linearization"} else "neurons"
        name, width = (layer, 0) if isinstance(layer, str) else (layer.name, layer.width)
        self.records.append(Record(kind, name, criterion, done=False, reason=reason, width=(width, width), **self.when))


def _unusable(features: Features | None) -> Reason | None:
    if features is None:
        return Reason("never called", "in the half of the data that fits")
    if not features.finite:
        return Reason("values not finite")
    if not features.agree:
        return Reason("consumers differ")
    if features.rows < SAMPLES:
        return Reason("too few samples", f"{features.rows} to fit, at least {SAMPLES} are needed")
    return None
