"""Laws of linear CKA: what 000, Prop. A.6 says, and what it does not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_embed.statistics import linear_cka
from tests.laws.networks import normal, seeds, with_constant
from tests.tolerances import tolerance

sizes = st.integers(1, 5)


def orthogonal(generator, size):
    return torch.linalg.qr(normal(generator, size, size)).Q


@settings(max_examples=30)
@given(sizes, sizes, seeds, st.floats(0.01, 100))
def test_it_is_one_for_scaled_partial_isometries(neurons, more, seed, scale):
    """Y = √α X Q + b, where Q keeps the length of every row of the centred X."""
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, 20, neurons)
    isometry = orthogonal(generator, neurons + more)[:neurons]
    y = scale * x @ isometry + normal(generator, neurons + more)
    assert_close(linear_cka(x, y), torch.tensor(1.0, dtype=x.dtype), **tolerance(x.dtype))


@settings(max_examples=30)
@given(st.integers(2, 5), sizes, seeds)
def test_a_generic_affine_map_gives_less_than_one(neurons, others, seed):
    """So the converse of 000, Prop. A.6 fails: a linearized layer need not have a CKA of 1."""
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, 20, neurons)
    y = x @ normal(generator, neurons, others) + normal(generator, others)
    found = linear_cka(x, y)
    assert 0 <= found < 1 - 1e-6


@settings(max_examples=30)
@given(sizes, sizes, seeds)
def test_if_it_is_one_the_one_is_an_affine_function_of_the_other(neurons, more, seed):
    """000, Prop. A.6: equality in Cauchy-Schwarz fixes Y'Y'ᵀ = α X'X'ᵀ, so every Y' = √α X'Q of that kind is tried."""
    generator = torch.Generator().manual_seed(seed)
    x = normal(generator, 20, neurons)
    centred = x - x.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    y = 3 * (u * s) @ orthogonal(generator, neurons + more)[:neurons]  # from the Gram matrix alone
    assert_close(y @ y.T, 9 * centred @ centred.T, **tolerance(x.dtype, 100.0))
    assert_close(linear_cka(x, y), torch.tensor(1.0, dtype=x.dtype), **tolerance(x.dtype))
    solution = torch.linalg.lstsq(with_constant(x), y).solution
    assert_close(with_constant(x) @ solution, y, **tolerance(x.dtype, 100.0))


@settings(max_examples=30)
@given(sizes, sizes, seeds)
def test_unrelated_representations_are_not_similar(neurons, others, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = normal(generator, 20, neurons), normal(generator, 20, others)
    centred = x - x.mean(0)
    y = y - centred @ torch.linalg.lstsq(centred, y).solution  # no part of y is linear in x
    assert_close(linear_cka(x, y), torch.tensor(0.0, dtype=x.dtype), **tolerance(x.dtype))
