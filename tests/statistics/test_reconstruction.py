"""Reconstruction: dense weighted least squares as reference, neuron after neuron."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.errors import InputError
from lightning_embed.statistics import reconstruct
from lightning_embed.statistics.ridge import STRENGTHS
from tests.tolerances import tolerance


def rows(samples=60, fan_in=5, fan_out=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs, error = (
        torch.randn(samples, columns, dtype=torch.float64, generator=generator) for columns in (fan_in, fan_out)
    )
    return inputs + 1, error


def dense(inputs, error, *, intercept, ridge):
    """The minimum of the documented sum, as one least-squares problem."""
    x, e = inputs.numpy(), error.numpy()
    mean = x.mean(0) * intercept
    penalty = ridge * ((x - mean) ** 2).mean()
    design = np.column_stack([x - mean, np.full(len(x), float(intercept))]) / np.sqrt(len(x))
    stacked = np.vstack([design, np.sqrt(penalty) * np.eye(len(mean), len(mean) + 1)])
    target = np.vstack([e / np.sqrt(len(x)), np.zeros((len(mean), e.shape[1]))])
    solution = np.linalg.lstsq(stacked, target, rcond=None)[0]
    change = torch.tensor(solution[:-1].T)
    return change, torch.tensor(solution[-1]) - change @ torch.tensor(mean)


@given(seed=st.integers(0, 200), intercept=st.booleans(), ridge=st.sampled_from([1e-6, 1e-2, 10.0]))
def test_the_minimum_of_the_sum_of_squares(seed, intercept, ridge):
    found = reconstruct(*rows(seed=seed), intercept=intercept, ridge=ridge)
    torch.testing.assert_close(
        found, dense(*rows(seed=seed), intercept=intercept, ridge=ridge), **tolerance(torch.float64, 10)
    )


def test_units_of_inputs_and_errors():
    inputs, error = rows()
    change, bias = reconstruct(inputs, error)
    torch.testing.assert_close(
        reconstruct(inputs, 1e6 * error), (1e6 * change, 1e6 * bias), **tolerance(torch.float64, 1e6)
    )
    moved = reconstruct(inputs * 1e-3 + 50, error)
    torch.testing.assert_close(moved[0], 1e3 * change, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved[1] + moved[0] @ torch.full((5,), 50.0).double(), bias, rtol=1e-6, atol=1e-6)


def test_constant_inputs_leave_the_bias_alone_to_correct():
    _, error = rows()
    ones = torch.ones(60, 5, dtype=torch.float64)
    change, bias = reconstruct(ones, error)
    assert not change.any()
    torch.testing.assert_close(bias, error.mean(dim=0))
    for part in reconstruct(0 * ones, error, intercept=False):
        assert not part.any()


def test_no_error_needs_no_change():
    inputs, error = rows()
    for part in reconstruct(inputs, 0 * error):
        assert not part.any()


def test_what_the_inputs_can_make_is_brought_back():
    inputs, _ = rows()
    wanted = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    change, bias = reconstruct(inputs, inputs @ wanted.T + 2, ridge=1e-12)
    torch.testing.assert_close(change, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bias, torch.full((3,), 2.0).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_with_few_samples_the_strength_is_chosen_on_them(noise):
    """Against the best of all strengths, on data that the fit has not seen."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(2, 20, dtype=torch.float64, generator=generator)

    def sample(count):
        x = torch.randn(count, 20, dtype=torch.float64, generator=generator)
        return x, x @ truth.T + noise * torch.randn(count, 2, dtype=torch.float64, generator=generator)

    inputs, error = sample(26)
    unseen, wanted = sample(2000)

    def left(ridge):
        change, bias = reconstruct(inputs, error, ridge=ridge)
        return float((unseen @ change.T + bias - wanted).square().mean())

    best = min(left(ridge) for ridge in STRENGTHS)
    assert left(None) <= 1.3 * best


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, e: (x[:9], e), "of the same samples"),
        (lambda x, e: (x[:0], e[:0]), "at least one"),
        (lambda x, e: (x[:, 0], e), "samples, fan_in"),
        (lambda x, e: (x * torch.nan, e), "`inputs` holds NaN"),
        (lambda x, e: (x, e / 0), "`error` holds NaN"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(InputError, match=message):
        reconstruct(*change(*rows()))
    with pytest.raises(InputError, match="`ridge` is"):
        reconstruct(*rows(), ridge=0.0)
