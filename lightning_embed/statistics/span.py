"""Span: the neurons whose features, with the constant, carry all that the consumers read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_embed.errors import InputError

_TIE = 1e-6  # relative difference of gains that are equal but for rounding
WHOLE = 8192  # neurons whose covariance is held as a whole: half a gigabyte, growing quadratically
_UNITS = 4.0  # roundings, of a feature's own dtype, by which copies of one neuron were seen to differ


@dataclass(frozen=True, eq=False)
class Span:
    """Neurons in the order in which they were kept.

    Attributes:
        kept: neuron numbers in pivot order; any beginning of it is the choice for a smaller width.
        residual: share of what the consumers receive that is still missing after each pivot (root mean
            square, see `span_order`), float64, shape (len(kept),), falling.
    """

    kept: tuple[int, ...]
    residual: Tensor


def _check_features(features: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise InputError(
            f"`features` is {features.dtype} of shape {tuple(features.shape)}, expected a floating (samples, neurons)."
        )
    if features.shape[0] == 0:
        raise InputError("`features` holds no samples; give calibration data.")
    if not torch.isfinite(features).all():
        raise InputError("`features` holds NaN or infinite values; find where the model makes them first.")


def span_order(
    features: Tensor, consumer_weight: Tensor, tolerance: float, *, intercept: bool = True, most: int | None = None
) -> Span:
    r"""Order the neurons by how much of what the consumers receive each adds to the span.

    A neuron is redundant when its feature lies in the span of the kept features and the constant (001,
    Def. 4.2 (ii)), and so far as the consumers do not read what lies outside. Greedy pivoted Cholesky of
    $G = \mathrm{cov}(h)$, $h$ the features: with $R$ the covariance of what the kept features and the
    constant leave of all of them and $W$ the consumers' weights, the next neuron is
    $\arg\max_j \|W R_{:,j}\|^2 / R_{jj}$, the one that lowers $\mathrm{tr}\,W R W^\top$ most; it stops
    once $\sqrt{\mathrm{tr}\,W R W^\top / \mathrm{tr}\,W G W^\top} \le$ tolerance. That fraction is the
    relative change (root mean square, on these data) of what the consumers receive after `refit`.
    Taking the neuron with the largest $R_{jj} \|W_{:,j}\|^2$ instead needs more neurons for the same
    change: it counts what each neuron sends, not what they send together. Unread neurons are never kept.

    Args:
        features: post, shape (samples, neurons).
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons).
        tolerance: residual fraction at which to stop, in [0, 1]; 0 stops where rounding errors are left,
            from about 1e-5 on.
        intercept: whether the constant belongs to the span; if not, G is the second moment about 0. It does not
            where no bias can make up for it, as before a convolution that pads with zeros.
        most: number of kept neurons at which to stop too; None for no bound.

    Returns:
        The kept neurons and the residual fractions; empty if no feature varies or none is read. With few
        outputs the kept features carry the consumers' input, not every feature.

    Raises:
        InputError: the shapes do not fit, the tolerance is outside [0, 1], or values are not finite.

    >>> h = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0], [2.0, 4.0, 1.0]])
    >>> span_order(h, torch.ones(1, 3), 0.01).kept  # the first is half the second, the third constant
    (1,)
    """
    if not 0.0 <= tolerance <= 1.0:
        raise InputError(f"`tolerance` is {tolerance}; a residual fraction between 0 and 1 is needed.")
    return _greedy(weighted(features, consumer_weight, intercept=intercept), tolerance, most)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Features as their consumers read them, all float64: what is chosen does not depend on their units.

    Attributes:
        rows: the features less their mean, each times the norm of its weights, shape (samples, neurons).
        weight: the weights over that norm, shape (outputs, neurons).
        variance: of the rows, the diagonal of G, shape (neurons,).
        floor: a variance at or below may be rounding alone, shape (neurons,): that of the sums, or that of the
            features themselves, which two copies of a neuron need not share.
    """

    rows: Tensor
    weight: Tensor
    variance: Tensor
    floor: Tensor

    def gram(self, neurons: Tensor | slice = slice(None)) -> Tensor:
        """Rows of G, shape (chosen neurons, neurons)."""
        return self.rows[:, neurons].T @ self.rows / len(self.rows)

    def received(self) -> Tensor:
        """W G, without a G, shape (outputs, neurons)."""
        return self.weight @ self.rows.T @ self.rows / len(self.rows)

    def reading(self, gram: Tensor | None) -> tuple[Tensor, Tensor]:
        """A matrix whose square (its transpose times itself) is that of W G, and the trace of W G Wᵀ; G if at hand.

        It has as many rows as there are outputs or samples, whichever are fewer.
        """
        samples, width = self.rows.shape
        if samples < min(len(self.weight), width):
            sent = self.weight @ self.rows.T
            return torch.linalg.qr(sent, mode="r").R @ self.rows / samples, sent.square().sum() / samples
        received = self.weight @ gram if gram is not None else self.received()
        return received, (received * self.weight).sum()


def weighted(features: Tensor, consumer_weight: Tensor, *, intercept: bool) -> Weighted:
    """Check features and weights and bring them into common units; `intercept` as in `span_order`."""
    _check_features(features)
    if consumer_weight.ndim != 2 or consumer_weight.shape[1] != features.shape[1]:
        raise InputError(
            f"`consumer_weight` has shape {tuple(consumer_weight.shape)}, "
            f"expected (outputs, {features.shape[1]}) as `features` has {features.shape[1]} neurons."
        )
    if not torch.isfinite(consumer_weight).all():
        raise InputError("`consumer_weight` holds NaN or infinite values; restore a finite model first.")
    weight = consumer_weight.detach().double()
    norms = torch.linalg.vector_norm(weight, dim=0)
    rows = features.detach().double() * norms
    power = rows.square().mean(0)
    if intercept:
        rows -= rows.mean(0)
    variance = rows.square().mean(0)
    floor = torch.maximum(
        len(norms) * torch.finfo(rows.dtype).eps * variance.amax(),
        (_UNITS * torch.finfo(features.dtype).eps) ** 2 * power,
    )
    return Weighted(rows, weight / norms.where(norms > 0, 1.0), variance, floor)


def _greedy(given: Weighted, tolerance: float, most: int | None) -> Span:
    """Pivot on G of `span_order`, read by W.

    With l the new column of the Cholesky factor, R loses l lᵀ and Q = R Wᵀ W R loses l fᵀ + f lᵀ, where
    f = Q[:, pivot] / √R[pivot, pivot] - ‖W l‖² l / 2. Only the diagonals of R and Q and the rows l, f are
    kept up to date; a full R would be rewritten at every pivot. Where R or Q are rounding alone, their ratio may be
    anything. G and the first Q are computed row by row where they would be too large.
    """
    samples, width = given.rows.shape
    whole = width <= WHOLE
    gram = given.gram() if whole else None
    received, total = given.reading(gram)
    read = received.T @ received if whole else None
    gram_diagonal, read_diagonal = given.variance.clone(), received.square().sum(0)
    read_floor = width * torch.finfo(received.dtype).eps * read_diagonal.amax()
    bound = min(samples, width, width if most is None else most)  # of the rank
    factor, half = received.new_empty(bound, width), received.new_empty(bound, width)
    kept: list[int] = []
    residual: list[Tensor] = []
    left, fraction = total, 1.0
    while len(kept) < bound and total > 0 and fraction > tolerance:
        told = (gram_diagonal > given.floor) & (read_diagonal > read_floor)
        gain = torch.where(told, read_diagonal / gram_diagonal, 0.0)
        if gain.amax() <= 0:
            break
        # of equals the one with most variance left: its multiple stands for the others with smaller numbers
        pivot = int(torch.where(gain >= (1 - _TIE) * gain.amax(), gram_diagonal, 0.0).argmax())
        k, scale = len(kept), gram_diagonal[pivot].sqrt()
        # both rows at once: reading the factor is what costs
        known, known_half = torch.stack([factor[:k, pivot], half[:k, pivot]]) @ factor[:k]
        column = gram[pivot] if gram is not None else given.rows[:, pivot] @ given.rows / samples
        column = (column - known) / scale
        f = read[pivot] if read is not None else received[:, pivot] @ received
        f = (f - factor[:k, pivot] @ half[:k] - known_half) / scale - gain[pivot] / 2 * column
        factor[k], half[k] = column, f
        gram_diagonal = (gram_diagonal - column.square()).clamp_min(0.0)
        gram_diagonal[pivot] = 0.0
        read_diagonal = (read_diagonal - 2 * column * f).clamp_min(0.0)
        left = (left - gain[pivot]).clamp_min(0.0)
        fraction = float((left / total).sqrt())
        kept.append(pivot)
        residual.append((left / total).sqrt())
    return Span(tuple(kept), torch.stack(residual) if residual else received.new_zeros(0))


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


def refit(
    features: Tensor, kept: Sequence[int], ridge: float = 1e-6, *, intercept: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Express all features by the kept ones and the constant.

    $h \approx M h_{kept} + s$ with $M = C_{all,kept} (A^{-1} + A^{-1} (A - C_{kept,kept}) A^{-1})$, where
    $A = C_{kept,kept} + r \bar\lambda I$, C is the covariance and $\bar\lambda$ the mean eigenvalue of
    $C_{kept,kept}$; $s = \bar h - M \bar h_{kept}$. This is ridge regression iterated once: what the ridge takes
    from a direction of variance λ falls from $\rho = r \bar\lambda / (\lambda + r \bar\lambda)$ to $\rho^2$, so
    that copies stay copies beside features that are nearly dependent. For
    kept neurons the rows are those of the identity. With consumers $W h + b$, the weights $W M$ and the bias
    $b + W s$ are their ridge refit to the whole original contribution, dropped neurons included (the
    inverse of a general compatible embedding, 001, Def. 5.2). Preserved: the mean over the data of what the
    consumers receive, and all of it where the dropped features lie in the span.

    Args:
        features: post, shape (samples, neurons).
        kept: numbers of the kept neurons, in the order that the columns of M shall have.
        ridge: r, relative to the mean eigenvalue, above 0.
        intercept: whether the constant may be used; if not, C is the second moment about 0 and s = 0.

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
    mean = h.mean(0) if intercept else h.new_zeros(width)
    index = torch.tensor(list(kept), dtype=torch.long, device=h.device)
    centered = h - mean
    basis = centered[:, index]
    covariance = basis.T @ basis / h.shape[0]
    scale = covariance.diagonal().mean() if len(kept) else covariance.new_zeros(())
    identity = torch.eye(len(kept), dtype=torch.float64, device=h.device)
    if scale > 0:
        cross = basis.T @ centered / h.shape[0]
        factors = torch.linalg.lu_factor(covariance + ridge * scale * identity)
        once = torch.linalg.lu_solve(*factors, cross)
        mix = (once + torch.linalg.lu_solve(*factors, cross - covariance @ once)).T.contiguous()
    else:
        mix = h.new_zeros(width, len(kept))  # only the constant is left to fit with
    mix[index] = identity
    shift = mean - mix @ mean[index]
    shift[index] = 0.0
    return mix, shift
