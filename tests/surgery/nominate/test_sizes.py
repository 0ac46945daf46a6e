"""Sizes asked for: reached and never exceeded, spent where it changes least, refused before anything is done."""

import copy
import importlib

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.nominate.counting import Count
from lightning_embed.surgery.nominate.dealing import even_widths, foretold_costs, path
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.tape import record
from tests.random_networks import network
from tests.surgery.steps import mlp

pytestmark = pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")  # odd scales of data


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def widths_of(model):
    return [one.out_features for one in model.modules() if isinstance(one, nn.Linear)]


def change(model, merged, x):
    with torch.no_grad():
        old, new = model(x), merged(x)
    return ((new - old).norm() / (old - old.mean(dim=0)).norm()).item()


@pytest.mark.parametrize("seed", [3, 8, 14])  # skips; linear throughout; without biases
def test_a_budget_is_never_exceeded(seed):
    given = network(seed)
    before = copy.deepcopy(given.model.state_dict())
    result = le.prune(given.model, given.data[::2], budget=0.6, match=False)
    assert parameter_count(result.model) == result.size[1].parameters <= 0.6 * result.size[0].parameters
    assert all(one.done for one in result.records)
    torch.testing.assert_close(given.model.state_dict(), before, rtol=0, atol=0)


def test_a_budget_for_everything_changes_nothing():
    model = mlp(3, 16, 16, 2)
    result = le.prune(model, data(), budget=1.0)
    assert result.records == ()
    torch.testing.assert_close(dict(result.model.named_parameters()), dict(model.named_parameters()), rtol=0, atol=0)


def test_of_all_ways_within_the_budget_the_one_that_changes_least():
    model = mlp(3, 20, 20, 20, 2)
    model[2].weight.data *= 1e-2  # merging this layer is nearly free, and halves the parameters
    result = le.prune(model, data(), budget=0.6, match=False)
    assert isinstance(result.model[2], nn.Identity)
    assert change(model, result.model, data()) < 1e-3
    bold = le.prune(
        mlp(3, 20, 20, 20, 2), data(), budget=0.6, match=False
    )  # here it would cost more than some neurons do
    assert not any(isinstance(one, nn.Identity) for one in bold.model)


def build(norm, bias):
    torch.manual_seed(0)
    parts = [nn.Linear(3, 9, bias=bias), nn.BatchNorm1d(9) if norm else nn.Identity(), nn.PReLU(9)]
    parts += [nn.Linear(9, 7, bias=bias), nn.Sigmoid(), nn.Linear(7, 2, bias=bias)]
    return nn.Sequential(*parts).double().eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_foretold_as_they_are_counted_afterwards(norm, bias):
    model = build(norm, bias)
    if norm:
        model[1].train()(model[0](data()))
        model[1].momentum = None
        model[1].reset_running_stats()
        model.eval()[1].train()(model[0](data()))
        model.eval()
    graph = observe(model, record(model, [data()]))
    count = Count(model, graph.layers)
    for widths in ({"0": 9, "3": 7}, {"0": 4, "3": 7}, {"0": 9, "3": 3}, {"0": 1, "3": 1}):
        result = le.prune(model, data(), widths=widths, match=False)
        assert count(widths) == parameter_count(result.model)
        assert widths_of(result.model) == [*widths.values(), 2]


def test_even_shares_are_the_largest_that_fit_and_dealt_ones_spend_where_it_matters():
    model = mlp(3, 30, 30, 2)
    with torch.no_grad():
        model[2].weight[3:] = model[2].weight[torch.arange(27) % 3]  # of the second layer three neurons say it all
        model[2].bias[3:] = model[2].bias[torch.arange(27) % 3]
    tapes = record(model, [data()])
    graph = observe(model, tapes)
    count = Count(model, graph.layers)
    costs = foretold_costs(model, graph.layers, collect_features(model, graph.layers, tapes), tapes)
    for wanted in (1000, 400, 60):
        equal = next(widths for widths in even_widths(graph.layers) if count(widths) <= wanted)
        dealt = next(size for size in path(costs, count) if size.count <= wanted)
        assert dealt.count == count(dealt.widths)
        dealt = dealt.widths
        assert max(count(equal), count(dealt)) <= wanted
        assert equal["0"] == equal["2"]
        assert count({name: width + 1 for name, width in equal.items()}) > wanted
        assert dealt["2"] <= equal["2"]
        assert dealt["0"] >= equal["0"]
    even_one, dealt_one = (le.prune(model, data(), widths=widths) for widths in (equal, dealt))
    assert change(model, dealt_one.model, data()) < change(model, even_one.model, data())


def test_widths_are_those_asked_for_and_zero_removes_the_layer():
    model = mlp(3, 16, 16, 16, 2)
    result = le.prune(model, data(), widths={"0": 0, "2": 5})
    assert isinstance(result.model[0], nn.Identity)
    assert widths_of(result.model) == [5, 16, 2]
    assert [(one.layer, one.criterion, one.width) for one in result.records if one.kind != "reconstruction"] == [
        ("0", "linearization", (16, 0)),
        ("2", "size", (16, 5)),
    ]
    assert le.prune(model, data(), widths={"4": 16}).records == ()


def test_a_size_that_the_tolerance_does_not_allow_is_refused_aloud():
    model = mlp(3, 16, 16, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for size in ({"widths": {"0": 2, "2": 15}}, {"budget": 0.1}):
        with pytest.raises(le.InputError, match=r"The size cannot be reached: .*holds it back: 0: change "):
            le.prune(model, data(), **size, tolerance=le.Tolerance(change=1e-4))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_a_size_is_reached_on_fewer_samples_than_neurons():
    model = mlp(3, 64, 64, 2)
    few = le.prune(model, data(40), widths={"0": 32, "2": 32})
    assert max(widths_of(few.model)) <= 32  # less where twenty samples tell no more neurons apart
    assert change(model, few.model, data(400)) < 0.3
    with pytest.raises(le.InputError, match=r"too few samples \(3 to fit, at least 8 are needed\)"):
        le.prune(model, data(6), widths={"0": 8})


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"widths": {"0": 3}, "budget": 0.5}, "give one of them"),
        ({"widths": {"0": 3}, "criteria": le.Criteria()}, "give one of the two"),
        ({"widths": {}}, "must name layers"),
        ({"widths": [3]}, "must name layers"),
        ({"widths": {"0": 3.0}}, "whole number"),
        ({"widths": {"0": True}}, "whole number"),
        ({"widths": {"0": -1}}, "whole number"),
        ({"widths": {"0": 9}}, "more than the 8 neurons"),
        ({"widths": {"4": 1}}, "is the model's output"),
        ({"widths": {"first": 1}}, "no hidden layer of the model. Its hidden layers: 0, 2."),
        ({"budget": 0.0}, "above 0"),
        ({"budget": 1.1}, "at most 1"),
        ({"budget": "small"}, "share of the parameters"),
        ({"budget": float("nan")}, "share of the parameters"),
        ({"budget": True}, "share of the parameters"),
        ({"budget": 1e-3}, "cannot leave less than"),
    ],
)
def test_sizes_that_cannot_be_are_refused_and_leave_all_as_it_is(size, message):
    model = mlp(3, 8, 8, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(le.InputError, match=message):
        le.prune(model, data(), **size)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_layer_whose_activation_is_in_the_code_cannot_be_asked_to_go():
    model = Functional().double()
    with pytest.raises(le.InputError, match=r"widths\['a'\] = 0 cannot be reached: activation in code \(tanh\)"):
        le.prune(model, data(), widths={"a": 0})
    assert le.prune(model, data(), widths={"a": 3}).model.a.out_features == 3


def test_where_a_layer_is_too_wide_for_swaps_the_record_says_so(monkeypatch):
    model = mlp(3, 16, 2)
    assert "exchange" not in le.prune(model, data(), widths={"0": 5}, match=False).records[0].evidence
    monkeypatch.setattr(importlib.import_module("lightning_embed.statistics.exchange"), "MAX_OPERATIONS", 10)
    result = le.prune(model, data(), widths={"0": 5}, match=False)
    assert result.records[0].evidence["exchange"] == "left out, too wide"
    assert "exchange left out, too wide" in str(result)
