"""The pipeline: what fits and what decides, which fit is taken, and in which order; each against a slow reference."""

import copy

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.statistics import affine_fit, refit, tangent_fit
from lightning_embed.surgery.nominate.features import output_gradients
from lightning_embed.tape import record
from tests.surgery.steps import mlp

LAYERS = le.Criteria(linearization=0.0, condensation=None, span=None)
ANY = le.Tolerance(change=1e3)


def data(samples=400, seed=1):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("criteria", [LAYERS, le.Criteria(None, None, 0.2), le.Criteria(None, 0.8, None)])
def test_one_half_of_the_data_alone_fits(criteria):
    model, x = mlp(3, 12, 12, 2), data()
    with torch.no_grad():
        model[0].weight[6:] = model[0].weight[:6] + 0.1
    other = torch.cat([x[:200], 3 * data(200, seed=2)])
    plan = merges(le.prune(model, x, criteria=criteria, tolerance=ANY))
    assert len(plan)
    assert plan == merges(le.prune(model, other, criteria=criteria, tolerance=ANY))


def merges(result):
    """The plan without corrections, which the deciding half may refuse."""
    return le.Plan(tuple(step for step in result.plan if step.kind != "reconstruction"))


def candidates(model, x):
    """The three fits of the first layer, and the change that each makes to the outputs on the data it was fitted to."""
    pre = model[0](x).detach()
    slope = (1 - model(x) ** 2).detach()  # of the last activation, through which alone the outputs depend on a sample
    fits = {
        "weighted": affine_fit(pre, pre.tanh(), (slope * model[2].weight.detach()) ** 2),
        "plain": affine_fit(pre, pre.tanh()),
        "tangent": tangent_fit(torch.tanh, pre),
    }
    changes = {
        name: (torch.tanh(model[2](fit.slope * pre + fit.intercept)) - model(x)).norm() for name, fit in fits.items()
    }
    return fits, changes


@pytest.mark.parametrize(("seed", "best"), [(1, "weighted"), (3, "weighted"), (13, "plain")])
def test_of_the_fits_the_one_that_changes_the_outputs_least_is_taken(seed, best):
    model = nn.Sequential(*mlp(3, 6, 1, seed=seed), nn.Tanh())
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        model[2].weight.mul_(3.0)
    fits, changes = candidates(model, data()[:200])
    assert min(changes, key=changes.get) == best
    (step,) = merges(le.prune(model, data(), criteria=LAYERS, tolerance=ANY))
    assert step.evidence["fit"] == best
    torch.testing.assert_close(step.slope, fits[best].slope, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(step.intercept, fits[best].intercept, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("first", "second"), [("0", "2"), ("2", "0")])
def test_layers_merge_one_by_one_the_one_of_least_effect_first(first, second):
    model = mlp(3, 6, 6, 2)
    with torch.no_grad():
        model.get_submodule(second).weight.mul_(4.0)
    result = le.prune(model, data(), criteria=LAYERS, tolerance=ANY)
    assert [(one.layer, one.done) for one in result.records] == [(first, True), (second, True)]
    # the second merge meets the network that the first has left: other consumers, other inputs
    x = data()[:200]
    torch.testing.assert_close(result.plan.steps[1].input_power, x.square().mean(0))
    assert result.records[0].parameters == (result.size[0].parameters, result.records[1].parameters[0])
    assert result.records[1].parameters[1] == result.size[1].parameters == 8


def test_neurons_are_refitted_to_the_features_that_the_merges_before_have_left():
    model, x = mlp(3, 12, 12, 2), data()
    first, second = merges(le.prune(model, x, criteria=le.Criteria(None, None, 0.3), tolerance=ANY))
    narrow = copy.deepcopy(model)
    le.apply(narrow, le.Plan((first,)))
    mix, shift = refit(narrow[:4](x[:200]).detach(), list(second.kept))
    torch.testing.assert_close(second.mix, mix, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(second.shift, shift, rtol=1e-6, atol=1e-9)


class InCode(nn.Module):
    """Its activation is no module; its layer norm reads all columns."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 6), norm, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x))))


class Table(nn.Module):
    """Numbers per neuron that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 6), persistent=False)

    def forward(self, x):
        return x * self.scale


def test_what_is_not_permitted_is_not_tried():
    torch.manual_seed(0)
    model = InCode(Table())
    model.first.weight.data[:2] = 0.0
    result = le.prune(model, data().float(), criteria=le.Criteria(0.0, None, 0.5), tolerance=ANY)
    assert result.before.layers[0].merge_layer
    assert result.before.layers[0].merge_neurons
    assert result.before.layers[0].constant == 2
    assert result.records == ()


class Two(nn.Module):
    """Two consumers of one layer, added or apart."""

    def __init__(self, *, add):
        super().__init__()
        self.first, self.act, self.a, self.b = nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1), nn.Linear(5, 1)
        self.add = add

    def forward(self, x):
        h = self.act(self.first(x))
        return self.a(h) + self.b(h) if self.add else torch.cat([self.a(h), self.b(h)], 1)


@pytest.mark.parametrize("add", [True, False])
def test_sensitivity_is_the_squared_derivative_summed_over_outputs_in_the_mean(add):
    torch.manual_seed(0)
    model = Two(add=add).double()
    with torch.no_grad():
        model.b.weight.copy_(-0.5 * model.a.weight)
    tapes = record(model, [data(4000)])
    graph = observe(model, tapes)
    found = output_gradients(model, graph.layers, tapes, seed=0)["first"].square()
    a, b = model.a.weight[0].detach(), model.b.weight[0].detach()
    if add:
        torch.testing.assert_close(found, ((a + b) ** 2).expand_as(found))
    else:
        assert len({round(one.item(), 9) for one in found[:, 0]}) == 2  # (a + b)² or (a - b)²
        torch.testing.assert_close(found.mean(0), a**2 + b**2, rtol=0.05, atol=0.0)


def test_the_seed_of_the_weights_is_the_callers():
    model, x = nn.Sequential(*mlp(3, 6, 3, seed=1), nn.Tanh()), data()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        model[2].weight.mul_(3.0)
    plans = [le.prune(model, x, criteria=LAYERS, tolerance=ANY, seed=seed).plan for seed in (0, 1, 1)]
    assert plans[0] != plans[1] == plans[2]


def test_every_consumer_of_a_layer_gets_the_merged_weights():
    torch.manual_seed(0)
    model = Two(add=False).double()
    with torch.no_grad():
        model.first.weight.mul_(1e-4)
        model.first.bias.mul_(1e-4)
    merged = le.prune(model, data(), criteria=LAYERS).model
    assert merged.a.in_features == merged.b.in_features == 3
    torch.testing.assert_close(merged(data()), model(data()), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("activation", "kept"), [(nn.Tanh, [(3, 4, 5)]), (nn.ReLU, [])])
def test_opposite_neurons_are_one_group_under_odd_activations_alone_and_the_strongest_stays(activation, kept):
    model = mlp(3, 6, 2, activation=activation)
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = -model[0].weight[:3], -model[0].bias[:3]
        model[2].weight[:, 3:] = 10 * model[2].weight[:, :3]
    plan = le.propose(model, data(), criteria=le.Criteria(None, 0.999, None))
    assert [step.kept for step in plan] == kept


@pytest.mark.parametrize(("condensation", "span"), [(0.3, 0.1), (0.9, 0.5)])
def test_of_two_criteria_the_bolder_is_tried_first(condensation, span):
    model = mlp(3, 12, 2)
    both, one, other = (
        [len(step.kept) for step in le.propose(model, data(), criteria=criteria) if step.kind == "neurons"]
        for criteria in (
            le.Criteria(None, condensation, span),
            le.Criteria(None, condensation, None),
            le.Criteria(None, None, span),
        )
    )
    assert one != other
    assert both == min(one or [12], other or [12])
