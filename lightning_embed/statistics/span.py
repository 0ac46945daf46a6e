"""Span: the neurons whose features, with the constant, carry all that the consumers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.statistics.ridge import STRENGTHS, few, leave_one_out

_TIE = 1e-6  # relative difference of gains that are equal but for rounding
WHOLE = 8192  # neurons whose covariance is held as a whole: half a gigabyte, growing quadratically
RIDGE = 1e-6
ITERATIONS = 2  # of the ridge regression
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
    features: Tensor | Sequence[Tensor],
    consumer_weight: Tensor | Sequence[Tensor],
    tolerance: float,
    *,
    intercept: bool | Sequence[bool] = True,
    most: int | None = None,
    shares: bool = True,
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

    Where consumers c read different values $h_c$ of the same neurons, one neuron is kept or dropped in all of them:
    the gain is $\sum_c \|W_c R_{c:,j}\|^2 / R_{cjj} / \mathrm{tr}\,W_c G_c W_c^\top$, and the fraction the root
    mean square over c.

    Args:
        features: post, shape (samples, neurons); of several reads one each, whose samples may differ in number.
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons); of several reads one each.
        tolerance: residual fraction at which to stop, in [0, 1]; 0 stops where rounding errors are left,
            from about 1e-5 on.
        intercept: whether the constant belongs to the span (of several reads one each, or one for all); if not, G is
            the second moment about 0. It does not where no bias can make up for it, as before a convolution that pads
            with zeros.
        most: number of kept neurons at which to stop too; None for no bound.
        shares: whether every one of several reads counts alike; if not, their weights are in common units, and what is
            missing of each adds up.

    Returns:
        The kept neurons and the residual fractions; empty if no feature varies or none is read. With few
        outputs the kept features carry the consumers' input, not every feature.

    Raises:
        InputError: the shapes do not fit, the tolerance is outside [0, 1], or values are not finite.

    >>> h = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0], [2.0, 4.0, 1.0]])
    >>> span_order(h, torch.ones(1, 3), 0.01).kept  # the first is half the second, the third constant
    (1,)
    >>> span_order([h, h.flip(0).square()], [torch.ones(1, 3), torch.ones(1, 3)], 0.01).kept
    (1,)
    """
    if not 0.0 <= tolerance <= 1.0:
        raise InputError(f"`tolerance` is {tolerance}; a residual fraction between 0 and 1 is needed.")
    return _greedy(weighted_reads(features, consumer_weight, intercept), tolerance, most, shares)


def weighted_reads(
    features: Tensor | Sequence[Tensor],
    consumer_weight: Tensor | Sequence[Tensor],
    intercept: bool | Sequence[bool],
) -> list[Weighted]:
    """The reads of `span_order`, each checked and in common units (see `weighted`)."""
    features = [features] if isinstance(features, Tensor) else list(features)
    weights = [consumer_weight] if isinstance(consumer_weight, Tensor) else list(consumer_weight)
    intercepts = [intercept] * len(features) if isinstance(intercept, bool) else list(intercept)
    if not features or len({len(features), len(weights), len(intercepts)}) > 1:
        raise InputError(
            f"There are {len(features)} features, {len(weights)} weights and {len(intercepts)} intercepts; every read "
            "needs one of each."
        )
    return [
        weighted(rows, weight, intercept=constant)
        for rows, weight, constant in zip(features, weights, intercepts, strict=True)
    ]


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


class _Pivots:
    """What the kept neurons leave of one read: pivoting on G of `span_order`, read by W.

    With l the new column of the Cholesky factor, R loses l lᵀ and Q = R Wᵀ W R loses l fᵀ + f lᵀ, where
    f = Q[:, pivot] / √R[pivot, pivot] - ‖W l‖² l / 2. Only the diagonals of R and Q and the rows l, f are
    kept up to date; a full R would be rewritten at every pivot. Where R or Q are rounding alone, their ratio may be
    anything. G and the first Q are computed row by row where they would be too large.

    Attributes:
        total: tr W G Wᵀ.
        left: tr W R Wᵀ.
        variance: the diagonal of R, shape (neurons,).
        gain: what each neuron would take from `left`.
    """

    def __init__(self, given: Weighted, bound: int) -> None:
        self.given = given
        samples, width = given.rows.shape
        whole = width <= WHOLE
        self._gram = given.gram() if whole else None
        self._received, self.total = given.reading(self._gram)
        self._read = self._received.T @ self._received if whole else None
        self.variance, self._read_diagonal = given.variance.clone(), self._received.square().sum(0)
        self._read_floor = width * torch.finfo(self._received.dtype).eps * self._read_diagonal.amax()
        rank = min(samples, width, bound)
        self._factor, self._half = self._received.new_empty(rank, width), self._received.new_empty(rank, width)
        self._count = 0
        self.left = self.total
        self.gain = self._gains()

    def _gains(self) -> Tensor:
        told = (self.variance > self.given.floor) & (self._read_diagonal > self._read_floor)
        if self._count == len(self._factor):
            return torch.zeros_like(self.variance)
        return torch.where(told, self._read_diagonal / self.variance, 0.0)

    def take(self, pivot: int) -> None:
        """Keep one more neuron; nothing changes where it adds nothing."""
        if self.gain[pivot] > 0:
            self._update(pivot)
        self.variance[pivot] = 0.0
        self.gain = self._gains()

    def _update(self, pivot: int) -> None:
        factor, half = self._factor, self._half
        k, scale = self._count, self.variance[pivot].sqrt()
        # both rows at once: reading the factor is what costs
        known, known_half = torch.stack([factor[:k, pivot], half[:k, pivot]]) @ factor[:k]
        rows = self.given.rows
        column = self._gram[pivot] if self._gram is not None else rows[:, pivot] @ rows / len(rows)
        column = (column - known) / scale
        f = self._read[pivot] if self._read is not None else self._received[:, pivot] @ self._received
        f = (f - factor[:k, pivot] @ half[:k] - known_half) / scale - self.gain[pivot] / 2 * column
        factor[k], half[k] = column, f
        self._count += 1
        self.variance = (self.variance - column.square()).clamp_min(0.0)
        self._read_diagonal = (self._read_diagonal - 2 * column * f).clamp_min(0.0)
        self.left = (self.left - self.gain[pivot]).clamp_min(0.0)


def _greedy(given: Sequence[Weighted], tolerance: float, most: int | None, shares: bool) -> Span:
    """Keep the neuron of the largest gain, again and again."""
    width = given[0].rows.shape[1]
    if any(read.rows.shape[1] != width for read in given):
        raise InputError(f"The reads have {[read.rows.shape[1] for read in given]} neurons; they must be the same.")
    bound = width if most is None else min(most, width)
    reads = [read for read in (_Pivots(one, bound) for one in given) if read.gain.amax() > 0]
    apart = shares and len(reads) > 1
    scales = [read.total if apart else 1.0 for read in reads]

    def over_reads(values: Sequence[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        device = values[0].device
        return torch.stack([value.to(device) / scale for value, scale in zip(values, scales, strict=True)]).sum(dim=0)

    kept: list[int] = []
    residual: list[Tensor] = []
    fraction = 1.0
    if not reads:
        return Span((), given[0].rows.new_zeros(0))
    total = over_reads([read.total for read in reads])
    while len(kept) < bound and fraction > tolerance:
        gain = over_reads([read.gain for read in reads])
        if gain.amax() <= 0:
            break
        # of equals the one with most variance left: its multiple stands for the others with smaller numbers
        variance = over_reads([read.variance for read in reads])
        pivot = int(torch.where(gain >= (1 - _TIE) * gain.amax(), variance, 0.0).argmax())
        for read in reads:
            read.take(pivot)
        share = (over_reads([read.left for read in reads]) / total).sqrt()
        fraction = float(share)
        kept.append(pivot)
        residual.append(share)
    return Span(tuple(kept), torch.stack(residual) if residual else given[0].rows.new_zeros(0))


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
    features: Tensor,
    kept: Sequence[int],
    ridge: float | None = None,
    *,
    intercept: bool = True,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Express all features by the kept ones and the constant.

    $h \approx M h_{kept} + s$ with $M = C_{all,kept} A^{-1} (I + E A^{-1} + (E A^{-1})^2)$, where
    $A = C_{kept,kept} + E$, $E = r \bar\lambda I$, C is the covariance and $\bar\lambda$ the mean eigenvalue of
    $C_{kept,kept}$; $s = \bar h - M \bar h_{kept}$. This is ridge regression iterated twice: what the ridge takes
    from a direction of variance λ falls from $\rho = r \bar\lambda / (\lambda + r \bar\lambda)$ to $\rho^3$, so
    that copies stay copies beside features that are nearly dependent. For
    kept neurons the rows are those of the identity. With consumers $W h + b$, the weights $W M$ and the bias
    $b + W s$ are their ridge refit to the whole original contribution, dropped neurons included (the
    inverse of a general compatible embedding, 001, Def. 5.2). Preserved: the mean over the data of what the
    consumers receive, and all of it where the dropped features lie in the span.

    Args:
        features: post, shape (samples, neurons).
        kept: numbers of the kept neurons, in the order that the columns of M shall have.
        ridge: r, relative to the mean eigenvalue, above 0; if None 1e-6, or, with fewer than four samples for each kept
            neuron, what foretells left-out samples best (see `leave_one_out`; from 1e-4 on not iterated). What is
            fitted then is what each neuron's most similar kept one leaves of it, so that copies stay copies.
        intercept: whether the constant may be used; if not, C is the second moment about 0 and s = 0.
        target: what the features were before other merges changed them, of the same shape; the kept features, as they
            are now, are fitted to all of them, the kept ones included.

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
    if ridge is not None and not ridge > 0:
        raise InputError(f"`ridge` is {ridge}; a positive number is needed, such as 1e-6.")
    h = features.detach().double()
    mean = h.mean(0) if intercept else h.new_zeros(width)
    index = torch.tensor(list(kept), dtype=torch.long, device=h.device)
    centered = h - mean
    basis = centered[:, index]
    covariance = basis.T @ basis / h.shape[0]
    scale = covariance.diagonal().mean() if len(kept) else covariance.new_zeros(())
    chosen, nearest = ridge or RIDGE, h.new_zeros(width, len(kept))
    if ridge is None and scale > 0 and few(len(h), len(kept)):
        nearest = _nearest(centered, basis)
        chosen = leave_one_out(basis, centered - basis @ nearest.T, (RIDGE, *STRENGTHS))
    iterations = ITERATIONS if ridge is not None or chosen == RIDGE else 0
    identity = torch.eye(len(kept), dtype=torch.float64, device=h.device)
    factors = torch.linalg.lu_factor(covariance + chosen * scale * identity) if scale > 0 else None

    def regression(values: Tensor) -> Tensor:
        """Coefficients of centred values on the basis, shape (neurons, kept)."""
        if factors is None:
            return h.new_zeros(width, len(kept))  # only the constant is left to fit with
        cross = basis.T @ values / h.shape[0]
        solution: Tensor = torch.linalg.lu_solve(*factors, cross)
        for _ in range(iterations):
            solution = solution + torch.linalg.lu_solve(*factors, cross - covariance @ solution)
        return solution.T.contiguous()

    mix = nearest + regression(centered - basis @ nearest.T)
    mix[index] = identity
    shift = mean - mix @ mean[index]
    shift[index] = 0.0
    if target is not None:  # what has changed is fitted by itself: where nothing has, nothing is added
        _check_features(target)
        if target.shape != features.shape:
            raise InputError(f"`target` has shape {tuple(target.shape)}, expected that of `features`.")
        changed = target.detach().double().to(h.device) - h
        change_mean = changed.mean(0) if intercept else mean
        added = regression(changed - change_mean)
        mix = mix + added
        shift = shift + change_mean - added @ mean[index]
    return mix, shift


def _nearest(features: Tensor, basis: Tensor) -> Tensor:
    """Each centred feature by the one of the basis that explains most of it, shape (neurons, basis)."""
    cross = features.T @ basis
    power = basis.square().sum(dim=0)
    explained = torch.where(power > 0, cross.square() / power.where(power > 0, 1.0), 0.0)
    best = explained.argmax(dim=1, keepdim=True)
    slopes = cross.gather(1, best) / power[best].where(power[best] > 0, 1.0)
    return torch.zeros_like(cross).scatter(1, best, slopes)
