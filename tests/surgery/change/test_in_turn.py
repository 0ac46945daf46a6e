"""What merges of neurons do to a graph: derived from them, it is what is seen when the cut model is observed anew."""

import pytest
import torch

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery import Fit, NeuronMerge
from lightning_embed.surgery.change.in_turn import graph_after, in_turn
from lightning_embed.tape import record
from tests.zoo.sites import SITES, batch_of, build

WITH_SITES = [name for name, case in SITES.items() if case.sites]
EVERY = 4  # of them in the quick suite


def merges(graph, seed):
    """Half of the units of every layer go, others each time."""
    steps = []
    generator = torch.Generator().manual_seed(seed)
    for layer in graph.layers:
        if layer.merge_neurons is None and layer.width > 1:
            kept = torch.randperm(layer.width, generator=generator)[: layer.width // 2].sort().values.tolist()
            mix = torch.eye(layer.width, dtype=torch.float64)[:, kept]
            fits = (Fit(layer.consumers, mix, torch.zeros(layer.width, dtype=torch.float64)),)
            steps.append(
                NeuronMerge(
                    layer.name, layer.producers, layer.reads, layer.per_neuron, tuple(kept), fits, "of this test"
                )
            )
    return steps


def places(graph):
    """Where the units of all layers are, each with what may be done to it."""
    return {
        layer.name: (
            layer.width,
            {name: set(map(tuple, layout.index.tolist())) for name, layout in layer.producers.items()},
            {name: set(map(tuple, layout.index.tolist())) for name, layout in layer.reads.items()},
            {(name, layout.dim): set(map(tuple, layout.index.tolist())) for name, layout in layer.per_neuron},
            layer.merge_neurons,
        )
        for layer in graph.layers
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % EVERY == 1 else pytest.mark.slow)
        for number, name in enumerate(WITH_SITES)
    ],
)
def test_the_derived_graph_is_the_one_that_is_seen(name):
    model = build(name, torch.float64)

    def tapes():
        return record(model, [batch_of(name, dtype=torch.float64)], call=lambda batch: SITES[name].call(model, batch))

    graph = observe(model, tapes())
    steps = merges(graph, seed=3)
    le.apply(model, le.Plan(tuple(in_turn(steps))))
    derived, seen = places(graph_after(graph, steps)), places(observe(model, tapes()))
    for layer, where in seen.items():  # what has a single unit left may be no hidden layer any more
        assert derived[layer] == where
    assert all(derived[layer][0] == 1 for layer in derived.keys() - seen.keys())
