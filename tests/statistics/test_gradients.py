"""Gradient norms: numpy-free references on small models."""

import pytest
import torch
from torch import nn

from lightning_embed.statistics import gradient_l1, gradient_norms, named_gradients


def trained_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))
    model.extra = nn.Parameter(torch.ones(2))
    (model(torch.randn(5, 3)).square().sum() + model.extra.sum()).backward()
    return model


def test_norms_by_layer_and_in_total():
    model = trained_model()
    norms = gradient_norms(named_gradients(model))
    assert list(norms) == ["", "0", "1.1"]
    for path, norm in norms.items():
        own = model.get_submodule(path).parameters(recurse=False)
        expected = torch.cat([parameter.grad.flatten() for parameter in own]).norm()
        torch.testing.assert_close(norm, expected)
    total = sum(parameter.grad.abs().sum() for parameter in model.parameters())
    torch.testing.assert_close(gradient_l1(named_gradients(model)), total)


def test_missing_gradients_are_skipped():
    model = trained_model()
    for parameter in model[0].parameters():
        parameter.grad = None
    assert list(gradient_norms(named_gradients(model))) == ["", "1.1"]
    assert gradient_norms({"0.weight": None}) == {}
    assert gradient_l1({"0.weight": None}).isnan()


def test_shared_parameters_count_once():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    model(torch.ones(1, 2)).sum().backward()
    assert list(named_gradients(model)) == ["0.weight", "0.bias"]


def test_nan_propagates_to_its_layer():
    gradients = {"a.weight": torch.tensor([1.0, torch.nan]), "b.weight": torch.ones(4)}
    norms = gradient_norms(gradients)
    assert norms["a"].isnan()
    assert norms["b"].item() == 2.0
    assert gradient_l1(gradients).isnan()


def test_sparse_gradients_add_up_before_the_norm():
    table = nn.Embedding(4, 2, sparse=True)
    (table(torch.tensor([1, 1, 3])) * torch.tensor([[1.0], [-1.0], [2.0]])).sum().backward()
    gradients = named_gradients(table)
    assert gradients["weight"].is_sparse
    assert gradient_l1(gradients).item() == 4.0
    assert gradient_norms(gradients)[""].item() == pytest.approx(8**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_overflow_in_narrow_dtypes(dtype):
    gradients = {"a.weight": torch.full((100,), 1000.0, dtype=dtype), "b.weight": torch.ones(2)}
    assert gradient_norms(gradients)["a"].item() == pytest.approx(1e4)
    assert gradient_l1(gradients).item() == pytest.approx(1e5 + 2)
