"""The Hessian and its parts against entry-by-entry differentiation, dense and matrix-free."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_embed.analysis import Risk, extreme_eigenvalues, hessian, hessian_operator
from lightning_embed.analysis import hessian as hessian_of
from lightning_embed.errors import InputError
from tests.oracles import double_loop_hessian, hessian_by_samples
from tests.tolerances import tolerance


class Tied(nn.Module):
    """One weight used twice, a buffer, and a frozen bias."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.inner.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, x):
        return self.inner(torch.sigmoid(self.inner(x) + self.shift))


MODELS = {
    "tanh": lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
    "deep relu": lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.GELU(), nn.Linear(2, 2)),
    "dropout": lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)),
    "tied": Tied,
    "bilinear": lambda: nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False)),
}
LOSSES = {
    "mse": (nn.MSELoss(), F.mse_loss),
    "cross entropy": (nn.CrossEntropyLoss(), lambda f, y: F.cross_entropy(f[None], y[None])),
    "quartic": (lambda f, y: (f - y).pow(4).sum(1).mean(), lambda f, y: (f - y).pow(4).sum()),
}


def problem(model, loss):
    torch.manual_seed(0)
    net = MODELS[model]()
    x = torch.randn(5, 2)
    y = torch.tensor([0, 1, 1, 0, 1]) if loss == "cross entropy" else torch.randn(5, 2)
    return net, *LOSSES[loss], (x, y)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", MODELS)
def test_the_parts_are_the_printed_sums_and_add_up_to_the_hessian(model, loss):
    net, whole, of_sample, data = problem(model, loss)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = hessian_of(net, whole, data)

    risk = Risk(net, whole, data)
    first, second = hessian_by_samples(risk.outputs, lambda f, n: of_sample(f, risk.targets[n]), risk.point)
    assert_close(found.first, first, **tolerance(torch.float64))
    assert_close(found.second, second, **tolerance(torch.float64))
    assert_close(found.matrix, double_loop_hessian(risk.value, risk.point), **tolerance(torch.float64))
    assert_close(risk.hessian(risk.point), found.matrix, **tolerance(torch.float64))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rows_follow_the_parameters_that_require_a_gradient():
    net, whole, _, data = problem("tied", "mse")
    risk = Risk(net, whole, data)
    assert torch.equal(risk.point, net.inner.weight.detach().double().flatten())
    assert torch.equal(risk.module(2 * risk.point).inner.weight.flatten(), 2 * risk.point)


def test_gradients_of_many_points_are_those_of_each():
    net, whole, _, data = problem("deep relu", "cross entropy")
    risk = Risk(net, whole, data)
    points = risk.point + torch.randn(4, len(risk.point), dtype=torch.float64)
    for point, gradient in zip(points, risk.gradients(points), strict=True):
        free = point.clone().requires_grad_()
        assert_close(gradient, torch.autograd.grad(risk.value(free), free)[0], **tolerance(torch.float64))
        assert_close(risk.gradient(point), gradient, **tolerance(torch.float64))


@pytest.mark.parametrize("loss", ["mse", "cross entropy"])
@pytest.mark.parametrize("model", ["tanh", "deep relu", "batch norm"])
def test_the_operator_is_the_matrix(model, loss):
    net, whole, _, data = problem(model, loss)
    matrix = hessian_of(net, whole, data).matrix.numpy()
    operator = hessian_operator(net, whole, data)
    assert operator.dtype == np.float64
    np.testing.assert_allclose(operator @ np.eye(len(matrix)), matrix, atol=1e-12)
    wanted = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(extreme_eigenvalues(operator, 4), wanted[[0, 1, -2, -1]], atol=1e-10)
    np.testing.assert_allclose(extreme_eigenvalues(operator, 3), wanted[[0, -2, -1]], atol=1e-10)


def test_too_large_a_model_is_sent_to_the_operator(monkeypatch):
    monkeypatch.setattr(sys.modules["lightning_embed.analysis.hessian"], "MAX_PARAMETERS", 16)
    net, whole, _, data = problem("tanh", "mse")
    with pytest.raises(InputError, match=r"17 parameters.*hessian_operator"):
        hessian(net, whole, data)


def test_without_curvlinops_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    net, whole, _, data = problem("tanh", "mse")
    with pytest.raises(ImportError, match=r"lightning-embed\[spectra\]"):
        hessian_operator(net, whole, data)


def test_what_cannot_be_used_is_refused():
    net, whole, _, (x, y) = problem("tanh", "mse")
    with pytest.raises(InputError, match="pair of tensors"):
        hessian(net, whole, x)
    with pytest.raises(InputError, match="equally many"):
        hessian(net, whole, (x, y[1:]))
    with pytest.raises(InputError, match="one finite number"):
        hessian(net, nn.MSELoss(reduction="none"), (x, y))
    with pytest.raises(InputError, match="one finite number"):
        hessian(net, whole, (x / 0, y))
    with pytest.raises(InputError, match="nothing to differentiate"):
        hessian(net.requires_grad_(False), whole, (x, y))
    with pytest.raises(InputError, match="reduction='mean'"):
        hessian_operator(net, LOSSES["quartic"][0], (x, y))
    with pytest.raises(InputError, match=r"count must be in 1\.\.2"):
        extreme_eigenvalues(np.eye(3), 3)
