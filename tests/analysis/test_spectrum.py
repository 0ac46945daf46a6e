"""Eigenvalues and their counts against numpy and matrices of known spectrum."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.analysis import degeneracy, inertia, spectrum
from lightning_embed.errors import InputError


def symmetric(values, seed):
    """A matrix of these eigenvalues in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)).Q
    matrix = (q * torch.tensor(values, dtype=torch.float64)) @ q.T
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("rotations", [0, 1, 5])
def test_eigenvalues_are_those_of_numpy(rotations):
    matrix = symmetric([-3.0, -1e-3, 0.0, 2.0, 1e3], seed=1)
    np.testing.assert_allclose(spectrum(matrix, rotations), np.linalg.eigvalsh(matrix), atol=1e-11)
    assert torch.equal(spectrum(matrix, rotations, seed=3), spectrum(matrix, rotations, seed=3))


def test_rotations_follow_the_seed():
    matrix = symmetric([-3.0, 0.1, 1e3], seed=1)
    assert not torch.equal(spectrum(matrix, 2, seed=0), spectrum(matrix, 2, seed=1))


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.floats(-6, 6), st.integers(0, 2**31 - 1), st.data())
def test_counts_of_a_known_spectrum(positive, zero, negative, scale, seed, data):
    """Non-zero magnitudes over five decades, of any common scale; zeros come with the rounding of the whole."""
    if positive + zero + negative == 0:
        zero = 1
    decades = st.floats(-5, 0).map(lambda power: 10 ** (power + scale))
    values = [data.draw(decades) for _ in range(positive)] + [-data.draw(decades) for _ in range(negative)]
    found = inertia(spectrum(symmetric([*values, *[0.0] * zero], seed)))
    assert found.counts == (positive, zero, negative)
    assert degeneracy(spectrum(symmetric([*values, *[0.0] * zero], seed))) == zero
    if values:
        assert 0 < found.threshold < min(map(abs, values))
        assert found.gap > 1e6


def test_the_paper_draws_its_line_by_hand():
    values = torch.tensor([-2.0, -1e-5, 3e-6, 1e-4, 1.0])
    assert inertia(values, threshold=1e-5).counts == (2, 2, 1)
    assert inertia(values, threshold=1e-7).counts == (3, 0, 2)
    assert inertia(values, threshold=5.0).counts == (0, 5, 0)
    assert inertia(values, threshold=5.0).gap == math.inf
    assert inertia(values, threshold=1e-5).gap == pytest.approx(10)


def test_a_spectrum_that_fades_out_is_not_counted():
    fading = torch.tensor([10.0**-power for power in range(18)])
    with pytest.raises(InputError, match=r"no eigenvalues are evidently zero.*find_critical_point"):
        inertia(fading)
    assert inertia(fading, threshold=1e-9).zero == 9


def test_a_wide_gap_far_above_rounding_is_not_where_zero_begins():
    eigenvalues = torch.tensor([2e-8, 1.0, 2.0], dtype=torch.float64)
    assert inertia(eigenvalues).counts == (2, 1, 0)  # below √ε of the largest
    assert inertia(2 * eigenvalues[0] + eigenvalues).counts == (3, 0, 0)


def test_what_is_no_spectrum_is_refused():
    with pytest.raises(InputError, match="square"):
        spectrum(torch.zeros(2, 3))
    with pytest.raises(InputError, match="NaN"):
        spectrum(torch.tensor([[torch.nan]]))
    with pytest.raises(InputError, match="at least 1"):
        inertia(torch.zeros(0))
