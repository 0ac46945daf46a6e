"""Linear CKA against its definition by Gram matrices."""

import pytest
import torch
from torch.testing import assert_close

from lightning_embed.errors import InputError
from lightning_embed.statistics import linear_cka
from tests.oracles import cka_by_gram_matrices
from tests.tolerances import tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("neurons", [(1, 1), (3, 2), (2, 20)])
def test_the_definition_by_gram_matrices(neurons, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, width, generator=generator).to(dtype) for width in neurons)
    wanted = cka_by_gram_matrices(x.double(), y.double())
    assert_close(linear_cka(x, y), wanted, **tolerance(torch.float64))


def test_a_large_mean_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 50, 3, dtype=torch.float64, generator=generator)
    assert_close(linear_cka(x + 1e6, y), linear_cka(x, y), rtol=1e-8, atol=0)


@pytest.mark.parametrize("odd", [torch.full((3, 2), 0.1), torch.tensor([[1.0], [torch.nan], [0.0]]), torch.zeros(3, 0)])
def test_what_is_constant_or_not_finite_is_nan(odd):
    assert linear_cka(odd, torch.eye(3)).isnan()
    assert linear_cka(torch.eye(3), odd).isnan()


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int64)),
        (torch.zeros(0, 1), torch.zeros(0, 1)),
        (torch.zeros(3, 1), torch.zeros(4, 1)),
    ],
)
def test_what_are_no_representations_of_the_same_samples_is_refused(x, y):
    with pytest.raises(InputError, match="must be"):
        linear_cka(x, y)
