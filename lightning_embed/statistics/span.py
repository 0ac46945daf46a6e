"""Span: the neurons whose features, with the constant, carry all that the consumers read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_embed.errors import InputError


@dataclass(frozen=True, eq=False)
class Span:
    """Neurons in the order in which they were kept.

    Attributes:
        kept: neuron numbers in pivot order; any beginning of it is the choice for a smaller width.
        residual: residual fraction after each pivot, float64, shape (len(kept),), falling.
    """

    kept: tuple[int, ...]
    residual: Tensor


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise InputError(
            f"`features` is {features.dtype} of shape {tuple(features.shape)}, "
            "expected a floating (samples, neurons)."
        )
    if features.shape[0] == 0:
        raise InputError("`features` holds no samples; give calibration data.")
    if not torch.isfinite(features).all():
        raise InputError("`features` holds NaN or infinite values; find where the model makes them first.")


def span_order(features: Tensor, consumer_weight: Tensor, tolerance: float) -> Span:
    r"""Order the neurons by what each adds to the span of the kept features and the constant.

    A neuron is redundant when its feature lies in that span (001, Def. 4.2 (ii)). Greedy pivoted Cholesky of
    $G_{ij} = \|a_i\| \|a_j\| \, \mathrm{cov}(h_i, h_j)$, $h$ the features and $a_j$ the consumers' weights
    of neuron j: each step keeps the neuron whose residual after projection on the kept ones, times
    $\|a_j\|$, is largest, and stops once $\sqrt{\mathrm{tr}\,R / \mathrm{tr}\,G} \le$ tolerance, R the
    residual. With the triangle inequality $\sqrt{\text{neurons} \cdot \mathrm{tr}\,R}$ bounds the change of
    what the consumers receive (root mean square) after a refit on the same data.

    Args:
        features: post, shape (samples, neurons).
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons).
        tolerance: residual fraction at which to stop, in [0, 1]; 0 stops where the features' rank ends.

    Returns:
        The kept neurons and the residual fractions; empty if no feature varies or none is read.

    Raises:
        InputError: the shapes do not fit, the tolerance is outside [0, 1], or values are not finite.

    >>> h = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0], [2.0, 4.0, 1.0]])
    >>> span_order(h, torch.ones(1, 3), 0.01).kept  # the first is half the second, the third constant
    (1,)
    """
    _check_features(features)
    if not 0.0 <= tolerance <= 1.0:
        raise InputError(f"`tolerance` is {tolerance}; a residual fraction between 0 and 1 is needed.")
    if consumer_weight.ndim != 2 or consumer_weight.shape[1] != features.shape[1]:
        raise InputError(
            f"`consumer_weight` has shape {tuple(consumer_weight.shape)}, "
            f"expected (outputs, {features.shape[1]}) as `features` has {features.shape[1]} neurons."
        )
    if not torch.isfinite(consumer_weight).all():
        raise InputError("`consumer_weight` holds NaN or infinite values; restore a finite model first.")
    norms = torch.linalg.vector_norm(consumer_weight.detach().double(), dim=0)
    scaled = features.detach().double()
    scaled = (scaled - scaled.mean(0)) * norms
    gram = scaled.T @ scaled / scaled.shape[0]
    return _pivoted_cholesky(gram, tolerance)


def _pivoted_cholesky(gram: Tensor, tolerance: float) -> Span:
    width = gram.shape[0]
    remaining = gram.diagonal().clone()
    total = remaining.sum()
    # Below this a residual is made of rounding errors alone.
    floor = width * torch.finfo(gram.dtype).eps * remaining.amax()
    # Row k holds the k-th column of the Cholesky factor, so that its rows are read contiguously.
    factor = torch.zeros_like(gram)
    kept: list[int] = []
    residual: list[Tensor] = []
    while len(kept) < width:
        pivot = int(remaining.argmax())
        if remaining[pivot] <= floor or (remaining.sum() / total).sqrt() <= tolerance:
            break
        k = len(kept)
        column = gram[pivot] - factor[:k, pivot] @ factor[:k]
        column = column / column[pivot].sqrt()
        factor[k] = column
        remaining = (remaining - column.square()).clamp_min(0.0)
        remaining[pivot] = 0.0
        kept.append(pivot)
        residual.append((remaining.sum() / total).sqrt())
    return Span(tuple(kept), torch.stack(residual) if residual else gram.new_zeros(0))


def width_span(features: Tensor, consumer_weight: Tensor, tolerance: float) -> int:
    """Number of neurons that the span criterion would keep.

    Args:
        features: post, shape (samples, neurons).
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons).
        tolerance: residual fraction at which to stop, in [0, 1].

    Returns:
        The length of `span_order`'s answer.

    Raises:
        InputError: as `span_order`.

    >>> width_span(torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.ones(1, 2), 0.01)
    1
    """
    return len(span_order(features, consumer_weight, tolerance).kept)


def refit(features: Tensor, kept: Sequence[int], ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    r"""Express all features by the kept ones and the constant.

    $h \approx M h_{kept} + s$ with $M = C_{all,kept} (C_{kept,kept} + r \bar\lambda I)^{-1}$, C the
    covariance and $\bar\lambda$ the mean eigenvalue of $C_{kept,kept}$; $s = \bar h - M \bar h_{kept}$. For
    kept neurons the rows are those of the identity. With consumers $W h + b$, the weights $W M$ and the bias
    $b + W s$ are their ridge refit to the whole original contribution, dropped neurons included (the
    inverse of a general compatible embedding, 001, Def. 5.2). Preserved: the mean over the data of what the
    consumers receive, and all of it where the dropped features lie in the span.

    Args:
        features: post, shape (samples, neurons).
        kept: numbers of the kept neurons, in the order that the columns of M shall have.
        ridge: r, relative to the mean eigenvalue, above 0.

    Returns:
        M, shape (neurons, len(kept)), and s, shape (neurons,), both float64.

    Raises:
        InputError: values are not finite, a kept number is unknown or repeated, or `ridge` is not positive.

    >>> h = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    >>> mix, shift = refit(h, [1])
    >>> [round(value, 4) for value in (mix[0, 0].item(), shift[0].item())]  # h0 = h1 / 2 - 1 / 2
    [0.5, -0.5]
    """
    _check_features(features)
    width = features.shape[1]
    if len(set(kept)) != len(kept) or not all(0 <= neuron < width for neuron in kept):
        raise InputError(f"`kept` is {list(kept)}; give different neuron numbers from 0 to {width - 1}.")
    if not ridge > 0:
        raise InputError(f"`ridge` is {ridge}; a positive number is needed, such as 1e-6.")
    h = features.detach().double()
    mean = h.mean(0)
    index = torch.tensor(list(kept), dtype=torch.long, device=h.device)
    centered = h - mean
    basis = centered[:, index]
    covariance = basis.T @ basis / h.shape[0]
    scale = covariance.diagonal().mean() if len(kept) else covariance.new_zeros(())
    identity = torch.eye(len(kept), dtype=torch.float64, device=h.device)
    if scale > 0:
        cross = basis.T @ centered / h.shape[0]
        mix = torch.linalg.solve(covariance + ridge * scale * identity, cross).T.contiguous()
    else:
        mix = h.new_zeros(width, len(kept))  # only the constant is left to fit with
    mix[index] = identity
    shift = mean - mix @ mean[index]
    shift[index] = 0.0
    return mix, shift
