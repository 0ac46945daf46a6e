"""The law of sites: copies that are planted in a site can be cut away, and nothing changes on data never seen."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.graph import HiddenLayer, observe
from lightning_embed.graph.kinds import output_weight
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.neuron_merge import Fit, NeuronMerge
from lightning_embed.tape import record
from tests.tolerances import tolerance
from tests.zoo.sites import IN, OUT, SITES, Net, Truth, batch_of, build, index
from tests.zoo.sites.compositions import ACTIVATIONS, BLOCKS, Composed
from tests.zoo.sites.cutting import cut_copies, groups_of, pairs_of, plant, units_in
from tests.zoo.sites.units import all_units, entries, true_units, units_of

EVERY_SITE = [
    pytest.param(name, number, id=f"{name}-{'+'.join(truth.producers)}")
    for name, case in SITES.items()
    for number, truth in enumerate(case.sites)
]

WITH_SITES = [name for name, case in SITES.items() if case.sites]


def some(every: int, first: int) -> list[Any]:
    """Models, half of them in single and half in double precision; a part of them in the quick suite."""
    return [
        pytest.param(
            name,
            (torch.float32, torch.float64)[number // every % 2],
            id=name,
            marks=() if number % every == first else pytest.mark.slow,
        )
        for number, name in enumerate(WITH_SITES)
    ]


# the refit is a ridge regression, which leaves a little of what copies share
FITTED = {
    torch.float64: lambda scale: {"rtol": 0, "atol": 1e-6 * scale},
    torch.float32: lambda scale: tolerance(torch.float32, scale),
    torch.bfloat16: lambda scale: tolerance(torch.bfloat16, scale),
}


def outputs(name: str, model: nn.Module, batch: Any) -> Tensor:
    """All that a model puts out, as one matrix."""
    torch.manual_seed(7)  # of those that are random in eval mode
    with torch.no_grad():
        given = SITES[name].call(model.eval(), batch)
    parts = given if isinstance(given, tuple) else (given,)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def unseen(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(2)
    return batch_of(name, 16, dtype)


@pytest.mark.parametrize(("name", "number"), EVERY_SITE)
def test_the_truth_is_true(name: str, number: int) -> None:
    """The written indices are cut by hand: they need no discovery to be right."""
    truth = SITES[name].sites[number]
    batch = unseen(name, torch.float64)
    for pairs in (pairs_of(units_in(truth)), [(units_in(truth) - 1, 0)]):  # in balance and out of it
        model = build(name, torch.float64)
        plant(model, truth, pairs)
        before = outputs(name, model, batch)
        parameters = parameter_count(model)
        cut_copies(model, truth, pairs)
        assert parameter_count(model) < parameters
        after = outputs(name, model, batch)
        torch.testing.assert_close(after, before, **tolerance(torch.float64, before.abs().max().item()))


def calibration(name: str, dtype: torch.dtype) -> list[Any]:
    torch.manual_seed(3)
    return [batch_of(name, 32, dtype) for _ in range(4)]


@torch.no_grad()
def settle(name: str, model: nn.Module, batches: list[Any]) -> nn.Module:
    """Let batch norms see the calibration data."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches if norms else ():
        SITES[name].call(model.train(), batch)
    return model.eval()


def planted(name: str, dtype: torch.dtype, truths: Sequence[Truth], copies: int = 2) -> tuple[nn.Module, list[Any]]:
    """A model with as many copies of every unit in these sites, and data to calibrate it on."""
    model, batches = build(name, dtype), calibration(name, dtype)
    for truth in truths:
        plant(model, truth, groups_of(units_in(truth), copies))
    return settle(name, model, batches), batches


def widths_of(name: str, truths: Sequence[Truth], copies: int = 2) -> dict[str, int]:
    """The number of distinct units of each site, by a producer that no other site has: the last of these."""
    widths = {}
    for truth in truths:
        others = {one for other in SITES[name].sites if other is not truth for one in other.producers}
        widths[[one for one in truth.producers if one not in others][-1]] = -(-units_in(truth) // copies)
    return widths


def prune(name: str, model: nn.Module, batches: list[Any], widths: dict[str, int]) -> le.Result:
    def call(batch: Any) -> Any:
        return SITES[name].call(model, batch)

    return le.prune(model, batches, call=call, widths=widths, match=False)


def require_law(name: str, before: nn.Module, after: nn.Module, dtype: torch.dtype) -> None:
    batch = unseen(name, dtype)
    old, new = outputs(name, before, batch), outputs(name, after, batch)
    torch.testing.assert_close(new, old, **FITTED[old.dtype](old.abs().max().item()))


def require_widths(model: nn.Module, result: le.Result, truths: Sequence[Truth], copies: int = 2) -> None:
    """Every producer has lost the rows of the copies; more only where neurons are constant on the calibration data."""
    left = {producer: len(output_weight(model.get_submodule(producer))) for t in truths for producer in t.producers}
    for truth in truths:
        for producer, text in truth.producers.items():
            left[producer] -= (units_in(truth) - -(-units_in(truth) // copies)) * len(index(text)[0])
    found = {producer: len(output_weight(result.model.get_submodule(producer))) for producer in left}
    dead = any(one.done and one.criterion == "null" for one in result.records)
    assert all(found[name] == rows or (dead and found[name] < rows) for name, rows in left.items()), result


@cache
def pruned(name: str, dtype: torch.dtype) -> tuple[nn.Module, le.Result]:
    """A model with copies in every site, and the same one without them."""
    truths = SITES[name].sites
    model, batches = planted(name, dtype, truths)
    return model, prune(name, model, batches, widths_of(name, truths))


def merge_of_copies(layer: HiddenLayer) -> NeuronMerge:
    """Keep the first unit of every pair of copies; no fit."""
    kept = list(range(0, layer.width, 2))
    mix = torch.eye(layer.width, dtype=torch.float64)[:, kept]
    mix[[second for _, second in pairs_of(layer.width)]] = mix[[first for first, _ in pairs_of(layer.width)]]
    fit = Fit(layer.consumers, mix, torch.zeros(layer.width, dtype=torch.float64))
    return NeuronMerge(layer.name, layer.producers, layer.reads, layer.per_neuron, tuple(kept), (fit,), "of this test")


@pytest.mark.parametrize(("name", "dtype"), some(2, 1))
def test_each_site_without_a_fit(name: str, dtype: torch.dtype) -> None:
    """What was found is cut by the package as the law has it: nothing is lost but rounding."""
    given = build(name, dtype)
    graph = observe(
        given, record(given, [batch_of(name, dtype=dtype)], call=lambda batch: SITES[name].call(given, batch))
    )
    truths = {true_units(truth): truth for truth in SITES[name].sites}
    for layer in graph.layers:
        if layer.merge_neurons is not None:
            continue
        model, truth = copy.deepcopy(given), truths[units_of(layer)]
        first = next(iter(truth.producers))
        rows = [tuple(sorted(unit)) for unit in entries(layer.producers[first], layer.width)]
        found = {unit: number for number, unit in enumerate(index(truth.producers[first]))}
        order = [found[unit] for unit in rows]  # that of the discovery in that of the truth
        plant(model, truth, [(order[one], order[other]) for one, other in pairs_of(layer.width)])
        twin = copy.deepcopy(model)
        le.apply(twin, le.Plan((merge_of_copies(layer),)))
        assert parameter_count(twin) < parameter_count(model)
        batch = unseen(name, dtype)
        old, new = outputs(name, model, batch), outputs(name, twin, batch)
        torch.testing.assert_close(new, old, **tolerance(old.dtype, old.abs().max().item()))


@pytest.mark.parametrize(("name", "dtype"), some(10, 0))
def test_every_site_at_once(name: str, dtype: torch.dtype) -> None:
    model, result = pruned(name, dtype)
    require_widths(model, result, SITES[name].sites)
    require_law(name, model, result.model, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "number"), EVERY_SITE)
def test_each_site_alone(name: str, number: int, dtype: torch.dtype) -> None:
    truths = SITES[name].sites[number : number + 1]
    model, batches = planted(name, dtype, truths)
    result = prune(name, model, batches, widths_of(name, truths))
    require_widths(model, result, truths)
    require_law(name, model, result.model, dtype)


@pytest.mark.parametrize(("name", "dtype"), some(10, 0))
def test_the_plan_as_json_repeats_it(name: str, dtype: torch.dtype) -> None:
    model, result = pruned(name, dtype)
    twin = copy.deepcopy(model)
    plan = le.Plan.from_dict(json.loads(json.dumps(result.plan.to_dict())))
    assert plan == result.plan
    le.apply(twin, plan)
    batch = unseen(name, dtype)
    torch.testing.assert_close(outputs(name, twin, batch), outputs(name, result.model, batch), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "dtype"), some(10, 0))
def test_a_checkpoint_brings_it_back(name: str, dtype: torch.dtype) -> None:
    _, result = pruned(name, dtype)
    saved = io.BytesIO()
    torch.save(result.model.state_dict(), saved)
    saved.seek(0)
    fresh = build(name, dtype, seed=5)
    le.attach(fresh)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    batch = unseen(name, dtype)
    torch.testing.assert_close(outputs(name, fresh, batch), outputs(name, result.model, batch), rtol=0, atol=0)
    sizes = [{key: one for key, one in vars(m).items() if type(one) is int} for m in fresh.modules()]
    assert sizes == [{key: one for key, one in vars(m).items() if type(one) is int} for m in result.model.modules()]


@pytest.mark.parametrize(("name", "dtype"), some(60, 7))
def test_a_second_prune_takes_what_the_first_left(name: str, dtype: torch.dtype) -> None:
    truths = SITES[name].sites
    model, batches = planted(name, dtype, truths, copies=3)
    first = prune(name, model, batches, {key: width + 1 for key, width in widths_of(name, truths, 3).items()})
    # the first may have left so few units that they are no hidden layer any more
    after = le.measure(first.model, batches, call=lambda batch: SITES[name].call(first.model, batch))
    left = {producer for layer in after.layers for producer in layer.producers}
    widths = {key: width for key, width in widths_of(name, truths, 3).items() if key.partition("[")[0] in left}
    second = prune(name, first.model, batches, widths) if widths else first
    require_widths(model, second, truths, copies=3)
    require_law(name, model, second.model, dtype)


@pytest.mark.parametrize(("name", "dtype"), some(30, 11))
def test_thresholds_find_the_copies(name: str, dtype: torch.dtype) -> None:
    truths = SITES[name].sites
    model, batches = planted(name, dtype, truths)
    criteria = le.Criteria(linearization=None, condensation=0.9999, span=1e-5)
    plan = le.propose(model, batches, criteria=criteria, call=lambda batch: SITES[name].call(model, batch))
    twin = copy.deepcopy(model)
    le.apply(twin, plan)
    for truth in truths:
        for producer, text in truth.producers.items():
            rows = [len(output_weight(one.get_submodule(producer))) for one in (model, twin)]
            assert rows[0] - rows[1] >= units_in(truth) // 2 * len(index(text)[0]), plan
    batch = unseen(name, dtype)
    old, new = outputs(name, model, batch), outputs(name, twin, batch)
    torch.testing.assert_close(new, old, rtol=0, atol=1e-3 * old.abs().max().item())


class WrittenMaxout(Net):
    """The code says how many neurons there are, which no re-execution can tell from what follows the tensor."""

    def __init__(self) -> None:
        super().__init__(pieces=nn.Linear(IN, 20), out=nn.Linear(10, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pieces(x).view(-1, 10, 2).amax(dim=-1))


class WrittenChannels(Net):
    """Half of the channels would make of eight samples four."""

    def __init__(self) -> None:
        super().__init__(begin=nn.Linear(IN, 24), up=nn.ConvTranspose2d(6, OUT, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.begin(x).relu().view(-1, 6, 2, 2))


@pytest.mark.parametrize(("make", "name"), [(WrittenMaxout, "pieces"), (WrittenChannels, "begin")])
def test_sizes_in_code_are_found_at_the_latest_when_tried(make: type[Net], name: str) -> None:
    torch.manual_seed(0)
    model, batches = make(), [torch.randn(32, IN) for _ in range(4)]
    graph = observe(model, record(model, batches[:1]))
    refused = name in graph.refused or graph[name].merge_neurons is not None
    if refused:
        return
    width = graph[name].width
    with contextlib.suppress(le.InputError):  # the size cannot be reached
        result = le.prune(model, batches, widths={name: width // 2})
        assert all(not one.done for one in result.records), result
        with torch.no_grad():
            torch.testing.assert_close(result.model(batches[0]), model.eval()(batches[0]), rtol=0, atol=0)


@st.composite
def compositions(draw: st.DrawFn) -> Composed:
    count = draw(st.integers(2, 4))
    blocks = [
        (draw(st.sampled_from(BLOCKS)), draw(st.integers(4, 9)), draw(st.integers(0, len(ACTIVATIONS) - 1)))
        for _ in range(count)
    ]
    torch.manual_seed(draw(st.integers(0, 999)))
    first = ("plain", draw(st.integers(4, 9)), 0)
    return Composed([first, *blocks], pooled=draw(st.booleans())).double()


def sets(pooled: bool, rows: int) -> Tensor:
    return torch.randn(rows, 3, IN, dtype=torch.float64) if pooled else torch.randn(rows, IN, dtype=torch.float64)


def require_composition(model: Composed) -> None:
    torch.manual_seed(4)
    batches = [sets(model.pooled, 48) for _ in range(4)]
    graph = observe(model, record(model, [sets(model.pooled, 9)]))
    assert all_units(graph) == frozenset(true_units(truth) for truth in model.truths), (graph, model.truths)
    for truth in model.truths:
        plant(model, truth)
    with torch.no_grad():
        for norm in (one for one in model.modules() if isinstance(one, nn.BatchNorm1d)):
            norm.momentum = None
            norm.reset_running_stats()
        for batch in batches:
            model.train()(batch)
        model.eval()
        widths = {next(iter(truth.producers)): -(-units_in(truth) // 2) for truth in model.truths}
        result = le.prune(model, batches, widths=widths, match=False)
        require_widths(model, result, model.truths)
        hold = sets(model.pooled, 20)
        old = model(hold)
        torch.testing.assert_close(result.model(hold), old, **FITTED[torch.float64](old.abs().max().item()))


@settings(max_examples=4)
@given(compositions())
def test_compositions(model: Composed) -> None:
    require_composition(model)


@pytest.mark.slow
@settings(max_examples=100)
@given(compositions())
def test_many_compositions(model: Composed) -> None:
    require_composition(model)


@settings(max_examples=15)
@given(compositions(), st.randoms(use_true_random=False))
def test_the_truth_of_compositions_is_true(model: Composed, random: Random) -> None:
    """One site after the other is cut by hand, each in a model of its own, copies in random pairs."""
    batch = sets(model.pooled, 16)
    for truth in model.truths:
        twin = copy.deepcopy(model).eval()
        units = random.sample(range(units_in(truth)), units_in(truth))
        pairs = list(zip(units[::2], units[1::2], strict=False))
        plant(twin, truth, pairs)
        with torch.no_grad():
            before = twin(batch)
            cut_copies(twin, truth, pairs)
            after = twin(batch)
        torch.testing.assert_close(after, before, **tolerance(torch.float64, before.abs().max().item()))
