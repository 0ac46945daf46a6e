"""From models to θ and back."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.operators import network, to_vector
from lightning_embed.surgery import mlp, theta_of


def test_there_and_back():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ELU(), nn.Sequential(nn.Linear(4, 4, bias=False), nn.ELU()), nn.Linear(4, 1)
    )
    theta, x = theta_of(net), torch.randn(9, 3)
    torch.testing.assert_close(network(theta, x, nn.functional.elu), net(x))
    again = mlp(theta, nn.ELU())
    torch.testing.assert_close(again(x), net(x))
    assert torch.equal(to_vector(theta_of(again)), to_vector(theta))
    assert again[1] is not again[3]
    again[0].weight.data.zero_()
    theta[0][0].zero_()
    assert net[0].weight.all()


def test_types_are_kept():
    theta = theta_of(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).to(torch.bfloat16))
    assert {one.dtype for one in mlp(theta, nn.Tanh()).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "'1' follows a Linear with no activation"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), "'1' is a BatchNorm1d"),
        (nn.Sequential(nn.Tanh(), nn.Linear(3, 1)), "'0' is a Tanh"),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh()), "must begin and end with an nn.Linear"),
        (nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.PReLU()), nn.Linear(3, 1)), r"'1\.0' is a PReLU"),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(4, 1)), "layer 2 of theta must have"),
        (nn.Conv1d(1, 1, 1), "is a Conv1d"),
    ],
)
def test_what_is_no_plain_network_is_refused(model, message):
    with pytest.raises(le.InputError, match=message):
        theta_of(model)
