"""What is copied shares nothing with the model; what cannot be copied is refused before anything is done."""

import threading

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.surgery.persist.copying import copy_of
from tests.surgery.steps import mlp


class Remembers(nn.Module):
    """Keeps its last features on itself, with their autograd graph, in a container."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 6, 2)

    def forward(self, x):
        self.seen = {"features": [self.net[1](self.net[0](x))]}
        return self.net[2](self.seen["features"][0])


def test_what_earlier_calls_left_is_copied_without_its_graph():
    model, x = Remembers(), torch.randn(200, 3, dtype=torch.float64)
    model(x)
    features = model.seen["features"][0]
    copied = copy_of(model)
    assert torch.equal(copied.seen["features"][0], features)
    assert copied.seen["features"][0].grad_fn is None
    assert features.grad_fn is not None
    assert any(one.done for one in le.prune(model, x, criteria=le.Criteria(0.0), tolerance=le.Tolerance(9)).records)
    assert model.seen["features"][0].shape == (200, 6)


class Itself(nn.Module):
    """Copies to what it is told, such as itself."""

    def __init__(self, copied):
        super().__init__()
        self.net, self.copied = mlp(3, 6, 2), copied

    def __deepcopy__(self, memo):
        return self if self.copied == "itself" else self.copied

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("copied", ["itself", None])
def test_a_model_whose_copy_is_itself_or_nothing_is_refused(copied):
    model = Itself(copied)
    with pytest.raises(le.InputError, match="gives back parts of the model itself"):
        le.prune(nn.Sequential(model) if copied else model, torch.randn(200, 3, dtype=torch.float64))
    assert model.net[0].out_features == 6


def test_what_cannot_be_copied_is_named():
    model = mlp(3, 6, 2)
    model.lock = threading.Lock()
    with pytest.raises(le.InputError, match=r"cannot be copied .*lock.*locks"):
        le.prune(model, torch.randn(200, 3, dtype=torch.float64))
