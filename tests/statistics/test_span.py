"""Span: a slow greedy as reference, closed forms, lstsq."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.errors import InputError
from lightning_embed.statistics import refit, span_order, width_span


def layer(samples=80, neurons=12, outputs=4, rank=None, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rank = rank or neurons
    base = torch.randn(samples, rank, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank, neurons, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, neurons, generator=generator, dtype=torch.float64)
    return (base @ mix + 1).to(dtype), weight.to(dtype)


def missing(features, weight, kept):
    """Share of the consumers' input that regression on the kept features and the constant leaves."""
    h, w = features.double().numpy(), weight.double().numpy()
    design = np.column_stack([h[:, list(kept)], np.ones(len(h))])
    received = h @ w.T
    left = received - design @ np.linalg.lstsq(design, received, rcond=None)[0]
    return np.linalg.norm(left) / np.linalg.norm(received - received.mean(0))


@given(seed=st.integers(0, 200), outputs=st.sampled_from([1, 3, 20]))
def test_each_pivot_is_the_best_single_addition(seed, outputs):
    features, weight = layer(30, 7, outputs, seed=seed)
    span = span_order(features, weight, 0.0)
    for k in range(len(span.kept)):
        chosen = missing(features, weight, span.kept[: k + 1])
        others = [missing(features, weight, [*span.kept[:k], j]) for j in set(range(7)) - set(span.kept[:k])]
        assert chosen <= min(others) + 1e-5
        assert span.residual[k].item() == pytest.approx(chosen, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_stops_at_the_first_width_within_the_tolerance(dtype, tolerance):
    features, weight = layer(dtype=dtype)
    span = span_order(features, weight, tolerance)
    assert missing(features, weight, span.kept) <= tolerance + 1e-9
    assert missing(features, weight, span.kept[:-1]) > tolerance
    assert width_span(features, weight, tolerance) == len(span.kept) == len(span.residual)
    assert (span.residual.diff() <= 0).all()


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_the_rank_of_the_features_is_the_most_that_is_kept(rank):
    features, weight = layer(rank=rank, neurons=30, outputs=40)
    for tolerance in (0.0, 1e-6):
        assert len(span_order(features, weight, tolerance).kept) == rank


def test_fewer_samples_than_neurons():
    features, weight = layer(samples=6, neurons=20, outputs=20)
    assert len(span_order(features, weight, 0.0).kept) == 5  # the constant takes one


@given(seed=st.integers(0, 200), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_copies_that_differ_by_their_rounding_count_once(seed, dtype):
    features, weight = layer(200, 8, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    copies = features[:, [*range(8), 0, 0, 5]]
    copies = (copies * (1 + torch.finfo(dtype).eps * torch.randn(copies.shape, generator=generator))).to(dtype)
    weight = torch.cat([weight, 3 * torch.randn(3, 3, generator=generator)], dim=1)
    span = span_order(copies, weight, 0.0)
    assert len({0 if neuron in {8, 9} else 5 if neuron == 10 else neuron for neuron in span.kept}) == len(span.kept)
    for k in range(len(span.kept)):
        told = missing(copies, weight, span.kept[: k + 1])
        assert span.residual[k].item() == pytest.approx(told, rel=1e-3, abs=20 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("samples", "neurons", "outputs"), [(80, 30, 4), (200, 40, 60), (20, 50, 3)])
def test_what_is_computed_row_by_row_is_what_is_computed_at_once(monkeypatch, samples, neurons, outputs, intercept):
    features, weight = layer(samples, neurons, outputs, rank=15)
    whole = span_order(features, weight, 0.05, intercept=intercept)  # of the last few any one spans what is left
    monkeypatch.setattr("lightning_embed.statistics.span.WHOLE", 10)
    rows = span_order(features, weight, 0.05, intercept=intercept)
    assert len(rows.kept) > 3
    assert rows.kept == whole.kept
    torch.testing.assert_close(rows.residual, whole.residual, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("most", [0, 1, 5, 12, 100])
def test_at_most_as_many_are_kept_as_wanted(most):
    features, weight = layer()
    every, few = span_order(features, weight, 0.0), span_order(features, weight, 0.0, most=most)
    assert few.kept == every.kept[:most]
    assert torch.equal(few.residual, every.residual[:most])


def test_units_and_offsets_of_a_neuron_do_not_matter():
    features, weight = layer()
    scale = 10.0 ** torch.linspace(-6, 6, 12, dtype=torch.float64)
    moved = span_order(features * scale + 5 * scale, weight / scale, 0.0)
    span = span_order(features, weight, 0.0)
    assert moved.kept == span.kept
    torch.testing.assert_close(moved.residual, span.residual, rtol=1e-6, atol=1e-6)


def test_constant_and_unread_neurons_are_not_kept():
    features, weight = layer()
    features[:, 0] = 2.0
    weight[:, 1] = 0.0
    assert sorted(span_order(features, weight, 0.0).kept) == list(range(2, 12))
    for h, w in ((torch.ones(9, 3), torch.ones(2, 3)), (features, torch.zeros(2, 12)), (features[:1], weight)):
        empty = span_order(h, w, 0.1)
        assert empty.kept == ()
        assert empty.residual.shape == (0,)


def test_tolerance_one_keeps_none():
    assert span_order(*layer(), 1.0).kept == ()


def test_joint_contribution_decides_not_single_ones():
    # Two large features whose contributions cancel, and a small one that is read alone.
    generator = torch.Generator().manual_seed(0)
    big, small = torch.randn(50, 1, generator=generator), torch.randn(50, 1, generator=generator)
    features = torch.cat([10 * big, 10 * big, small], dim=1)
    assert span_order(features, torch.tensor([[1.0, -1.0, 1.0]]), 0.01).kept == (2,)


def test_close_to_the_best_subset():
    features, weight = layer(neurons=8, outputs=5)
    span = span_order(features, weight, 0.0)
    best = min(missing(features, weight, kept) for kept in itertools.combinations(range(8), 4))
    assert best <= missing(features, weight, span.kept[:4]) <= 1.5 * best


def test_refit_is_least_squares_as_the_ridge_vanishes():
    features, _ = layer()
    kept = [7, 2, 9]
    mix, shift = refit(features, kept, ridge=1e-12)
    h = features.numpy()
    design = np.column_stack([h[:, kept], np.ones(len(h))])
    solution = np.linalg.lstsq(design, h, rcond=None)[0]
    assert mix.numpy() == pytest.approx(solution[:3].T, abs=1e-9)
    assert shift.numpy() == pytest.approx(solution[3], abs=1e-9)
    assert torch.equal(mix[kept], torch.eye(3, dtype=torch.float64))
    assert shift[kept].tolist() == [0, 0, 0]


def test_refit_is_the_ridge_formula():
    features, _ = layer()
    kept, ridge = [0, 4], 0.1
    mix, _ = refit(features, kept, ridge)
    covariance = np.cov(features.numpy().T, bias=True)
    block = covariance[np.ix_(kept, kept)]
    penalty = ridge * np.trace(block) / 2 * np.eye(2)
    inverse = np.linalg.inv(block + penalty)
    left = penalty @ inverse  # of which two iterations bring back the first two powers
    expected = covariance[:, kept] @ inverse @ (np.eye(2) + left + left @ left)
    dropped = [j for j in range(12) if j not in kept]
    assert mix[dropped].numpy() == pytest.approx(expected[dropped], rel=1e-10)


def test_refitted_consumers_receive_the_same_where_features_are_redundant():
    features, weight = layer(rank=3)
    kept = span_order(features, weight, 0.0).kept
    mix, shift = refit(features, kept)
    bias = torch.arange(4.0, dtype=torch.float64)
    before = features @ weight.T + bias
    after = features[:, list(kept)] @ (weight @ mix).T + bias + weight @ shift
    # The ridge costs about its own size times the spread of the eigenvalues.
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-10, atol=1e-10)


def test_refit_keeps_means_with_nothing_or_only_constants_kept():
    features, _ = layer()
    mix, shift = refit(features, [])
    assert mix.shape == (12, 0)
    torch.testing.assert_close(shift, features.mean(0))
    features[:, 3] = 4.0
    mix, shift = refit(features, [3])
    torch.testing.assert_close(features[:, [3]] @ mix.T + shift, features.mean(0).expand_as(features))


def test_nothing_given_is_changed():
    features, weight = layer()
    kept_features, kept_weight = features.clone(), weight.clone()
    refit(features, span_order(features, weight, 0.1).kept)
    assert torch.equal(features, kept_features)
    assert torch.equal(weight, kept_weight)


def test_refusals():
    features, weight = layer()
    spoiled = features.clone()
    spoiled[0, 0] = torch.nan
    for tolerance in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="`tolerance`"):
            span_order(features, weight, tolerance)
    with pytest.raises(InputError, match="`consumer_weight` has shape"):
        span_order(features, weight[:, :3], 0.1)
    with pytest.raises(InputError, match="`consumer_weight` holds NaN"):
        span_order(features, weight * torch.inf, 0.1)
    for wrong, message in ((spoiled, "NaN"), (features[0], "expected a floating"), (features[:0], "no samples")):
        with pytest.raises(InputError, match=message):
            span_order(wrong, weight, 0.1)
        with pytest.raises(InputError, match=message):
            refit(wrong, [0])
    for kept in ([0, 0], [12], [-1]):
        with pytest.raises(InputError, match="`kept`"):
            refit(features, kept)
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="`ridge`"):
            refit(features, [0], ridge)


def two_reads(samples=300, width=10):
    """Features that two readers read differently, and their weights."""
    generator = torch.Generator().manual_seed(3)
    pre = torch.randn(samples, width, dtype=torch.float64, generator=generator)
    pre[:, 5:] = pre[:, :5] * torch.linspace(0.5, 1.5, 5)  # copies of five neurons
    weights = [torch.randn(rows, width, dtype=torch.float64, generator=generator) for rows in (3, 4)]
    return [pre, pre.clamp_min(0.0)], weights


def test_of_several_reads_one_choice_carries_all():
    features, weights = two_reads()
    order = span_order(features, weights, 1e-6)
    assert len(order.kept) == 5
    assert sorted(neuron % 5 for neuron in order.kept) == [0, 1, 2, 3, 4]
    for values, weight in zip(features, weights, strict=True):
        assert missing(values, weight, list(order.kept)) < 1e-6
    # the fraction is the root mean square of what is missing of each
    half = span_order(features, weights, 0.0, most=3)
    each = [missing(values, weight, list(half.kept)) for values, weight in zip(features, weights, strict=True)]
    assert float(half.residual[-1]) == pytest.approx(math.sqrt(sum(one**2 for one in each) / 2), rel=1e-6)


def test_one_read_given_as_a_list_is_the_same():
    features, weight = layer()
    single, listed = span_order(features, weight, 0.1), span_order([features], [weight], 0.1)
    assert single.kept == listed.kept
    assert torch.equal(single.residual, listed.residual)


def test_a_read_in_which_nothing_varies_does_not_count():
    features, weights = two_reads()
    still = [features[0], torch.ones_like(features[1])]
    assert span_order(still, weights, 0.01).kept == span_order(features[0], weights[0], 0.01).kept


def test_reads_that_do_not_fit_each_other_are_refused():
    features, weights = two_reads()
    with pytest.raises(InputError, match="every read needs one of each"):
        span_order(features, weights[:1], 0.1)
    with pytest.raises(InputError, match="they must be the same"):
        span_order([features[0], features[1][:, :4]], [weights[0], weights[1][:, :4]], 0.1)


def test_refit_towards_a_target_is_least_squares_and_nothing_new_where_nothing_has_changed():
    features, _ = layer()
    kept = [1, 2, 7]
    mix, shift = refit(features, kept)
    same_mix, same_shift = refit(features, kept, target=features)
    assert torch.equal(mix, same_mix)
    assert torch.equal(shift, same_shift)
    target = features + 0.3 * features.roll(1, dims=1) + 2.0
    mix, shift = refit(features, kept, ridge=1e-12, target=target)
    basis = torch.cat([features[:, kept], torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    expected = torch.linalg.lstsq(basis, target).solution
    dropped = [neuron for neuron in range(features.shape[1]) if neuron not in kept]
    torch.testing.assert_close(mix[dropped], expected[:-1].T[dropped], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(mix[kept], expected[:-1].T[kept], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(shift, expected[-1], rtol=1e-6, atol=1e-8)
    with pytest.raises(InputError, match="`target` has shape"):
        refit(features, kept, target=target[:5])


@pytest.mark.parametrize("samples", [13, 20, 40])
@pytest.mark.parametrize("scale", [1.0, -0.3, 50.0])
def test_copies_stay_copies_however_few_the_samples(samples, scale):
    """Twelve kept neurons, and a copy of each in another size: fewer than four samples for each."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.randn(samples, 12, dtype=torch.float64, generator=generator)
    mix, shift = refit(torch.cat([kept, scale * kept + 3], dim=1), list(range(12)))
    expected = torch.cat([torch.eye(12).double(), scale * torch.eye(12).double()])
    torch.testing.assert_close(mix, expected, rtol=0, atol=1e-9 * max(1.0, abs(scale)))
    torch.testing.assert_close(shift, torch.cat([torch.zeros(12), torch.full((12,), 3.0)]).double(), rtol=0, atol=1e-7)
