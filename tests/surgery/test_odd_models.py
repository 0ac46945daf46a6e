"""Models and data that are legal but unusual: nothing crashes, nothing is lost."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_embed as le

LAYERS = le.Criteria(condensation=None, span=None)
NEURONS = le.Criteria(linearization=None)


def data(samples=200):
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(1))


def linearized(activation=None, *, last=None):
    """3-6-2 with input weights so small that the activation acts linearly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), activation or nn.Tanh(), last or nn.Linear(6, 2))
    net[0].weight.data.mul_(0.02)
    return net


def settled(net):
    with torch.no_grad():
        for _ in range(60):
            net.train()(data())
    return net


def done(result):
    return {(one.layer, one.criterion) for one in result.records if one.done}


def test_a_container_between_is_narrowed_removed_saved_and_grown_back():
    def build():
        norm = nn.BatchNorm1d(6)
        norm.weight.data.fill_(0.02)
        return nn.Sequential(nn.Linear(3, 6), nn.Sequential(norm, nn.Tanh()), nn.Linear(6, 2))

    torch.manual_seed(0)
    net = build()
    for one in (net[0].weight, net[0].bias):
        one.data[:2] = 0.0
    settled(net).eval()
    result = le.prune(net, data(), criteria=LAYERS)
    assert done(result) == {("0", "null"), ("0", "linearization")}
    fresh = build().eval()
    le.attach(fresh)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(data()), result.model(data()))
    for merged in (fresh, result.model):
        merged.load_state_dict(net.state_dict())
        assert torch.equal(merged(data()), net(data()))
        assert str(merged) == str(net)


def test_a_narrowed_container_loads_into_a_model_that_has_lost_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Sequential(nn.BatchNorm1d(6), nn.Tanh()), nn.Linear(6, 2))
    for one in (net[0].weight, net[0].bias):
        one.data[:2] = 0.0
    settled(net)
    net[1][0].weight.data.mul_(0.02)
    net.eval()
    narrow = le.prune(net, data(), criteria=le.Criteria(linearization=None, condensation=None, span=None)).model
    merged = le.prune(net, data(), criteria=LAYERS).model
    assert narrow[0].out_features == 4
    merged.load_state_dict(narrow.state_dict())
    assert torch.equal(merged(data()), narrow(data()))


@pytest.mark.parametrize("first", [0, 1])
def test_batches_of_one_sample_or_none_beside_batch_norm(first):
    torch.manual_seed(0)
    net = settled(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)))
    net[1].weight.data.mul_(0.02)
    batches = [data()[:first], data()[:first], *data().split(50)]
    result = le.prune(net, batches, criteria=LAYERS)
    assert done(result) == {("0", "linearization")}
    assert all(bool(torch.isfinite(step.input_power).all()) for step in result.plan)


def test_a_last_batch_of_one_sample_beside_batch_norm():
    torch.manual_seed(0)
    net = settled(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)))
    le.prune(net, DataLoader(TensorDataset(data(201)), batch_size=25))
    result = le.prune(net, [data()[:1]] * 20)
    assert dict(result.before.refused)["0"].startswith("differs in train mode")


def test_outputs_without_a_gradient():
    net = linearized()
    assert done(le.prune(net, data(), criteria=LAYERS, call=lambda x: net(x).detach()))


class ByKeyword(nn.Module):
    """Calls its Linears with the input as a keyword."""

    def __init__(self):
        super().__init__()
        self.net = linearized()

    def forward(self, x):
        return self.net[2](input=self.net[1](self.net[0](input=x)))


def test_inputs_by_keyword():
    model = ByKeyword()
    assert done(le.prune(model, data(), criteria=LAYERS)) == {("net.0", "linearization")}
    assert done(le.prune(copy.deepcopy(model), data(), criteria=NEURONS))
