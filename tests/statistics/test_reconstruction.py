"""Reconstruction: dense weighted least squares as reference, neuron after neuron."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.errors import InputError
from lightning_embed.statistics import reconstruct
from tests.tolerances import tolerance


def rows(samples=60, fan_in=5, fan_out=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, error, weight = (
        torch.randn(samples, columns, dtype=torch.float64, generator=generator)
        for columns in (fan_in, fan_out, fan_out)
    )
    return inputs + 1, error, weight.square()


def dense(inputs, error, weight, *, intercept, ridge):
    """The minimum of the documented sum, as one least-squares problem per output neuron."""
    x = inputs.numpy()
    mean = x.mean(0) * intercept
    penalty = ridge * ((x - mean) ** 2).mean()
    changes, biases = [], []
    for e, w in zip(error.numpy().T, weight.numpy().T, strict=True):
        w = w / w.sum() if w.sum() else np.full(len(w), 1 / len(w))
        root = np.sqrt(w)[:, None]
        design = np.column_stack([x - mean, np.full(len(x), float(intercept))])
        stacked = np.vstack([root * design, np.sqrt(penalty) * np.eye(len(mean), len(mean) + 1)])
        target = np.concatenate([root[:, 0] * e, np.zeros(len(mean))])
        solution = np.linalg.lstsq(stacked, target, rcond=None)[0]
        changes.append(solution[:-1])
        biases.append(solution[-1] - solution[:-1] @ mean)
    return torch.tensor(np.array(changes)), torch.tensor(np.array(biases))


@given(seed=st.integers(0, 200), intercept=st.booleans(), ridge=st.sampled_from([1e-6, 1e-2, 10.0]))
def test_the_minimum_of_the_weighted_sum_of_squares(seed, intercept, ridge):
    given_rows = rows(seed=seed)
    found = reconstruct(*given_rows, intercept=intercept, ridge=ridge, iterations=60)
    torch.testing.assert_close(found, dense(*given_rows, intercept=intercept, ridge=ridge), rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 200), intercept=st.booleans(), scale=st.sampled_from([0.0, 1.0, 7.0]))
def test_equal_weights_need_one_iteration_and_weights_of_zero_count_as_equal(seed, intercept, scale):
    inputs, error, _ = rows(seed=seed)
    weight = torch.full_like(error, scale)
    found = reconstruct(inputs, error, weight, intercept=intercept, ridge=1e-2, iterations=1)
    reference = dense(inputs, error, torch.ones_like(error), intercept=intercept, ridge=1e-2)
    torch.testing.assert_close(found, reference, **tolerance(torch.float64, 10))


def loss(inputs, error, weight, change, bias):
    return (weight * (error - inputs @ change.T - bias).square()).sum(dim=0)


@given(seed=st.integers(0, 200))
def test_the_few_iterations_of_the_default_never_make_the_weighted_error_larger(seed):
    inputs, error, weight = rows(samples=20, fan_in=12, seed=seed)
    weight = weight**4  # of very different sizes
    before = loss(inputs, error, weight, torch.zeros(3, 12, dtype=torch.float64), torch.zeros(3))
    assert bool((loss(inputs, error, weight, *reconstruct(inputs, error, weight)) <= before * (1 + 1e-9)).all())


def test_units_of_weights_and_errors():
    inputs, error, weight = rows()
    change, bias = reconstruct(inputs, error, weight)
    scaled = reconstruct(inputs, 1e6 * error, weight * torch.tensor([1e-20, 1.0, 1e20]))
    torch.testing.assert_close(scaled, (1e6 * change, 1e6 * bias), **tolerance(torch.float64, 1e6))
    moved = reconstruct(inputs * 1e-3 + 50, error, weight)
    torch.testing.assert_close(moved[0], 1e3 * change, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved[1] + moved[0] @ torch.full((5,), 50.0).double(), bias, rtol=1e-6, atol=1e-6)


def test_constant_inputs_leave_the_bias_alone_to_correct():
    _, error, weight = rows()
    ones = torch.ones(60, 5, dtype=torch.float64)
    change, bias = reconstruct(ones, error, weight)
    assert not change.any()
    torch.testing.assert_close(bias, (weight * error).sum(dim=0) / weight.sum(dim=0))
    zeros = reconstruct(0 * ones, error, weight, intercept=False)
    assert not zeros[0].any()
    assert not zeros[1].any()


def test_no_error_needs_no_change():
    inputs, error, weight = rows()
    for part in reconstruct(inputs, 0 * error, weight):
        assert not part.any()


def test_what_the_inputs_can_make_is_brought_back():
    inputs, _, weight = rows()
    wanted = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    change, bias = reconstruct(inputs, inputs @ wanted.T + 2, weight, ridge=1e-12, iterations=30)
    torch.testing.assert_close(change, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias, torch.full((3,), 2.0).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, e, w: (x[:9], e, w), "of the same samples"),
        (lambda x, e, w: (x[:0], e[:0], w[:0]), "at least one"),
        (lambda x, e, w: (x[:, 0], e, w), "samples, fan_in"),
        (lambda x, e, w: (x, e, w[:, :1]), "`weight` has shape"),
        (lambda x, e, w: (x * torch.nan, e, w), "`inputs` holds NaN"),
        (lambda x, e, w: (x, e / 0, w), "`error` holds NaN"),
        (lambda x, e, w: (x, e, -w), "negative"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        reconstruct(*change(*rows()))
    with pytest.raises(InputError, match="`ridge` is"):
        reconstruct(*rows(), ridge=0.0)
