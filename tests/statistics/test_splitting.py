"""Least eigenvalues of splitting matrices: written down and by products."""

import pytest
import torch

from lightning_embed.errors import InputError
from lightning_embed.statistics import splitting, splitting_eigenvalues
from tests.tolerances import tolerance


def given(rows, fan_in, neurons, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, size, dtype=torch.float64, generator=generator) for size in (fan_in, neurons))


def test_the_matrix_written_down():
    x, m = given(30, 4, 3)
    values, directions = splitting_eigenvalues(x, m)
    for number in range(3):
        matrix = sum(m[row, number] * torch.outer(x[row], x[row]) for row in range(30))
        torch.testing.assert_close(values[number], torch.linalg.eigvalsh(matrix)[0])
        torch.testing.assert_close(matrix @ directions[number], values[number] * directions[number])


@pytest.mark.parametrize("rows", [20, 80])
def test_products_give_what_the_matrix_gives(monkeypatch, rows):
    x, m = given(rows, 40, 5)
    m[:, 4] = 0.0
    dense = splitting_eigenvalues(x, m)
    monkeypatch.setattr(splitting, "DENSE", 10)
    by_products = splitting_eigenvalues(x, m)
    torch.testing.assert_close(by_products[0], dense[0], **tolerance(x.dtype, float(dense[0].abs().max())))
    alike = (by_products[1] * dense[1]).sum(1).abs()[:4]
    torch.testing.assert_close(alike, torch.ones(4, dtype=torch.float64))


def test_where_nothing_bends_down_the_least_is_zero_or_above(monkeypatch):
    x, m = given(20, 40, 2)
    monkeypatch.setattr(splitting, "DENSE", 10)
    values, _ = splitting_eigenvalues(x, m.abs())
    assert values.min() > -1e-9


def test_what_is_refused():
    x, m = given(5, 3, 2)
    for wrong in ((x, m[:4]), (x[0], m), (x[:0], m[:0])):
        with pytest.raises(InputError, match="do not fit"):
            splitting_eigenvalues(*wrong)
    with pytest.raises(InputError, match="NaN or infinite"):
        splitting_eigenvalues(x, m / 0)
