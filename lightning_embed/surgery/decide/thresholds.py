"""The path of the thresholds: what the criteria nominate is tried, stage after stage."""

from __future__ import annotations

from collections.abc import Container, Sequence

from lightning_embed.graph import HiddenLayer, Reason
from lightning_embed.surgery.change.edit import submodule
from lightning_embed.surgery.change.layer_merge import LayerMerge
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.decide.check import Check
from lightning_embed.surgery.decide.event import Bench, Identity
from lightning_embed.surgery.nominate.criterion import Criterion, Stage
from lightning_embed.surgery.nominate.features import Features, output_gradients
from lightning_embed.surgery.nominate.linearization import refreshed
from lightning_embed.surgery.nominate.size import milder


def merge_constants(bench: Bench, criteria: Sequence[Criterion]) -> None:
    """Drop neurons that say nothing, of all layers on the features of the network as it was before."""
    for criterion in _of_stage(criteria, "constants"):
        features = bench.features()
        for name, identity in [(layer.name, bench.identity(layer)) for layer in bench.graph.layers]:
            layer = bench.layer_now(identity)
            if layer is not None and name in features and layer.merge_neurons is None:
                nominated = criterion.nominate(bench.view(layer, features[name]))
                if isinstance(nominated, Reason):
                    bench.refuse(layer, criterion.name, str(nominated))
                else:
                    bench.attempt(nominated)


def merge_layers(bench: Bench, criteria: Sequence[Criterion], names: Container[str] | None = None) -> None:
    """Fit against the network as it is now, rank by the effect of each merge alone, then merge one by one.

    Args:
        bench: where it is done.
        criteria: those of the stage "layers" count.
        names: only these layers; None: all.
    """
    criteria = _of_stage(criteria, "layers")
    if not criteria:
        return
    bench.observe_where_derived()
    features = bench.features()
    layers = [
        layer
        for layer in bench.graph.layers
        if layer.merge_layer is None and layer.name in features and (names is None or layer.name in names)
    ]
    if not layers:
        return
    event = bench.event
    looking = any(criterion.gradients for criterion in criteria)
    gradients = output_gradients(bench.model, layers, event.fit, seed=event.seed) if looking else {}
    probe = Check(bench.model, event.fit, None, bench.graph.layers)
    ranked: list[tuple[float, LayerMerge, Identity]] = []
    for layer in layers:
        for criterion in criteria:
            view = bench.view(layer, features[layer.name], gradients.get(layer.name))
            nominated = criterion.nominate(view)
            if isinstance(nominated, Reason):
                bench.refuse(layer, criterion.name, str(nominated))
                continue
            if nominated and _partly_frozen(bench, layer):
                bench.refuse(layer, criterion.name, str(Reason("frozen beside trainable")))
                continue
            effects = [(bench.effect_alone(step, probe), step) for step in nominated if isinstance(step, LayerMerge)]
            if effects:
                ranked.append((*min(effects, key=lambda pair: pair[0]), bench.identity(layer)))
    for _, step, identity in sorted(ranked, key=lambda entry: entry[0]):
        # the merges before it may have changed its consumers
        now = bench.layer_now(identity)
        if now is None or now.merge_layer is not None:
            why = str(bench.graph.refused.get(step.layer)) if now is None else now.merge_layer
            bench.refuse_step(step, f"after the merges before it: {why}")
            continue
        bench.attempt([refreshed(step, now, bench.features([now])[now.name])])


def merge_neurons(bench: Bench, criteria: Sequence[Criterion]) -> None:
    """Layer after layer, on the features of the network as it has become."""
    criteria = _of_stage(criteria, "neurons")
    for identity in [bench.identity(layer) for layer in bench.graph.layers]:
        layer = bench.layer_now(identity)
        features = None if layer is None else bench.features([layer]).get(layer.name)
        if layer is not None and layer.merge_neurons is None and features is not None:
            _merge_neurons_of(bench, layer, features, criteria)


def _merge_neurons_of(bench: Bench, layer: HiddenLayer, features: Features, criteria: Sequence[Criterion]) -> None:
    """Try what the criteria nominate for one layer; where all is refused, milder steps."""
    looking = any(criterion.gradients for criterion in criteria)
    event = bench.event
    gradients = output_gradients(bench.model, [layer], event.fit, seed=event.seed)[layer.name] if looking else None
    view = bench.view(layer, features, gradients)
    candidates: list[NeuronMerge] = []
    for criterion in criteria:
        nominated = criterion.nominate(view)
        if isinstance(nominated, Reason):
            bench.refuse(layer, criterion.name, str(nominated))
        else:
            candidates.extend(step for step in nominated if isinstance(step, NeuronMerge) and step.cuts)
    candidates.sort(key=lambda step: len(step.kept))
    if not bench.attempt(candidates) and candidates:
        bench.attempt(milder(view, candidates[-1]))


def _of_stage(criteria: Sequence[Criterion], stage: Stage) -> list[Criterion]:
    return [criterion for criterion in criteria if criterion.stage == stage]


def _partly_frozen(bench: Bench, layer: HiddenLayer) -> bool:
    """Whether some of the weights that would become one product are trained and others not."""
    names = (*layer.producers, *layer.consumers)
    return len({submodule(bench.model, name).weight.requires_grad for name in names}) > 1
