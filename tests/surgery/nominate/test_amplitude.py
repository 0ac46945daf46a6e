"""Small neurons are left out of what is measured, and go first."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.statistics import amplitudes, augmented_weights


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def hidden_by_small_neurons():
    """A hidden layer of four neurons that act linearly and two that bend but that nobody reads to speak of."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[:4] *= 1e-3
        net[0].bias[:4] *= 1e-3
        net[2].weight[:, :4] *= 1e3
        net[0].weight[4:] *= 4
        net[2].weight[:, 4:] *= 1e-9
    return net


def test_a_neuron_that_nobody_reads_does_not_hide_a_linear_layer():
    net = hidden_by_small_neurons()
    (all_of_them,) = le.measure(net, data()).layers
    (large,) = le.measure(net, data(), criteria=le.Criteria(amplitude=0.1)).layers
    assert all_of_them.mpc < 0.97
    assert large.mpc > 0.999
    size = amplitudes(augmented_weights(net[0].weight, net[0].bias), net[2].weight)
    assert large.widths["amplitude"] == int((size >= 0.1 * size.max()).sum()) < 6
    assert large.width_cosine <= large.widths["amplitude"]
    assert "amplitude" not in all_of_them.widths


def test_small_neurons_go_first_by_a_refit_and_the_layer_follows():
    net, x = hidden_by_small_neurons(), data()
    only = le.Criteria(condensation=None, span=None, amplitude=0.1)
    result = le.prune(net, x, criteria=only)
    done = [record.criterion for record in result.records if record.done]
    assert done == ["amplitude", "linearization"]
    assert result.size[1].hidden_layers == 0
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-2, atol=1e-2)
    without = le.prune(net, x, criteria=le.Criteria(condensation=None, span=None))
    assert not any(record.done for record in without.records)


def test_after_null_neurons_and_with_every_criterion_off():
    net = hidden_by_small_neurons()
    with torch.no_grad():
        net[0].weight[5] = 0.0
    result = le.prune(
        net, data(), criteria=le.Criteria(linearization=None, condensation=None, span=None, amplitude=0.1)
    )
    assert [record.criterion for record in result.records if record.done] == ["null", "amplitude"]


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_asked_for(share):
    with pytest.raises(le.InputError, match="amplitude"):
        le.Criteria(amplitude=share)
