"""Eigenvalues of a Hessian, and how many of them are positive, zero and negative."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lightning_embed.errors import InputError

CLEAR_GAP = 100.0  # the least ratio between what counts as non-zero and what counts as zero


def spectrum(matrix: Tensor, rotations: int = 0, seed: int = 0) -> Tensor:
    r"""Eigenvalues of a symmetric matrix.

    With rotations, the eigenvalues of $Q H Q^\top$ averaged over so many random orthogonal Q (000, App. C (2), which
    takes 100). In float64 one decomposition is as good; the average is the paper's.

    Args:
        matrix: symmetric, shape (size, size); its lower triangle is read.
        rotations: how many random orthogonal Q to average over; none by default.
        seed: of the Q.

    Returns:
        The eigenvalues in increasing order, float64, shape (size,).

    Raises:
        InputError: it is no square matrix, or holds NaN or infinite values.

    >>> spectrum(torch.tensor([[0.0, 2.0], [2.0, 0.0]])).tolist()
    [-2.0, 2.0]
    """
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"matrix must be square, not of shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise InputError("matrix holds NaN or infinite values; a network that has diverged has no spectrum")
    given = matrix.double()
    if rotations == 0:
        values: Tensor = torch.linalg.eigvalsh(given)
        return values
    generator = torch.Generator().manual_seed(seed)
    total = given.new_zeros(len(given))
    for _ in range(rotations):
        normal = torch.randn(given.shape, dtype=torch.float64, generator=generator).to(given.device)
        q = torch.linalg.qr(normal)[0]
        total += torch.linalg.eigvalsh(q @ given @ q.T)
    return total / rotations


@dataclass(frozen=True)
class Inertia:
    """The numbers of positive, zero and negative eigenvalues, and what tells zero from the rest.

    Attributes:
        positive: how many are positive.
        zero: how many are zero: the degree of degeneracy (004, Def. 3).
        negative: how many are negative.
        threshold: the largest magnitude that counts as zero.
        gap: smallest magnitude above it over largest below (at least rounding's); infinite if none is above it.
    """

    positive: int
    zero: int
    negative: int
    threshold: float
    gap: float

    @property
    def counts(self) -> tuple[int, int, int]:
        """(positive, zero, negative)."""
        return self.positive, self.zero, self.negative


def inertia(eigenvalues: Tensor, threshold: float | None = None) -> Inertia:
    r"""Count the positive, zero and negative eigenvalues.

    Zero is what lies below an evident gap of the magnitudes (000, App. C (3)). It is the widest one, as a ratio, whose
    lower side is at most $\sqrt{\varepsilon}$ of the largest magnitude, where magnitudes below $n\varepsilon$ of the
    largest are rounding and count as that; ε is float64's.

    Args:
        eigenvalues: shape (size,), in any order (`spectrum`).
        threshold: count as zero what is at most so large, gap or not; the dashed lines of 000, Fig. 5 and 004, Fig. 3.

    Returns:
        The counts, with the threshold and the gap that it stands in.

    Raises:
        InputError: there is no eigenvalue, or, without a threshold, no gap of ratio `CLEAR_GAP`.

    >>> inertia(torch.tensor([-1.0, 1e-16, 2.0, 3.0])).counts
    (2, 1, 1)
    """
    if eigenvalues.dim() != 1 or len(eigenvalues) == 0:
        raise InputError(f"eigenvalues must have shape (size,) with size at least 1, not {tuple(eigenvalues.shape)}")
    values = eigenvalues.double()
    magnitudes = values.abs().sort().values.tolist()
    rounding = len(magnitudes) * torch.finfo(torch.float64).eps * magnitudes[-1]
    zeros = _zeros(magnitudes, rounding) if threshold is None else sum(size <= threshold for size in magnitudes)
    largest_zero = max([rounding, *magnitudes[:zeros]])
    gap = magnitudes[zeros] / largest_zero if zeros < len(magnitudes) else math.inf
    if threshold is None:
        if gap < CLEAR_GAP:
            near = ", ".join(f"{size:.1e}" for size in magnitudes[max(0, zeros - 2) : zeros + 3])
            raise InputError(
                f"no eigenvalues are evidently zero: the widest gap has ratio {gap:.1f}, among {near} (largest "
                f"{magnitudes[-1]:.1e}). Polish the point further (find_critical_point), or set threshold="
            )
        threshold = math.sqrt(largest_zero * magnitudes[zeros]) if zeros < len(magnitudes) else largest_zero
    positive, negative = int((values > threshold).sum()), int((values < -threshold).sum())
    return Inertia(positive, len(magnitudes) - positive - negative, negative, threshold, gap)


def _zeros(magnitudes: list[float], rounding: float) -> int:
    """How many of the increasing magnitudes lie below the widest gap."""
    if magnitudes[-1] == 0:
        return len(magnitudes)
    ceiling = math.sqrt(torch.finfo(torch.float64).eps) * magnitudes[-1]
    raised = [rounding, *(max(size, rounding) for size in magnitudes)]
    ratios = [above / below for below, above in pairwise(raised) if below <= ceiling]
    return max(range(len(ratios)), key=ratios.__getitem__)


def degeneracy(eigenvalues: Tensor, threshold: float | None = None) -> int:
    """Number of zero eigenvalues, the degree of degeneracy of a critical point (004, Def. 3); see `inertia`.

    Args:
        eigenvalues: shape (size,).
        threshold: count as zero what is at most so large, gap or not.

    Returns:
        How many are zero.

    Raises:
        InputError: there is no eigenvalue, or, without a threshold, no evident gap.

    >>> degeneracy(torch.tensor([0.0, 0.0, 5.0]))
    2
    """
    return inertia(eigenvalues, threshold).zero
