"""Moments: float64 accuracy, merging, plain data."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.errors import InputError
from lightning_embed.statistics import Moments, merge_moments, pearson_of_moments, update_moments

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layer(samples, neurons, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(samples, neurons, generator=generator, dtype=torch.float64) + 3
    return pre.to(dtype), torch.tanh(pre).to(dtype)


def assert_same_moments(a, b, rtol=1e-10):
    assert a.count == b.count
    for name in ("mean_pre", "mean_post", "var_pre", "var_post", "covariance"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [2, 700, 5000])
def test_equals_numpy_in_float64(dtype, samples):
    pre, post = layer(samples, 6, 0, dtype)
    moments = Moments.of(pre, post)
    x, y = pre.double().numpy(), post.double().numpy()
    assert moments.mean_pre.numpy() == pytest.approx(x.mean(0), rel=1e-13)
    assert moments.mean_post.numpy() == pytest.approx(y.mean(0), rel=1e-13)
    assert moments.var_pre.numpy() == pytest.approx(x.var(0), rel=1e-10)
    assert moments.var_post.numpy() == pytest.approx(y.var(0), rel=1e-10)
    expected = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    assert moments.covariance.numpy() == pytest.approx(expected, rel=1e-10)
    assert moments.covariance.dtype == torch.float64


def test_wide_layers_take_one_row_at_a_time():
    pre, post = layer(3, 2**17 + 1, 0)
    torch.testing.assert_close(Moments.of(pre, post).var_pre, pre.double().var(0, correction=0))


@given(
    cuts=st.lists(st.integers(1, 59), max_size=6, unique=True),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 5),
)
def test_merging_any_split_in_any_order_is_one_batch(cuts, order, seed):
    pre, post = layer(60, 3, seed)
    bounds = [0, *sorted(cuts), 60]
    pairs = [(pre[a:b], post[a:b]) for a, b in itertools.pairwise(bounds)]
    order.shuffle(pairs)
    whole = Moments.of(pre, post)
    streamed = None
    for x, y in pairs:
        streamed = update_moments(streamed, x, y)
    parts = [Moments.of(x, y) for x, y in pairs]
    left = parts[0]
    for part in parts[1:]:
        left = merge_moments(left, part)
    right = parts[-1]
    for part in reversed(parts[:-1]):
        right = merge_moments(part, right)
    for result in (streamed, left, right):
        assert_same_moments(result, whole)


def test_nothing_given_is_changed():
    pre, post = layer(10, 2, 0)
    kept_pre, kept_post = pre.clone(), post.clone()
    first = Moments.of(pre, post)
    before = first.to_dict()
    merge_moments(first, update_moments(first, pre + 1, post))
    assert first.to_dict() == before
    assert torch.equal(pre, kept_pre)
    assert torch.equal(post, kept_post)


def test_a_gradient_does_not_leak_in():
    pre = torch.randn(4, 2, requires_grad=True)
    assert not Moments.of(pre, pre * 2).cross.requires_grad


# The rows of the table "Numerics of 1-ρ": the offsets and noise that float32 sums lose.
@pytest.mark.parametrize(
    ("mean", "std", "target"), [(0.0, 1.0, 1e-8), (1.0, 0.01, 1e-4), (100.0, 1e-3, 4.3e-6), (100.0, 1.0, 1e-8)]
)
@pytest.mark.parametrize("samples", [30, 511, 512, 60_000])
def test_one_minus_rho_is_that_of_float64(mean, std, target, samples):
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    y = x + (2 * target) ** 0.5 * torch.randn(samples, 8, generator=generator, dtype=torch.float64)
    pre, post = (mean + std * x).float(), (mean + std * y).float()
    moments = None
    for start in range(0, samples, 1000):
        moments = update_moments(moments, pre[start : start + 1000], post[start : start + 1000])
    a = pre.double().numpy() - pre.double().numpy().mean(0)
    b = post.double().numpy() - post.double().numpy().mean(0)
    expected = 1 - (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    if std < 0.01:
        with pytest.warns(UserWarning, match="not resolved"):
            measured = 1 - pearson_of_moments(moments).numpy()
    else:
        measured = 1 - pearson_of_moments(moments).numpy()
    assert (np.abs(measured - expected) <= 1e-8 + 0.01 * expected).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale):
    pre = torch.tensor([[-1.0], [0.0], [1.0], [2.0]]) * scale
    assert pearson_of_moments(Moments.of(pre, pre * 2)).item() == pytest.approx(1)


def test_constant_is_relative_to_the_spacing_of_numbers():
    spacing = torch.finfo(torch.float32).eps
    column = torch.tensor([5.0, 5.0, 5.0, 5.0])
    rounded = column * (1 + torch.tensor([0.0, spacing, 0.0, spacing]))
    varying = column + torch.tensor([0.0, 1e-3, 0.0, 1e-3])
    zero = torch.zeros(4)
    pre = torch.stack([column, rounded, varying, varying, zero, varying * 1e-20], dim=1)
    post = torch.stack([varying, varying, varying, rounded, zero, varying], dim=1)
    moments = Moments.of(pre, post)
    assert moments.constant.tolist() == [True, True, False, True, True, False]
    assert moments.constant_pre.tolist() == [True, True, False, False, True, False]
    assert moments.constant_post.tolist() == [False, False, False, True, True, False]


def test_values_that_are_not_finite_spoil_only_their_neuron():
    pre, post = layer(8, 3, 0)
    pre[2, 1] = torch.nan
    post[5, 2] = torch.inf
    for moments in (Moments.of(pre, post), update_moments(Moments.of(pre[:1], post[:1]), pre[1:], post[1:])):
        assert moments.covariance.isnan().tolist() == [False, True, True]
        assert not moments.constant.any()


def test_select_takes_columns_in_order():
    moments = Moments.of(*layer(10, 4, 0))
    assert torch.equal(moments.select([2, 0]).mean_pre, moments.mean_pre[[2, 0]])
    assert torch.equal(moments.select(torch.tensor([True, False, False, True])).cross, moments.cross[[0, 3]])
    assert moments.select([]).neurons == 0


def test_plain_data_survive_json():
    moments = Moments.of(*layer(10, 4, 0))
    again = Moments.from_dict(json.loads(json.dumps(moments.to_dict())))
    assert again.to_dict() == moments.to_dict()
    assert_same_moments(merge_moments(again, again), merge_moments(moments, moments), rtol=0)


def test_refusals():
    x = torch.ones(3, 2)
    with pytest.raises(InputError, match=r"`pre` has shape \(3,\)"):
        Moments.of(torch.ones(3), torch.ones(3))
    with pytest.raises(InputError, match=r"`post` has dtype torch\.int64"):
        Moments.of(x, x.long())
    with pytest.raises(InputError, match="same samples and neurons"):
        Moments.of(x, x[:2])
    with pytest.raises(InputError, match="no samples"):
        Moments.of(x[:0], x[:0])
    with pytest.raises(InputError, match="3 neurons"):
        update_moments(Moments.of(x, x), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(InputError, match="merge moments of one layer"):
        merge_moments(Moments.of(x, x), Moments.of(x[:, :1], x[:, :1]))
    with pytest.raises(InputError, match="`data` has the keys"):
        Moments.from_dict({"count": 1})
