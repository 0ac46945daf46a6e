"""Named and compatible embeddings of models: the function is kept, what does not fit is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_embed as le
from lightning_embed.operators import (
    compose,
    global_null,
    global_splitting,
    null_embedding,
    random_embedding,
    split_channel,
    split_neuron,
    splitting_embedding,
)
from tests.surgery.steps import mlp
from tests.tolerances import tolerance

X = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    """A module whose Linears have names of their own, not in the order of their calls."""

    def __init__(self, *, bias=True):
        super().__init__()
        self.out, self.up, self.mid = nn.Linear(3, 2), nn.Linear(4, 5), nn.Linear(5, 3, bias=bias)

    def forward(self, x):
        return self.out(torch.tanh(self.mid(torch.tanh(self.up(x)))))


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain().double()


def test_a_neuron_is_split_as_the_operator_splits_it():
    net = mlp(4, 5, 3)
    wide = le.embed(net, {"0": le.Split(2, [0.5, 0.3, 0.2])})
    w_in, b_in, w_out = split_neuron(net[0].weight, net[0].bias, net[2].weight, 2, [0.5, 0.3, 0.2])
    for found, wanted in ((wide[0].weight, w_in), (wide[0].bias, b_in), (wide[2].weight, w_out)):
        torch.testing.assert_close(found.detach(), wanted.detach())
    torch.testing.assert_close(wide(X), net(X), **tolerance(X.dtype))


def test_a_channel_of_a_module_is_split_as_the_operator_splits_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3)).double().eval()
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    wide = le.embed(net, {"0": le.Split(1, 0.25)}, images)
    w_in, _, w_out = split_channel(net[0].weight, net[0].bias, net[3].weight, 1, 0.25)
    torch.testing.assert_close(wide[0].weight.detach(), w_in.detach())
    torch.testing.assert_close(wide[3].weight.detach(), w_out.detach())
    torch.testing.assert_close(wide(images), net(images), **tolerance(images.dtype))
    assert wide[1].num_features == 4


def test_null_neurons_have_no_readers():
    net = mlp(4, 5, 3)
    wide = le.embed(net, {"0": le.Null(2, bias=torch.tensor([1.0, -1.0]), input_weights=torch.ones(2, 4))})
    assert wide[0].bias[-2:].tolist() == [1.0, -1.0]
    assert wide[0].weight[-2:].tolist() == [[1.0] * 4] * 2
    assert not wide[2].weight[:, -2:].any()
    torch.testing.assert_close(wide(X), net(X), **tolerance(X.dtype))
    result = le.prune(wide, torch.randn(300, 4, dtype=torch.float64))
    assert result.model[0].out_features <= 5


def test_several_layers_at_once():
    net = mlp(4, 5, 6, 3)
    wide = le.embed(net, {"0": le.Split(0), "2": le.Null()})
    assert [wide[0].out_features, wide[2].in_features, wide[2].out_features, wide[4].in_features] == [6, 6, 7, 7]
    torch.testing.assert_close(wide(X), net(X), **tolerance(X.dtype))


def embeddings():
    generator = torch.Generator().manual_seed(1)
    widths = (4, 5, 3, 2)
    split = splitting_embedding(widths, 1, 2, -0.4)
    index = [range(4), (*range(5), 1, 1), (*range(3), 0), range(2)]
    return {
        "splitting": split,
        "composed": compose(split, splitting_embedding((4, 6, 3, 2), 2, 0, 0.3)),
        "null": null_embedding(widths, 1, 0.7, torch.tanh),
        "three-fold": global_splitting(widths),
        "two-fold null": global_null(widths, [torch.ones(5), torch.zeros(3)], torch.tanh),
        "random": random_embedding(index, generator),
    }


@pytest.mark.laws
@pytest.mark.parametrize("name", embeddings())
def test_every_compatible_embedding_reaches_modules_and_keeps_function_and_criticality(chain, name):
    embedding = embeddings()[name]
    before = copy.deepcopy(chain.state_dict())
    wide = le.embed(chain, embedding, X, layers=["up", "mid"])
    assert type(wide) is Chain
    assert (wide.up.out_features, wide.mid.out_features) == embedding.wide[1:3]
    torch.testing.assert_close(wide(X), chain(X), **tolerance(X.dtype, 10.0))
    assert all(torch.equal(value, before[key]) for key, value in chain.state_dict().items())
    residual = torch.linalg.svd(_features_of_gradients(chain))[0][:, -1].reshape(len(X), 2)
    for model in (chain, wide):  # targets y = f - r with Jᵀr = 0: critical for one, then for the other
        loss = F.mse_loss(model(X), chain(X).detach() - residual)
        model.zero_grad()
        loss.backward()
        assert max(float(one.grad.abs().max()) for one in model.parameters()) < 1e-11
    fresh = Chain().double()
    le.attach(fresh)
    fresh.load_state_dict(wide.state_dict())
    assert torch.equal(fresh(X), wide(X))


def _features_of_gradients(model):
    rows = []
    for value in model(X).flatten():
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([one.flatten() for one in gradients]))
    return torch.stack(rows)


def test_what_is_refused(chain):
    net = mlp(4, 5, 3)
    for what, message in (
        ({"9": le.Split(0)}, "'9' is no hidden layer"),
        ({"0": le.Split(5)}, "'0' has the neurons 0 to 4, not 5"),
        ({"0": le.Split(0, [0.5, 0.4])}, "sum to 1"),
        ({"0": le.Null(0)}, "at least 1"),
        ({"0": le.Null(2, bias=torch.ones(1))}, r"Null\(bias=…\) must be finite and of shape \(2,\)"),
        ({"0": 3}, "give a Split, a Null"),
        (splitting_embedding((4, 6, 3), 1, 0, 0.5), r"takes theta of widths \(4, 6, 3\)"),
    ):
        with pytest.raises(le.InputError, match=message):
            le.embed(net, what)
    with pytest.raises(le.InputError, match="'up' is read by mid, not by 'up' alone"):
        le.embed(chain, global_splitting((4, 5, 2)), X, layers=["up"] * 2)
    with pytest.raises(le.InputError, match="has no bias; leave out"):
        le.embed(Chain(bias=False).double(), {"mid": le.Null(bias=torch.ones(1))}, X)
    norm = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1)).double().eval()
    with pytest.raises(le.InputError, match="knows no parameters between Linears"):
        le.embed(norm, global_splitting((4, 3, 1)), X)


def test_a_bias_is_added_where_null_neurons_need_one():
    chain = Chain(bias=False).double()
    wide = le.embed(chain, _beside_copies(torch.tanh), X, layers=["up", "mid"])
    torch.testing.assert_close(wide(X), chain(X), **tolerance(X.dtype, 10.0))
    assert wide.mid.bias is not None


def test_null_neurons_of_another_activation_are_refused(chain):
    with pytest.raises(le.InputError, match="its outputs change"):
        le.embed(chain, _beside_copies(torch.sigmoid), X, layers=["up", "mid"])


def _beside_copies(activation):
    """A null neuron that the copies of another layer's neuron read."""
    index = [range(4), (*range(5), -1), (*range(3), 0), range(2)]
    return random_embedding(index, torch.Generator().manual_seed(0), activation)
