"""θ as a value: order of the vector, the network against torch's own modules, refusals."""

import pytest
import torch
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.operators import features, from_vector, network, parameter_count, to_vector, widths_of
from lightning_embed.surgery import theta_of
from tests.surgery.steps import mlp


def test_the_vector_has_the_order_of_torch():
    net = mlp(3, 4, 5, 2)
    theta = theta_of(net)
    assert torch.equal(to_vector(theta), nn.utils.parameters_to_vector(net.parameters()))
    assert torch.equal(to_vector(from_vector(to_vector(theta), (3, 4, 5, 2))), to_vector(theta))
    assert parameter_count(widths_of(theta)) == sum(one.numel() for one in net.parameters())


def test_features_are_what_the_modules_compute():
    net = mlp(3, 4, 5, 2, activation=nn.GELU)
    x = torch.randn(7, 3, dtype=torch.float64)
    found = features(theta_of(net), x, nn.functional.gelu)
    for layer, depth in enumerate((0, 2, 4, 5)):
        torch.testing.assert_close(found[layer], net[:depth](x))
    assert torch.equal(network(theta_of(net), x, nn.functional.gelu), found[-1])


def test_skip_connections_add_the_layer_before():
    theta = theta_of(mlp(3, 3, 3, 2))
    x = torch.randn(7, 3, dtype=torch.float64)
    first = torch.tanh(x @ theta[0][0].T + theta[0][1]) + x
    second = torch.tanh(first @ theta[1][0].T + theta[1][1]) + first
    torch.testing.assert_close(features(theta, x, torch.tanh, {1, 2})[2], second)


def test_what_is_no_theta_is_refused():
    with pytest.raises(InputError, match="theta has no layer"):
        widths_of(())
    with pytest.raises(InputError, match=r"layer 2 of theta must have a weight of shape \(m, 3\) .* not \(1, 2\)"):
        widths_of(((torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(1, 2), torch.zeros(1))))
    with pytest.raises(InputError, match=r"a bias of shape \(m,\), not \(3, 2\) and \(2,\)"):
        widths_of(((torch.zeros(3, 2), torch.zeros(2)),))
    with pytest.raises(InputError, match=r"vector must have shape \(13,\) for the widths \(2, 3, 1\), not \(12,\)"):
        from_vector(torch.zeros(12), (2, 3, 1))
