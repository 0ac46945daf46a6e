"""Affine fits: lstsq as reference, closed forms, degenerate neurons."""

import numpy as np
import pytest
import torch

from lightning_embed.errors import InputError
from lightning_embed.statistics import Moments, affine_fit, affine_fit_of_moments, pearson_correlation, tangent_fit


def layer(samples=100, neurons=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    pre = (torch.randn(samples, neurons, generator=generator) + 0.5).to(dtype)
    weight = torch.rand(samples, neurons, generator=generator).to(dtype)
    return pre, torch.tanh(pre), weight


def weighted_lstsq(pre, post, weight):
    lines = []
    for x, y, w in zip(*(t.double().T.numpy() for t in (pre, post, weight)), strict=True):
        design = np.stack([x, np.ones_like(x)], axis=1) * np.sqrt(w)[:, None]
        lines.append(np.linalg.lstsq(design, y * np.sqrt(w), rcond=None)[0])
    return np.array(lines).T


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_lstsq(dtype, weighted):
    pre, post, weight = layer(dtype=dtype)
    fit = affine_fit(pre, post, weight if weighted else None)
    slope, intercept = weighted_lstsq(pre, post, weight if weighted else torch.ones_like(pre))
    assert fit.slope.numpy() == pytest.approx(slope, rel=1e-9)
    assert fit.intercept.numpy() == pytest.approx(intercept, rel=1e-9)


def test_equal_weights_are_no_weights():
    pre, post, _ = layer()
    plain, weighted = affine_fit(pre, post), affine_fit(pre, post, torch.full_like(pre, 1e-30))
    for name in ("slope", "intercept", "residual"):
        torch.testing.assert_close(getattr(plain, name), getattr(weighted, name), rtol=1e-9, atol=0)


def test_residual_is_what_the_correlation_leaves():
    pre, post, _ = layer()
    expected = (1 - pearson_correlation(pre, post).square()).sqrt()
    torch.testing.assert_close(affine_fit(pre, post).residual, expected, rtol=1e-7, atol=0)


def test_fit_of_merged_moments_is_the_fit_of_all():
    pre, post, _ = layer()
    torch.testing.assert_close(
        affine_fit_of_moments(Moments.of(pre, post)).slope, affine_fit(pre, post).slope, rtol=0, atol=0
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_constant_neurons_get_slope_zero(weighted):
    pre, post, weight = layer()
    pre, post = pre.clone(), post.clone()
    pre[:, 0] = 3.0
    post[:, 1] = 0.7
    weight = weight if weighted else torch.ones_like(pre)
    fit = affine_fit(pre, post, weight if weighted else None)
    mean = (weight.double() * post.double()).sum(0) / weight.double().sum(0)
    assert fit.slope[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(fit.intercept[:2], mean[:2])
    assert fit.residual[:2].tolist() == pytest.approx([1.0, 0.0])


def test_a_neuron_without_weight_is_fitted_plainly():
    pre, post, weight = layer()
    weight[:, 2] = 0.0
    plain, weighted = affine_fit(pre, post), affine_fit(pre, post, weight)
    assert weighted.slope[2].item() == pytest.approx(plain.slope[2].item())
    assert weighted.slope[0] != plain.slope[0]


def test_values_that_are_not_finite_spoil_only_their_neuron():
    pre, post, weight = layer()
    post = post.clone()
    post[0, 1] = torch.inf
    weight[0, 3] = torch.nan
    expected = [False, True, False, True]
    assert affine_fit(pre, post, weight).slope.isnan().tolist() == expected
    assert affine_fit(pre, post).slope.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "function",
    [torch.tanh, lambda x: torch.tanh(x.detach()), lambda x: torch.from_numpy(np.tanh(x.detach().numpy()))],
    ids=["autograd", "detached", "numpy"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tangent_of_tanh(function, dtype):
    pre, _, weight = layer(dtype=dtype)
    for w in (None, weight):
        fit = tangent_fit(function, pre, w)
        share = torch.ones_like(pre) if w is None else w
        mean = (share.double() * pre.double()).sum(0) / share.double().sum(0)
        slope = 1 - mean.tanh().square()
        torch.testing.assert_close(fit.slope, slope, rtol=2e-4, atol=0)
        torch.testing.assert_close(fit.slope * mean + fit.intercept, mean.tanh(), rtol=1e-5, atol=1e-6)


def test_tangent_works_in_place_without_grad_and_with_a_built_in_batch():
    pre, _, _ = layer()
    kept = pre.clone()

    def function(x):
        return torch.nn.functional.relu(x.view(100, 2, 2), inplace=True).view(100, 4)

    with torch.no_grad():
        fit = tangent_fit(function, pre)
    assert torch.equal(pre, kept)
    assert fit.slope.tolist() == [1.0] * 4
    assert fit.intercept.tolist() == [0.0] * 4


def test_tangent_residual_of_constants():
    pre, _, _ = layer()
    assert tangent_fit(torch.zeros_like, pre).residual.tolist() == [0.0] * 4
    zero = torch.zeros(5, 1)
    assert tangent_fit(lambda x: x + 2, zero).residual.tolist() == [0.0]


def test_refusals():
    pre, post, weight = layer()
    with pytest.raises(InputError, match="`weight` has shape"):
        affine_fit(pre, post, weight[:, :1])
    with pytest.raises(InputError, match="`weight` has negative"):
        affine_fit(pre, post, -weight)
    with pytest.raises(InputError, match="`weight` has negative"):
        tangent_fit(torch.tanh, pre, -weight)
    with pytest.raises(InputError, match="same samples and neurons"):
        tangent_fit(lambda x: x[:, :1], pre)
