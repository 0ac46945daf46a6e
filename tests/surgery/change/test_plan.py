"""Plans and records are plain data; a plan that does not fit leaves model and optimizer as they were."""

import json
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

import lightning_embed as le
from tests.surgery.steps import layer_merge, mlp, neuron_merge, plan


def test_a_plan_for_a_constant_layer_survives_strict_json():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].bias.data.fill_(-100.0)
    data = torch.randn(100, 3)
    proposed = le.propose(net, data)
    assert any(step.evidence.get("mpc", 0.0) != step.evidence.get("mpc", 0.0) for step in proposed)
    text = json.dumps(proposed.to_dict(), allow_nan=False)
    assert le.Plan.from_dict(json.loads(text)) == proposed


@pytest.mark.parametrize("when", [{}, {"epoch": 3, "step": 7}, {"metric": (0.5, 0.25)}])
def test_records_come_back_from_strict_json(when):
    record = le.Record("layer", "0", "linearization", done=True, evidence={"fit": "plain", "mpc": 0.5}, **when)
    assert le.Record.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


def other(activation):
    return nn.Sequential(
        OrderedDict([("0", nn.Linear(3, 6)), (activation, nn.Tanh()), ("2", nn.Linear(6, 2))])
    ).double()


@pytest.mark.parametrize(
    ("model", "step"),
    [
        (other("act"), layer_merge(other("act"), activation="1")),
        (mlp(3, 6, 2), neuron_merge(mlp(3, 6, 2), [[0, 1]], per_neuron=[("1.weight", 0)])),
        (mlp(3, 6, 2), neuron_merge(mlp(3, 6, 2), [[0, 1]], per_neuron=[("act.weight", 0)])),
        (mlp(3, 6, 2), neuron_merge(mlp(3, 6, 2), [[0, 1]], per_neuron=[("0.bias", 1)])),
        (mlp(3, 6, 2), layer_merge(mlp(3, 6, 2), consumer="4")),
        (mlp(3, 6, 2), replace(layer_merge(mlp(3, 6, 2)), input_power=torch.ones(4))),
        (mlp(3, 6, 2), replace(neuron_merge(mlp(3, 6, 2), [[0, 1]]), kept=(2, 0, 3, 4, 5))),
    ],
)
def test_a_plan_that_does_not_fit_leaves_no_trace(model, step):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(le.InputError, match="plan"):
        le.apply(model, plan(step))
    assert model.state_dict().keys() == before.keys()
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    le.attach(model)
    with pytest.raises(le.InputError, match="plan"):
        le.apply(model, plan(step))
    assert le.attach(model).history == []
    assert model.state_dict().keys() == before.keys()


def test_weights_that_half_precision_cannot_hold_are_refused_on_record():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Identity(), nn.Linear(6, 3)).half()
    net[0].weight.data.copy_(torch.eye(6) * 3000)
    net[2].weight.data.fill_(3000.0)
    data = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) * 1e-4
    result = le.prune(net, data.half(), criteria=le.Criteria(condensation=None, span=None))
    assert [(one.done, "too large" in one.reason) for one in result.records] == [(False, True)]
