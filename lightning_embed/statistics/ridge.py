"""The strength of a ridge regression, chosen on the data where these are few."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PLENTY = 4  # samples per coefficient from which on the strength hardly matters


def few(samples: int, coefficients: int) -> bool:
    """Whether there are so few samples that the strength of the ridge matters.

    >>> few(100, 20), few(100, 30)
    (False, True)
    """
    return samples < PLENTY * coefficients


def leave_one_out(inputs: Tensor, targets: Tensor, strengths: Sequence[float] = STRENGTHS) -> float:
    r"""The strength with which a ridge regression foretells best what it has not seen.

    With $H = X (X^\top X / n + r \bar\lambda I)^{-1} X^\top / n$ the error for a sample that is left out is
    $(y_i - (H y)_i) / (1 - H_{ii} - 1 / n)$, without fitting again; $\bar\lambda$ is the mean of the diagonal of
    $X^\top X / n$.

    Args:
        inputs: X less its mean, shape (samples, coefficients).
        targets: y less its mean, shape (samples, outputs).
        strengths: the r to choose from, each above 0.

    Returns:
        That of the least mean square error, over samples and outputs.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x, noise = (torch.randn(30, size, generator=generator, dtype=torch.float64) for size in (10, 1))
    >>> x, noise = x - x.mean(0), noise - noise.mean(0)
    >>> leave_one_out(x, x.sum(1, keepdim=True)), leave_one_out(x, noise)
    (0.0001, 1.0)
    """
    samples = len(inputs)
    left, singular, _ = torch.linalg.svd(inputs.double(), full_matrices=False)
    power = singular.square() / samples
    scale = power.sum() / inputs.shape[1]
    parts = left.T @ targets.double()
    errors = []
    for strength in strengths:
        shrunk = (power / (power + strength * scale))[:, None]
        residual = targets - left @ (shrunk * parts)
        # a sample that determines its own value tells nothing of others
        leverage = (left.square() @ shrunk + 1 / samples).clamp_max(1 - 1e-6)
        errors.append(float((residual / (1 - leverage)).square().mean()))
    return strengths[errors.index(min(errors))]
