"""The sites of every network of the zoo are those that were written down, whatever it is observed with."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from lightning_embed.graph import Graph, is_layer, observe
from lightning_embed.tape import Tape, record
from lightning_embed.tape.tape import modules_by_name
from tests.zoo.sites import SITES, batch_of, build, index
from tests.zoo.sites.units import Units, all_units, mergeable, true_units, units_of

NAMES = list(SITES)
WITH_SITES = [name for name in NAMES if SITES[name].sites]


def some(names: list[str], first: int) -> list[Any]:
    """Every sixth in the quick suite, the others in the slow one."""
    return [
        name if number % 6 == first else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(names)
    ]


def tapes_of(name: str, model: nn.Module, **batch: Any) -> list[Tape]:
    torch.manual_seed(1)
    return record(model, [batch_of(name, **batch)], call=lambda batch: SITES[name].call(model, batch))


@cache
def seen(name: str) -> tuple[nn.Module, list[Tape], Graph]:
    model = build(name)
    tapes = tapes_of(name, model)
    return model, tapes, observe(model, tapes)


def truths(name: str) -> frozenset[Units]:
    return frozenset(true_units(truth) for truth in SITES[name].sites)


@pytest.mark.parametrize("name", NAMES)
def test_sites_are_those_written_down(name: str) -> None:
    _, _, graph = seen(name)
    found = {units_of(layer): layer for layer in mergeable(graph)}
    assert found.keys() == truths(name), graph
    for truth in SITES[name].sites:
        layer = found[true_units(truth)]
        assert layer.width == len(index(next(iter(truth.producers.values()))))
        assert set(layer.fixed) == set(truth.fixed), layer.name
        assert truth.rows_mix in (None, layer.rows_mix), layer.name


@pytest.mark.parametrize("name", NAMES)
def test_other_layers_say_why_they_are_in_none(name: str) -> None:
    model, _, graph = seen(name)
    reasons = {layer: str(reason) for layer, reason in graph.refused.items()}
    for layer in graph.layers:
        if layer.merge_neurons is not None:
            reasons |= dict.fromkeys(layer.producers, layer.merge_neurons)
    for layer in mergeable(graph):
        for producer in layer.producers:
            reasons.pop(producer, None)
    assert reasons.keys() == SITES[name].why.keys(), graph
    for layer_name, keys in SITES[name].why.items():
        assert not keys or reasons[layer_name].startswith(keys), reasons
    layers = {path for path, module in modules_by_name(model).items() if is_layer(module)}
    assert layers == reasons.keys() | {one for layer in mergeable(graph) for one in layer.producers}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_distinct_and_tell_the_first_producer(name: str) -> None:
    _, _, graph = seen(name)
    names = [layer.name for layer in graph.layers]
    assert len(set(names)) == len(names)
    for layer in graph.layers:
        assert layer.name.partition("[")[0] in layer.producers
        assert layer.consumers == tuple(layer.reads)
        assert layer.intercepts.keys() == layer.reads.keys()
        layouts = [*layer.producers.values(), *layer.reads.values(), *(one for _, one in layer.per_neuron)]
        assert all(one.index is None or len(one.index) == layer.width for one in layouts)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", some(NAMES, 4))
def test_observing_leaves_no_trace(name: str, training: bool) -> None:
    model, tapes, graph = seen(name)
    model = copy.deepcopy(model).train(training)
    before = {key: tensor.clone() for key, tensor in [*model.state_dict().items(), *model.named_buffers()]}
    random = torch.get_rng_state()
    again = observe(model, tapes)
    assert str(again) == str(graph)
    assert torch.equal(random, torch.get_rng_state())
    after = dict([*model.state_dict().items(), *model.named_buffers()])
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", some(WITH_SITES, 0))
def test_the_same_units_in_other_types(name: str, dtype: torch.dtype) -> None:
    if (name, dtype) == ("Spectrum", torch.bfloat16):
        pytest.skip("torch has no Fourier transform of this type")
    model = build(name, dtype)
    assert all_units(observe(model, tapes_of(name, model, dtype=dtype))) == truths(name)


@pytest.mark.parametrize("name", some(WITH_SITES, 1))
def test_the_same_units_in_any_order_of_modules(name: str) -> None:
    model = build(name)
    for module in model.modules():
        module._modules = dict(reversed(module._modules.items()))
    assert all_units(observe(model, tapes_of(name, model))) == truths(name)


@pytest.mark.parametrize("name", some(WITH_SITES, 2))
def test_the_same_units_with_as_many_rows_as_neurons(name: str) -> None:
    """Sizes that are equal by chance are not taken for each other."""
    model = build(name)
    width = len(index(next(iter(SITES[name].sites[0].producers.values()))))
    assert all_units(observe(model, tapes_of(name, model, rows=width))) == truths(name)


def silenced(model: nn.Module) -> nn.Module:
    """Every third neuron of every layer far below zero."""
    for module in model.modules():
        if is_layer(module) and getattr(module, "bias", None) is not None:
            with torch.no_grad():
                module.bias[::3] -= 50
    return model


@pytest.mark.parametrize("name", some(WITH_SITES, 3))
def test_the_same_units_where_many_are_dead(name: str) -> None:
    model = silenced(build(name))
    assert truths(name) <= all_units(observe(model, tapes_of(name, model)))


@pytest.mark.parametrize("width", [48, 64, 128])
@pytest.mark.parametrize("seed", range(3))
def test_values_of_attention_are_found_at_widths_for_which_another_kernel_computes_it(width, seed):
    """With as many values as queries attention is one kernel, cut to fewer values another, which rounds otherwise."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = nn.Linear(10, 64), nn.Linear(10, 64), nn.Linear(10, width)
            self.out = nn.Linear(width, 3)

        def forward(self, x):
            mixed = nn.functional.scaled_dot_product_attention(5 * self.query(x), 5 * self.key(x), self.value(x))
            return self.out(mixed)

    torch.manual_seed(seed)
    model = Attention()
    graph = observe(model, record(model, [torch.randn(16, 28, 10)]))
    assert graph["value"].merge_neurons is None
    assert graph["value"].width == width
