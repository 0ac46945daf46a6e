"""The one pipeline: observe, measure, propose, try, check, keep or undo, record.

`prune`, `propose` and the training callback all run `merge`; they differ in which model they hand over and in
whether a tolerance decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, Reason, observe
from lightning_embed.surgery.apply import apply_step, settle
from lightning_embed.surgery.check import Check, batch_norm_lag
from lightning_embed.surgery.checkpoint import attach
from lightning_embed.surgery.edit import submodule
from lightning_embed.surgery.features import Features, collect_features, sensitivities
from lightning_embed.surgery.plan import Criteria, LayerMerge, Plan, Record, Step, Tolerance
from lightning_embed.surgery.propose import SAMPLES, nominate_layer, nominate_neurons, nominate_null, refreshed
from lightning_embed.tape import Tape


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
    optimizers: Sequence[torch.optim.Optimizer] = (),
    epoch: int | None = None,
    step: int | None = None,
) -> tuple[Plan, list[Record]]:
    """Merge what the criteria nominate and the tolerance allows, in place.

    Order: null neurons, then layers, then neurons, because one dead neuron hides a linear layer.

    Args:
        model: changed in place; every refused merge is undone bit for bit.
        fit: tapes from which everything is measured and fitted.
        decide: tapes on which the effect is measured.
        criteria: what nominates.
        tolerance: what decides; None accepts every nominated merge that can be computed.
        seed: of the random combination of outputs that weights the fits.
        optimizers: edited in place with every merge that is kept.
        epoch: written into the records.
        step: written into the records.

    Returns:
        The merges that were made, in order, and the record of everything that was nominated.
    """
    when = {"epoch": epoch, "step": step}
    return _Merging(model, fit, decide, criteria, tolerance, seed, optimizers, when).run()


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
        when: dict[str, Any],
    ) -> None:
        self.model, self.fit, self.decide = model, fit, decide
        self.criteria, self.tolerance, self.seed = criteria, tolerance, seed
        self.optimizers, self.when = optimizers, when
        self.attachment = attach(model)
        self.graph: Graph = observe(model, fit)
        self.check = Check(model, decide, tolerance)
        self.unusable: set[str] = set()
        self.steps: list[Step] = []
        self.records: list[Record] = []

    def run(self) -> tuple[Plan, list[Record]]:
        """All three criteria, in order."""
        try:
            if self._ready():
                self._null_neurons()
                self._layers()
                self._neurons()
        finally:
            self.attachment.forget_untouched(self.model)
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
                step = nominate_null(layer, features[layer.name])
                if step is not None:
                    self._attempt([step])

    def _layers(self) -> None:
        """Fit against the network as it is now, rank by the effect of each merge alone, then merge one by one."""
        if self.criteria.linearization is None:
            return
        features = self._features()
        layers = [one for one in self.graph.layers if one.merge_layer is None and one.name in features]
        if not layers:
            return
        weights = sensitivities(self.model, layers, self.fit, seed=self.seed)
        probe = Check(self.model, self.fit, None)
        nominated: list[tuple[float, LayerMerge]] = []
        for layer in layers:
            fits = nominate_layer(
                layer,
                features[layer.name],
                self.criteria,
                weights[layer.name],
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
            now = next((one for one in self.graph.layers if one.name == step.layer), None)
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
            self._attempt(candidates)

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
            effect = probe.effect(self.model)
            return float("inf") if effect.failure else effect.change
        finally:
            applied.undo()

    # try and check

    def _attempt(self, candidates: Sequence[Step]) -> None:
        """Try candidates for one layer, the boldest first, until one is allowed; record what happened."""
        for step in candidates:
            before = _count(self.model)
            try:
                applied = apply_step(self.model, step)
            except InputError as error:  # the merged weights cannot be held, in half precision for one
                self.records.append(Record.of(step, reason=str(error), parameters=(before, before), **self.when))
                continue
            effect = self.check.effect(self.model)
            reason = self.check.refusal(effect)
            if reason:
                applied.undo()
            record = Record.of(
                step,
                reason=reason,
                change=effect.change,
                agreement=effect.agreement,
                parameters=(before, _count(self.model)),
                **self.when,
            )
            self.records.append(record)
            if not reason:
                settle(self.model, applied, self.optimizers, record)
                self.steps.append(step)
                self.graph = observe(self.model, self.fit)
                return

    def _refuse(self, layer: HiddenLayer, criterion: str, reason: str) -> None:
        kind, width = "neurons" if criterion in {"condensation", "span"} else "layer", (layer.width, layer.width)
        self.records.append(Record(kind, layer.name, criterion, done=False, reason=reason, width=width, **self.when))


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


def _count(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())
