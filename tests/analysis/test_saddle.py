"""Strict saddle points and ways out: what is refused (what holds is in tests/laws/test_critical_points.py)."""

import pytest
import torch
from torch import nn

from lightning_embed.analysis import escape, is_strict_saddle, may_be_truly_bad
from lightning_embed.errors import InputError

X = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)


def at_rest(*modules):
    net = nn.Sequential(*modules).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def test_a_point_that_is_not_critical_is_refused():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1))
    for ask in (is_strict_saddle, may_be_truly_bad, escape):
        with pytest.raises(InputError, match=r"not critical: the L1 norm of the gradient is .*find_critical_point"):
            ask(net, nn.MSELoss(), (X, X))


def test_a_maximum_by_a_concave_loss_is_a_strict_saddle_and_never_truly_bad():
    net = at_rest(nn.Linear(1, 1))
    data = X, torch.zeros_like(X)
    assert is_strict_saddle(net, lambda f, y: -(f - y).square().mean(), data)
    assert not may_be_truly_bad(net, lambda f, y: -(f - y).square().mean(), data)
    assert not is_strict_saddle(net, nn.MSELoss(), data)
    assert may_be_truly_bad(net, nn.MSELoss(), data)


def test_a_monkey_saddle_is_not_strict():
    """No negative eigenvalue, though the loss w³ falls from there."""
    net = at_rest(nn.Linear(1, 1, bias=False))
    assert not is_strict_saddle(net, lambda f, y: (f - y).pow(3).mean(), (torch.ones(1, 1), torch.zeros(1, 1)))


def test_from_a_strict_saddle_no_way_need_be_made():
    net = at_rest(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    with pytest.raises(InputError, match="strict saddle point already"):
        escape(net, nn.MSELoss(), (X, X - X.mean()))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Linear(1, 1)], "one and the same activation"),
        ([nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)], "one and the same activation"),
        ([nn.Linear(1, 1), nn.LayerNorm(1), nn.Linear(1, 1)], "LayerNorm"),
    ],
)
def test_only_networks_of_linears_and_one_activation_are_embedded(modules, message):
    with pytest.raises(InputError, match=message):
        escape(at_rest(*modules), nn.MSELoss(), (X, torch.zeros_like(X)))
