"""Exchange: subsets tried one by one as reference, and what must hold whatever is given."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.errors import InputError
from lightning_embed.statistics import exchange, span_order
from lightning_embed.statistics import exchange as exchanged
from tests.statistics.test_span import layer, missing, two_reads


def settled(features, weight, kept):
    """Exchanged until nothing changes."""
    while (now := exchange(features, weight, kept)) != tuple(sorted(kept)):
        kept = now
    return now


def swaps(kept, neurons):
    return [sorted({*kept} - {old} | {new}) for old in kept for new in set(range(neurons)) - {*kept}]


@given(seed=st.integers(0, 500), outputs=st.sampled_from([1, 2, 9]), count=st.integers(1, 6))
def test_no_single_swap_is_better_in_the_end(seed, outputs, count):
    features, weight = layer(30, 7, outputs, seed=seed)
    start = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:count].tolist()
    once, end = exchange(features, weight, start), settled(features, weight, start)
    errors = [missing(features, weight, kept) for kept in (start, once, end)]
    assert errors[2] <= errors[1] + 1e-9 <= errors[0] + 2e-9
    assert len(end) == count == len(set(end))
    assert errors[-1] <= min(missing(features, weight, kept) for kept in swaps(end, 7)) + 1e-5


def test_mostly_the_best_subset_where_the_greedy_choice_is_not():
    greedy, swapped = 0, 0
    for seed in range(40):
        features, weight = layer(30, 7, 3, seed=seed)
        kept = span_order(features, weight, 0.0).kept[:3]
        best = min(missing(features, weight, some) for some in itertools.combinations(range(7), 3)) * (1 + 1e-9)
        greedy += missing(features, weight, kept) <= best
        swapped += missing(features, weight, exchange(features, weight, kept)) <= best
    assert greedy < 30 < swapped


@given(seed=st.integers(0, 500), dtype=st.sampled_from([torch.float64, torch.float32]), outputs=st.integers(1, 9))
def test_copies_and_constants_give_their_place_to_what_adds_something(seed, dtype, outputs):
    features, weight = layer(50, 6, outputs, seed=seed, dtype=dtype)
    noise = 1 + torch.finfo(dtype).eps * torch.randn(50, 2, generator=torch.Generator().manual_seed(seed))
    features = torch.cat([features, features[:, :2] * noise.to(dtype), torch.ones(50, 1, dtype=dtype)], dim=1)
    weight = torch.cat([weight, weight[:, :2], weight[:, :1]], dim=1)
    start = [0, 6, 8, 2]  # a neuron, its copy, a constant, another
    end = exchange(features, weight, start)
    assert len(set(end)) == 4
    filled = [0, 2]
    for _ in range(2):
        filled.append(min([1, 3, 4, 5], key=lambda one: missing(features, weight, [*filled, one])))
    assert missing(features, weight, end) <= missing(features, weight, filled) + 1e-5


@given(seed=st.integers(0, 500), width=st.floats(-9, 0))
def test_features_that_are_nearly_dependent_never_make_it_worse(seed, width):
    features, weight = layer(60, 8, 3, rank=4, seed=seed)
    features = features + 10**width * torch.randn(60, 8, generator=torch.Generator().manual_seed(seed)).double()
    kept = span_order(features, weight, 0.0).kept[:5]
    better, before = exchange(features, weight, kept), missing(features, weight, kept)
    assert missing(features, weight, better) <= before * (1 + 1e-6) + 1e-7
    assert len(better) == len(kept)


def test_units_do_not_matter_and_nothing_given_is_changed():
    features, weight = layer(neurons=9)
    copies = features.clone(), weight.clone()
    scale = 10.0 ** torch.linspace(-5, 5, 9, dtype=torch.float64)
    assert exchange(features * scale + 3, weight / scale, [0, 1, 2]) == exchange(features, weight, [0, 1, 2])
    assert torch.equal(features, copies[0])
    assert torch.equal(weight, copies[1])


def test_nothing_to_choose_and_too_much_work_leave_the_choice_as_it_is(monkeypatch):
    features, weight = layer(neurons=6)
    assert exchange(features, weight, [3, 1, 0, 2, 5, 4]) == (0, 1, 2, 3, 4, 5)
    assert exchange(features, weight, []) == ()
    better = exchange(features, weight, [2, 0])
    module = __import__(exchanged.__module__, fromlist=["MAX_OPERATIONS"])
    monkeypatch.setattr(module, "MAX_OPERATIONS", 1)
    assert better != (0, 2) == exchange(features, weight, [2, 0])


def test_refusals():
    features, weight = layer(neurons=6)
    for kept in ([0, 0], [6], [-1]):
        with pytest.raises(InputError, match="different neuron numbers from 0 to 5"):
            exchange(features, weight, kept)
    with pytest.raises(InputError, match="consumer_weight"):
        exchange(features, weight[:, :5], [0])
    with pytest.raises(InputError, match="NaN"):
        exchange(features * float("nan"), weight, [0])


def test_of_several_reads_one_swap_serves_all_and_never_harms():
    features, weights = two_reads()
    worst = [5, 6, 7]

    def error(kept):
        return sum(missing(values, weight, list(kept)) ** 2 for values, weight in zip(features, weights, strict=True))

    better = exchange(features, weights, worst)
    assert len(better) == 3
    assert error(better) <= error(worst) * (1 + 1e-6)
    best = min(itertools.combinations(range(10), 3), key=error)
    assert error(better) <= 1.2 * error(best)


def test_nothing_that_varies_can_be_swapped():
    assert exchange(torch.zeros(50, 4), torch.randn(3, 4), [0]) == (0,)
    assert exchange([torch.zeros(50, 4)] * 2, [torch.randn(3, 4)] * 2, [2]) == (2,)
