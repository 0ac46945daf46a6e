"""Tangent rank: against the derivative written down, at embedded points, and what is refused."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.analysis import tangent_rank
from lightning_embed.analysis.risk import Risk, jacobian
from lightning_embed.errors import InputError

X = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(*modules):
    torch.manual_seed(0)
    model = nn.Sequential(*modules).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def written_down(model, x):
    risk = Risk(model, lambda f, y: (f - y).square().mean(), (x, torch.zeros_like(model(x))))
    values = torch.linalg.svdvals(jacobian(risk.outputs, risk.point))
    return int((values > 1e-5 * values[0]).sum())


@pytest.mark.parametrize(
    "modules",
    [
        lambda: (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: (nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False), nn.GELU(), nn.Linear(5, 1)),
        lambda: (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 2)),
        lambda: (nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2)),
    ],
)
def test_the_derivative_written_down_has_the_same_rank(modules):
    model = net(*modules()).eval()
    found = tangent_rank(model, X)
    assert found.rank == written_down(model, X)
    assert found.parameters == sum(one.numel() for one in model.parameters())
    assert not found.saturated


def test_tied_weights_count_once():
    first = nn.Linear(3, 3)
    model = net(first, nn.Tanh(), first, nn.Tanh(), nn.Linear(3, 1))
    assert tangent_rank(model, X).rank == written_down(model, X)


@pytest.mark.laws
@pytest.mark.parametrize("seed", range(3))
def test_at_an_embedded_point_a_network_acts_as_the_smaller_one(seed):
    """Splitting brings no feature and no derivative of one; 001, Thm. 4.1."""
    torch.manual_seed(seed)
    narrow = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    wide = le.widen(narrow, {"0": 9, "2": 7}, seed=seed)
    was, became = tangent_rank(narrow, X), tangent_rank(wide, X)
    assert was.rank > 35  # of 39: the least singular values are small, but of a generic tanh network none is zero
    assert became.rank == was.rank
    assert became.parameters > 2 * was.parameters
    assert str(became) == f"{became.parameters} parameters act as {was.rank}"


def test_single_precision_and_frozen_parameters_and_few_rows():
    model = net(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    whole = tangent_rank(model, X).rank
    assert tangent_rank(model.float(), X.float()).rank == whole
    few = tangent_rank(model.double(), X, rows=10)
    assert (few.rows, few.rank, few.saturated) == (10, 10, True)
    assert str(few) == "26 parameters act as at least 10"
    model[0].requires_grad_(False)
    assert tangent_rank(model, X).parameters == 10


def test_what_is_refused():
    model = net(nn.Linear(3, 2))
    with pytest.raises(InputError, match="rows must be positive"):
        tangent_rank(model, X, rows=0)
    with pytest.raises(InputError, match="No parameter of the model requires a gradient"):
        tangent_rank(model.requires_grad_(False), X)
    with pytest.raises(InputError, match="one finite tensor"):
        tangent_rank(net(nn.Linear(3, 2)), X / 0)
    convolution = nn.Conv1d(1, 200_000, 3).double()
    with pytest.raises(InputError, match="has 200,000 outputs, more than rows=2048"):
        tangent_rank(convolution, X[:1, None])
    pooled = nn.Sequential(convolution, nn.Flatten(), nn.Unflatten(1, (2, -1)), nn.AdaptiveAvgPool1d(1))
    with pytest.raises(InputError, match="are in no Linear"):
        tangent_rank(pooled, X[:, None].expand(60, 1, 3))
