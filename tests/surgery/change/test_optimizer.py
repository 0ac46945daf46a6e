"""Optimizers follow merges in place; moments are what the narrow network would have gathered itself."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.operators import split_neuron
from tests.surgery.steps import layer_merge, mlp, neuron_merge, plan
from tests.tolerances import tolerance

OPTIMIZERS = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "amsgrad": lambda params, lr: torch.optim.Adam(params, lr=lr, amsgrad=True),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.1),
    "adamax": lambda params, lr: torch.optim.Adamax(params, lr=lr, eps=1e-30),
    "rmsprop": lambda params, lr: torch.optim.RMSprop(params, lr=lr, momentum=0.9, centered=True, eps=1e-30),
}


def split_twice(narrow):
    """The wide network that computes the same: neuron 1 split into three, positive shares."""
    wide = copy.deepcopy(narrow)
    first, last = wide[0], wide[2]
    w_in, b_in, w_out = split_neuron(first.weight.data, first.bias.data, last.weight.data, 1, [0.2, 0.3, 0.5])
    wide[0] = nn.Linear(first.in_features, len(b_in), dtype=torch.float64)
    wide[2] = nn.Linear(len(b_in), last.out_features, dtype=torch.float64)
    wide[0].weight.data, wide[0].bias.data, wide[2].weight.data = w_in, b_in, w_out
    wide[2].bias.data = last.bias.data.clone()
    return wide


def gather(model, optimizer, batches=5):
    for seed in range(batches):
        x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_after_merging_a_split_neuron_is_that_of_the_narrow_network(name, sign):
    narrow = mlp(3, 4, 2)
    wide = split_twice(narrow)
    for one in (wide[0].weight, wide[0].bias, wide[2].weight.T):  # tanh is odd
        one.data[4] *= sign
    optimizers = [OPTIMIZERS[name](model.parameters(), 0.0) for model in (narrow, wide)]
    for model, optimizer in zip((narrow, wide), optimizers, strict=True):
        gather(model, optimizer)
    step = neuron_merge(wide, [[1, 4, 5]])
    step.mix[4] *= sign
    le.apply(wide, plan(step), optimizers=optimizers[1])
    for ours, theirs in zip(wide.parameters(), narrow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance(torch.float64))
        state, expected = optimizers[1].state[ours], optimizers[0].state[theirs]
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_object_groups_and_options_stay_and_training_goes_on(name):
    model = mlp(3, 5, 4, 2)
    groups = [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[4].parameters()]}]
    optimizer = OPTIMIZERS[name](groups, 0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.01, 0.02], total_steps=50)
    gather(model, optimizer)
    scheduler.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = plan(layer_merge(model, "2", "3", "4"), neuron_merge(model, [[0, 3]], consumer="4"))
    le.apply(model, steps, optimizers=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == rates
    held = [one for group in optimizer.param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in model.parameters()}
    assert set(optimizer.state) <= set(held)
    before = [one.detach().clone() for one in model.parameters()]
    gather(model, optimizer)
    scheduler.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_first_adam_step_of_a_merged_layer_does_not_overshoot():
    model = mlp(3, 6, 5, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gather(model, optimizer, batches=30)
    forgetful = copy.deepcopy(model)
    le.apply(forgetful, plan(layer_merge(model, "2", "3", "4")))
    naive = torch.optim.Adam(forgetful.parameters(), lr=1e-3)
    le.apply(model, plan(layer_merge(model, "2", "3", "4")), optimizers=optimizer)
    before = model[4].weight.detach().clone()
    for one, its in ((model, optimizer), (forgetful, naive)):
        gather(one, its, batches=1)
    seeded = (model[4].weight - before).abs().max()
    fresh = (forgetful[4].weight - before).abs().max()
    assert seeded < 0.75 * fresh


def test_a_consumer_without_bias_gets_one_beside_its_weight():
    model = mlp(3, 4, 2)
    model[2] = nn.Linear(4, 2, bias=False, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gather(model, optimizer)
    step = neuron_merge(model, [[0, 1]])
    step.shift[1] = 0.5
    le.apply(model, plan(step), optimizers=optimizer)
    assert model[2].bias is not None
    assert [id(one) for one in optimizer.param_groups[0]["params"]] == [id(one) for one in model.parameters()]
    gather(model, optimizer)


def test_a_refused_plan_leaves_model_and_optimizer_alone():
    model = mlp(3, 4, 4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gather(model, optimizer)
    held, state = list(optimizer.param_groups[0]["params"]), copy.deepcopy(optimizer.state_dict())
    good, bad = neuron_merge(model, [[0, 1]]), neuron_merge(mlp(3, 9, 2), [[0, 1]], "2", "4")
    again = neuron_merge(mlp(3, 3, 2), [[0, 1]])
    with pytest.raises(le.InputError, match="layer '2'"):
        le.apply(model, plan(good, again, bad), optimizers=optimizer)
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(held, optimizer.param_groups[0]["params"], strict=True))
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


def test_lbfgs_starts_anew():
    model = mlp(3, 4, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    x = torch.randn(8, 3, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())  # gives the optimizer new lists, as a resume does
    le.apply(model, plan(neuron_merge(model, [[0, 1]])), optimizers=optimizer)
    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


@pytest.mark.parametrize("name", ["Adafactor", "Adadelta", "ASGD", "Adagrad", "NAdam", "RAdam", "Rprop"])
def test_other_optimizers_train_on(name):
    model = mlp(3, 5, 4, 2)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
    gather(model, optimizer)
    le.apply(
        model,
        plan(layer_merge(model, "2", "3", "4"), neuron_merge(model, [[0, 3]], consumer="4")),
        optimizers=optimizer,
    )
    gather(model, optimizer)
    assert all(bool(torch.isfinite(one).all()) for one in model.parameters())
    for parameter in model.parameters():
        assert optimizer.state[parameter]


def test_state_that_nothing_is_known_of_starts_anew():
    model = mlp(3, 4, 2)
    optimizer = OPTIMIZERS["sgd"](model.parameters(), 0.1)
    gather(model, optimizer)
    for parameter in model.parameters():
        optimizer.state[parameter]["average"] = parameter.detach().clone()  # of weights, say: no row of it would do
    le.apply(model, plan(neuron_merge(model, [[0, 1]])), optimizers=optimizer)
    assert not optimizer.state[model[0].weight]
    assert not optimizer.state[model[2].weight]
    assert not optimizer.state[model[2].bias]
    gather(model, optimizer)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_a_merged_layers_state_is_the_independence_estimate_at_the_old_step_count(name, bias):
    model = mlp(3, 6, 5, 2)
    model[4] = nn.Linear(5, 2, bias=bias, dtype=torch.float64)
    optimizer = OPTIMIZERS[name](model.parameters(), 1e-3)
    gather(model, optimizer)
    step = replace(layer_merge(model, "2", "3", "4"), input_power=torch.arange(1.0, 7.0).double(), feature_power=0.5)
    key, root = ("exp_avg_sq", 1) if name == "adam" else ("exp_inf", 2)
    of_weight, of_bias = (optimizer.state.get(one, {}).get(key) for one in (model[4].weight, model[4].bias))
    le.apply(model, plan(step), optimizers=optimizer)
    state = optimizer.state[model[4].weight]
    error = of_bias**root if bias else (of_weight**root).mean(1) / 0.5
    torch.testing.assert_close(state[key] ** root, torch.outer(error, step.input_power))
    assert not state["exp_avg"].any()
    assert state["step"] == 5


@pytest.mark.parametrize("gone", [True, False])
def test_parameters_between_go_or_follow(gone):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.PReLU(6), nn.Linear(6, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gather(model, optimizer)
    between = optimizer.state[model[1].weight]["exp_avg"].clone()
    step = layer_merge(model) if gone else neuron_merge(model, [[1, 2]], per_neuron=[("1.weight", 0)])
    le.apply(model, plan(step), optimizers=optimizer)
    held = [id(one) for one in optimizer.param_groups[0]["params"]]
    assert held == [id(one) for one in model.parameters()]
    assert {id(one) for one in optimizer.state} == set(held)
    if not gone:
        assert torch.equal(optimizer.state[model[1].weight]["exp_avg"], between[list(step.kept)])
