"""Where activations are affine: every entry of the table against torch's own module."""

import math

import pytest
import torch
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.operators import affine_segments, tangent_segment
from tests.tolerances import tolerance

AFFINE = [
    nn.Identity(),
    nn.ReLU(),
    nn.ReLU6(),
    nn.ELU(0.7),
    nn.CELU(0.7),
    nn.SELU(),
    nn.LeakyReLU(0.3),
    nn.LeakyReLU(0.0),
    nn.Hardtanh(-2.0, 0.5),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Threshold(0.5, 7.0),
    nn.Hardshrink(0.4),
    nn.Softshrink(0.4),
]
SMOOTH = [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.Mish(), nn.LogSigmoid(), nn.Softsign()]


@pytest.mark.parametrize("activation", AFFINE, ids=str)
def test_a_segment_is_affine_and_cannot_be_longer(activation):
    segments = affine_segments(activation)
    assert segments
    for one in segments:
        inside = torch.linspace(max(one.low, -50.0), min(one.high, 50.0), 999, dtype=torch.float64)[1:-1]
        torch.testing.assert_close(activation(inside), one.slope * inside + one.intercept, **tolerance(inside.dtype))
        assert one.slope != 0
        assert one.holds(inside[:, None]).all()
        for end, outwards in ((one.low, -1.0), (one.high, 1.0)):
            if math.isfinite(end):
                outside = torch.tensor([end + 0.3 * outwards], dtype=torch.float64)
                assert (activation(outside) - one.slope * outside - one.intercept).abs() > 1e-3
                assert not one.holds(torch.cat([inside, outside])[:, None]).any()
                assert not one.holds(torch.tensor([[end]], dtype=torch.float64)).any()  # an open interval


@pytest.mark.parametrize("activation", SMOOTH, ids=str)
def test_smooth_activations_have_no_segment_but_a_tangent(activation):
    assert affine_segments(activation) == ()
    for radius in (0.3, 0.01):
        one = tangent_segment(activation, 0.7, radius)
        x = torch.linspace(one.low, one.high, 317, dtype=torch.float64)
        found = (activation(x) - one.slope * x - one.intercept).abs().max()
        assert found <= one.error * (1 + 1e-4)
        assert found >= one.error * 0.9
        assert (one.low + one.high) / 2 == pytest.approx(0.7)


def test_errors_fall_with_the_square_or_the_cube():
    def ratio(activation, centre):
        return tangent_segment(activation, centre, 0.02).error / tangent_segment(activation, centre, 0.01).error

    assert ratio(torch.tanh, 0.0) == pytest.approx(8, rel=1e-2)
    assert ratio(torch.tanh, 0.5) == pytest.approx(4, rel=5e-2)
    assert ratio(nn.GELU(), math.sqrt(2)) == pytest.approx(8, rel=5e-2)


def test_what_has_no_tangent_of_use_is_refused():
    with pytest.raises(InputError, match="radius must be positive, not 0"):
        tangent_segment(torch.tanh, radius=0)
    with pytest.raises(InputError, match=r"flat at -2.0"):
        tangent_segment(torch.relu, -2.0)
    assert affine_segments(nn.PReLU()) == ()
