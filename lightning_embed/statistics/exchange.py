"""Exchange: improve a choice of kept neurons by swapping one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.statistics.span import Weighted, weighted_reads

MAX_OPERATIONS = 2**31  # of one round; beyond it the choice is left as it is (some seconds on two cores)
_ROUNDS = 2
_JITTER = 1e-9  # of the mean variance
_GAIN = 1e-6  # relative gain below which a swap is rounding


def exchange(
    features: Tensor | Sequence[Tensor],
    consumer_weight: Tensor | Sequence[Tensor],
    kept: Sequence[int],
    *,
    intercept: bool | Sequence[bool] = True,
) -> tuple[int, ...]:
    r"""Swap kept neurons for others as long as what the consumers receive is carried better.

    `span_order` chooses greedily: a neuron that was the best first one may be one too many later. Each kept
    neuron in turn is taken out and the best of all others, itself included, put in (Fedorov's exchange for
    experimental designs). What is lowered is the same $\mathrm{tr}\,W R W^\top$, the squared error of what the
    consumers receive after `refit`; R is the covariance that the kept features and the constant leave.
    Held are the regression of all features on the kept ones and W R, so that a swap costs an update of each.

    Preserved: the number of kept neurons. The error never rises. Where one round might take more than 2³¹
    operations (kept · neurons · (kept + outputs)) the choice is returned as it is.

    Where consumers read different values of the same neurons, the errors of all reads are added up, each as a share of
    what is received there, and one neuron is swapped in all of them.

    Args:
        features: post, shape (samples, neurons); of several reads one each.
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons); of several reads one each.
        kept: neuron numbers to begin with.
        intercept: whether the constant belongs to the span, as in `span_order`.

    Returns:
        As many neuron numbers, increasing.

    Raises:
        InputError: the shapes do not fit, values are not finite, or a number is unknown or repeated.

    >>> h = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    >>> exchange(h, torch.ones(1, 3), [0])  # the third is the sum of the others
    (2,)
    """
    reads = weighted_reads(features, consumer_weight, intercept)
    width = len(reads[0].variance)
    chosen = list(kept)
    if len(set(chosen)) != len(chosen) or not all(0 <= neuron < width for neuron in chosen):
        raise InputError(f"`kept` is {chosen}; give different neuron numbers from 0 to {width - 1}.")
    if not 0 < len(chosen) < width or too_wide(width, len(chosen), [len(read.weight) for read in reads]):
        return tuple(sorted(chosen))
    # only Wᵀ W counts
    reads = [
        replace(read, weight=torch.linalg.qr(read.weight, mode="r").R) if len(read.weight) > width else read
        for read in reads
    ]
    if len(reads) == 1:
        independent = _independent_of(reads[0], chosen)
        swaps = _Swaps([_Left(reads[0], independent, jitter=0.0)], [1.0], independent)
        return swaps.improve([neuron for neuron in chosen if neuron not in independent], len(chosen))
    totals = [float((read.received() * read.weight).sum()) for read in reads]
    told = [place for place, total in enumerate(totals) if total > 0]
    if not told:
        return tuple(sorted(chosen))
    # a neuron may be dependent in one read and not in another; a trace of noise of its own keeps all independent
    lefts = [_Left(reads[place], chosen, jitter=_JITTER) for place in told]
    return _Swaps(lefts, [totals[place] for place in told], chosen).improve([], len(chosen))


def too_wide(width: int, kept: int, outputs: Sequence[int]) -> bool:
    """Whether one round of swaps might take more than 2³¹ operations, so that none is made.

    >>> too_wide(512, 128, [256]), too_wide(4096, 1024, [4096])
    (False, True)
    """
    return kept * width * (kept + sum(min(count, width) for count in outputs)) > MAX_OPERATIONS


class _Swaps:
    """The choice K of kept neurons, and what it leaves of every read, kept up to date while K changes."""

    def __init__(self, reads: Sequence[_Left], totals: Sequence[float], kept: Sequence[int]) -> None:
        self.reads, self.totals, self.kept = reads, totals, list(kept)

    def improve(self, idle: Sequence[int], count: int) -> tuple[int, ...]:
        """The best in place of those that add nothing (`idle`), then rounds of swaps until none helps."""
        for _ in idle:
            gain = self._over_reads([read.gain(read.left, read.variance) for read in self.reads])
            if gain.amax() <= 0:
                break
            neuron = int(gain.argmax())
            self.kept.append(neuron)
            for read in self.reads:
                read.add(neuron, self.kept)
        for _ in range(_ROUNDS):
            if not sum([self._swap(place) for place in range(len(self.kept))]):
                break
        width = len(self.reads[0].out)
        spare = [neuron for neuron in (*idle, *range(width)) if neuron not in self.kept]
        chosen = dict.fromkeys([*self.kept, *spare])
        return tuple(sorted(list(chosen)[:count]))

    def _over_reads(self, values: Sequence[Tensor]) -> Tensor:
        if len(values) == 1:
            return values[0]
        return torch.stack([value / total for value, total in zip(values, self.totals, strict=True)]).sum(dim=0)

    def _swap(self, place: int) -> bool:
        """Take one neuron out and put the best in; false where that is the same one."""
        neuron = self.kept[place]
        without = [read.without(place, neuron) for read in self.reads]
        if any(one is None for one in without):
            return False
        gain = self._over_reads(
            [
                read.gain(one.left, one.variance)
                for read, one in zip(self.reads, without, strict=True)
                if one is not None
            ]
        )
        best = int(gain.argmax())
        if best == neuron or gain[best] <= gain[neuron] * (1 + _GAIN):
            return False
        self.kept[place] = best
        for read, one in zip(self.reads, without, strict=True):
            assert one is not None
            read.swap(place, neuron, best, one, self.kept)
        return True


@dataclass(frozen=True, eq=False)
class _Without:
    """What is left of a read once a kept neuron is taken out: W R, the diagonal of R, and R's new row."""

    left: Tensor
    variance: Tensor
    row: Tensor
    own: Tensor


class _Left:
    """What regression on the kept neurons K leaves of one read.

    With G the covariance of all neurons: `inverse` is G_KK⁻¹, `fit` G_KK⁻¹ G_K (its columns on K those of the
    identity), `variance` the diagonal of R and `left` W R, both 0 on K. With a jitter, G has so much more on its
    diagonal, as a share of its mean.
    """

    def __init__(self, given: Weighted, kept: Sequence[int], *, jitter: float) -> None:
        self.given = given
        self._jitter = jitter * float(given.variance.mean())
        gram = self._gram(kept)
        factor = (
            torch.linalg.cholesky(gram[:, list(kept)])
            if jitter
            else _independent(gram[:, list(kept)], given.floor[list(kept)])[1]
        )
        self.inverse = torch.cholesky_inverse(factor)
        self.fit = torch.cholesky_solve(gram, factor)
        self.out = torch.ones_like(given.variance, dtype=torch.bool)
        self.out[list(kept)] = False
        own = given.variance + self._jitter if jitter else given.variance
        received = given.received() + self._jitter * given.weight if jitter else given.received()
        self.variance = torch.where(self.out, own - (gram * self.fit).sum(dim=0), 0.0)
        self.left = torch.where(self.out, received - given.weight @ gram.T @ self.fit, 0.0)

    def _gram(self, neurons: Sequence[int]) -> Tensor:
        """Rows of G."""
        gram = self.given.gram(torch.tensor(list(neurons), dtype=torch.int64, device=self.given.rows.device))
        if self._jitter:
            gram[range(len(neurons)), list(neurons)] += self._jitter
        return gram

    def gain(self, left: Tensor, variance: Tensor) -> Tensor:
        """What each neuron would take from the error, given W R and the diagonal of R."""
        return torch.where(variance > self.given.floor, left.square().sum(dim=0) / variance, 0.0)

    def without(self, place: int, neuron: int) -> _Without | None:
        """What is left without the kept neuron at a place; None where rounding has eaten its own part."""
        own = self.inverse[place, place].clone()
        if own <= 0:
            return None
        # without it, R gains row rowᵀ / own
        row = torch.where(self.out, self.fit[place], 0.0)
        row[neuron] = 1.0
        left = torch.addr(self.left, self.given.weight @ row, row / own)
        return _Without(left, self.variance + row.square() / own, row, own)

    def swap(self, place: int, neuron: int, best: int, without: _Without, kept: Sequence[int]) -> None:
        """Put `best` in the place of `neuron`; `kept` is the choice with it."""
        column = self.inverse[:, place] / without.own
        self.fit.addr_(column, without.row, alpha=-1.0)
        self.inverse.addr_(column, column, alpha=-float(without.own))
        self.left, self.variance, self.out[neuron] = without.left, without.variance, True
        self._put_in(place, best, kept)

    def add(self, neuron: int, kept: Sequence[int]) -> None:
        """Keep one more, the last of `kept`."""
        self.fit = nn.functional.pad(self.fit, (0, 0, 0, 1))
        self.inverse = nn.functional.pad(self.inverse, (0, 1, 0, 1))
        self._put_in(len(kept) - 1, neuron, kept)

    def _put_in(self, place: int, neuron: int, kept: Sequence[int]) -> None:
        """Give a neuron its place, where nothing is kept so far."""
        self.fit[place] = 0.0
        covariance = self._gram([neuron])[0]
        row = torch.where(self.out, covariance - covariance[list(kept)] @ self.fit, 0.0)  # of R
        scale = row[neuron].clone()
        coefficient, share = self.fit[:, neuron].clone(), row / scale
        self.fit.addr_(coefficient, share, alpha=-1.0)
        self.fit[place] = share
        coefficient[place] = -1.0
        self.inverse[place] = self.inverse[:, place] = 0.0
        self.inverse.addr_(coefficient, coefficient / scale)
        self.left = torch.addr(self.left, self.given.weight @ row, share, alpha=-1.0)
        self.variance = self.variance - row * share
        self.left[:, neuron] = self.variance[neuron] = 0.0
        self.out[neuron] = False


def _independent_of(given: Weighted, kept: Sequence[int]) -> list[int]:
    """Those of the kept neurons that those before them do not explain."""
    gram = given.gram(torch.tensor(list(kept), dtype=torch.int64, device=given.rows.device))[:, list(kept)]
    return [kept[place] for place in _independent(gram, given.floor[list(kept)])[0]]


def _independent(gram: Tensor, floor: Tensor) -> tuple[list[int], Tensor]:
    """The neurons that those before them do not explain, and the Cholesky factor of their covariance."""
    left, factor = gram.diagonal().clone(), torch.empty_like(gram)
    chosen: list[int] = []
    for at in range(len(gram)):
        if left[at] > floor[at]:
            k = len(chosen)
            factor[k] = (gram[at] - factor[:k, at] @ factor[:k]) / left[at].sqrt()
            left = left - factor[k].square()
            chosen.append(at)
    return chosen, factor[: len(chosen), chosen].T.contiguous()
