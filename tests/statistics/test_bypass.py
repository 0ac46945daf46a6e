"""The non-affine share: known shares, held out, whatever the units."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_embed as le
from lightning_embed.errors import InputError
from lightning_embed.statistics import non_affine_share
from tests.surgery.steps import mlp


def rows(samples=400, fan_in=4, seed=0):
    return torch.randn(samples, fan_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 50), noise=st.floats(0.01, 2.0))
def test_the_share_is_that_of_what_no_affine_map_can_make(seed, noise):
    x = rows(2000, seed=seed)
    y = x @ rows(4, 3, seed=seed + 1) + 5
    bent = noise * (x[:, :3] ** 2 - 1)  # uncorrelated with any affine function of x
    expected = bent.norm() / (y + bent - (y + bent).mean(0)).norm()
    torch.testing.assert_close(non_affine_share(x, y + bent), expected, rtol=0.1, atol=0.01)


@given(seed=st.integers(0, 50), scale=st.sampled_from([1e-6, 1.0, 1e6]), shift=st.sampled_from([0.0, 100.0]))
def test_units_do_not_matter(seed, scale, shift):
    x = rows(seed=seed)
    y = torch.relu(x)
    torch.testing.assert_close(
        non_affine_share(scale * x + shift, 3 * y - shift), non_affine_share(x, y), rtol=1e-4, atol=1e-6
    )


def test_with_few_samples_it_is_what_is_seen_on_others():
    """Twelve samples and twenty inputs: a fit would explain anything."""
    x, y = rows(24, 20), rows(24, 2, seed=9)
    assert non_affine_share(x, y) > 0.7
    assert torch.isnan(non_affine_share(x[:7], y[:7]))
    assert non_affine_share(x, torch.ones(24, 2)) == 0.0


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="of the same samples"):
        non_affine_share(rows(9), rows(8))
    with pytest.raises(InputError, match="`inputs` holds NaN"):
        non_affine_share(rows(9) * torch.nan, rows(9))


def test_it_foretells_what_the_correlation_does_not():
    """One neuron bends and nobody reads it: MPC is low, and yet the layer may go."""
    model = mlp(3, 10, 10, 2, activation=nn.ReLU)
    with torch.no_grad():
        model[0].bias += 9.0  # all on
        model[0].bias[0] -= 9.0
        model[2].weight[:, 0] *= 1e-5
    first, second = le.measure(model, rows(fan_in=3)).layers
    assert first.mpc < 0.95
    assert first.non_affine < 1e-3
    assert second.non_affine > 0.05
    assert "non-affine" in str(le.measure(model, rows(fan_in=3)))


def test_of_convolutions_and_gates_it_is_not_told():
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    assert [one.non_affine for one in le.measure(conv, torch.randn(20, 1, 8, 8)).layers] == [None]
