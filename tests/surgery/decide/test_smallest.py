"""Without criteria and sizes: the smallest network that the tolerance allows."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_embed as le
from lightning_embed.surgery.decide.smallest import NEAR, _largest_allowed
from lightning_embed.surgery.nominate.dealing import Dealt
from tests.surgery.steps import mlp


def data(samples=600, seed=1):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def change(model, merged, x):
    with torch.no_grad():
        old, new = model(x), merged(x)
    return ((new - old).norm() / (old - old.mean(dim=0)).norm()).item()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(0, 60), st.floats(0.0, 60.0))
def test_the_smallest_size_that_is_allowed_is_found_wherever_the_search_begins(steps, last, foretold):
    counts = [1000 + sum(steps[number:]) for number in range(len(steps) + 1)]
    sizes = [Dealt({}, count, float(number)) for number, count in enumerate(counts)]
    last = min(last, len(steps))
    found = _largest_allowed(sizes, foretold, lambda place: place <= last)
    assert found <= last
    assert found == last or counts[last] >= NEAR * counts[found]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_the_tolerance_is_used_and_kept(activation):
    model = mlp(3, 40, 40, 2, activation=activation)
    sizes = []
    for bound in (0.3, 0.05, 0.005):
        result = le.prune(model, data(), tolerance=le.Tolerance(change=bound), match=False)
        assert 0.5 * bound <= max(one.change for one in result.records if one.done) <= bound
        assert change(model, result.model, data(2000, seed=2)) <= 2 * bound
        sizes.append(result.size[1].parameters)
    assert sizes == sorted(sizes)
    thresholds = le.prune(model, data(), criteria=le.Criteria(), match=False)
    assert sizes[1] <= thresholds.size[1].parameters


def test_a_layer_goes_whatever_its_correlation_when_the_next_ones_can_do_without():
    """Half of the ReLUs of the second layer are cut off, and what they make nobody reads: MPC says nothing of that."""
    model = mlp(3, 12, 12, 12, 2, activation=nn.ReLU)
    with torch.no_grad():
        model[2].bias += 8.0  # all on, so that the layer is affine, but for one neuron
        model[2].weight[0], model[2].bias[0] = model[2].weight[0] * 4, 0.0
        model[4].weight[:, 0] *= 1e-4
    measured = le.measure(model, data())
    assert measured.layers[1].mpc < 0.95
    result = le.prune(model, data(), tolerance=le.Tolerance(change=0.01), match=False)
    assert isinstance(result.model[2], nn.Identity)
    assert not any(
        one.layer == "2" and one.criterion == "linearization"
        for one in le.prune(model, data(), criteria=le.Criteria()).records
    )


def test_each_bound_that_is_given_holds():
    model = mlp(3, 40, 40, 3, activation=nn.ReLU)
    strict = le.Tolerance(change=0.2, agreement=0.99)
    result = le.prune(model, data(), tolerance=strict)
    assert min(one.agreement for one in result.records if one.done) >= 0.99
    calls = []

    def metric(other):
        calls.append(change(model, other, data()))
        return -calls[-1]

    result = le.prune(model, data(), tolerance=le.Tolerance(change=1.0, metric=metric, drop=0.03))
    assert change(model, result.model, data()) <= 0.03
    assert result.size[1].parameters < result.size[0].parameters


def test_what_is_refused_is_told_once_and_the_given_model_stays():
    model = mlp(3, 30, 30, 2)
    before = copy.deepcopy(model.state_dict())
    result = le.prune(model, data())
    refused = [(one.layer, one.criterion) for one in result.records if not one.done]
    assert len(refused) == len(set(refused))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    twin = copy.deepcopy(model)
    le.apply(twin, result.plan)
    torch.testing.assert_close(twin(data()), result.model(data()), rtol=0, atol=1e-12)


def test_no_tolerance_no_merge_but_what_is_exact():
    model = mlp(3, 20, 20, 2)
    with torch.no_grad():
        model[0].weight[12:], model[0].bias[12:] = model[0].weight[:8], model[0].bias[:8]
    result = le.prune(model, data(), tolerance=le.Tolerance(change=1e-6))
    assert [one.width for one in result.after.layers] == [12, 20]


@pytest.mark.parametrize("wide", [64, 200])
def test_no_merge_enlarges_the_network(wide):
    """The product of two factors has more entries than both."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, wide),
        nn.ReLU(),
        nn.Linear(wide, 6, bias=False),
        nn.Linear(6, wide),
        nn.ReLU(),
        nn.Linear(wide, 3),
    ).double()
    x = torch.randn(800, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = le.prune(model, x, tolerance=le.Tolerance(change=1e-6), match=False)
    sizes = [one.parameters for one in result.records if one.done]
    assert all(after <= before for before, after in sizes)
    assert any(one.layer == "2" and "it would make the network larger" in one.reason for one in result.records)
    assert result.size[1].parameters <= result.size[0].parameters
    with pytest.raises(le.InputError, match="it would make the network larger"):
        le.prune(model, x, widths={"2": 0})
