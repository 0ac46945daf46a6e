"""Splitting curvature: how the loss bends when a neuron is split and its copies move apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_embed.errors import InputError

DENSE = 300  # inputs up to which the matrices of all neurons are written down


def splitting_eigenvalues(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Least eigenvalue of the splitting matrix of every neuron, and its eigenvector.

    $S_j = \sum_i m_{ij}\, \tilde x_i \tilde x_i^\top$ with $m_{ij} = \frac1n\,(\partial\ell_i/\partial h_{ij})\,
    \sigma''(z_{ij})$, where z are a layer's outputs, h = σ(z) and $\partial\ell/\partial h_j = \partial\ell/\partial f
    \cdot a_j$ (splitting steepest descent, arXiv 1910.02366, eq. 5; the block α(1-α) G of a split in 001, Thm. 6.2, is
    made of it). Up to `DENSE` inputs all matrices are written down; above, Lanczos iterations multiply by them.

    Args:
        inputs: x̃, the layer's inputs with a one as the last entry where it has a bias, shape (rows, fan_in).
        weight: m, shape (rows, neurons).

    Returns:
        Least eigenvalues, shape (neurons,), and unit eigenvectors, shape (neurons, fan_in); float64.

    Raises:
        InputError: the shapes do not fit, there are no rows, or values are not finite.

    >>> x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    >>> splitting_eigenvalues(x, torch.tensor([[1.0], [-3.0]]))[0].round(decimals=6).tolist()
    [-6.0]
    """
    if inputs.dim() != 2 or weight.dim() != 2 or len(inputs) != len(weight) or len(inputs) == 0:
        raise InputError(
            f"`inputs` {tuple(inputs.shape)} and `weight` {tuple(weight.shape)} do not fit; expected (rows, fan_in) "
            "and (rows, neurons), with at least one row."
        )
    x, m = inputs.detach().double(), weight.detach().double()
    if not (torch.isfinite(x).all() and torch.isfinite(m).all()):
        raise InputError(
            "`inputs` or `weight` holds NaN or infinite values; a network that has diverged bends nowhere."
        )
    pairs = [_least_dense(x, column) if x.shape[1] <= DENSE else _least_by_products(x, column) for column in m.T]
    if not pairs:
        return x.new_empty(0), x.new_empty(0, x.shape[1])
    values, vectors = zip(*pairs, strict=True)
    return torch.stack(values), torch.stack(vectors)


def _least_dense(x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(x.T @ (m[:, None] * x))
    return values[0], vectors[:, 0]


def _least_by_products(x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    def times(vector: Any) -> Any:
        given = torch.as_tensor(vector, dtype=torch.float64).flatten().to(x.device)
        return (x.T @ (m * (x @ given))).cpu().numpy()

    size = x.shape[1]
    if not m.any():
        return x.new_zeros(()), torch.eye(size, dtype=x.dtype, device=x.device)[0]
    operator = LinearOperator((size, size), matvec=times, dtype="float64")
    start = (x.T @ m).cpu().numpy() + 1e-3
    values, vectors = eigsh(operator, k=1, which="SA", v0=start)
    return torch.tensor(values[0]).to(x), torch.from_numpy(vectors[:, 0].copy()).to(x)
