"""Exchange: improve a choice of kept neurons by swapping one at a time."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.statistics.span import Weighted, weighted

MAX_OPERATIONS = 2**31  # of one round; beyond it the choice is left as it is (some seconds on two cores)
_ROUNDS = 2
_GAIN = 1e-6  # relative gain below which a swap is rounding


def exchange(
    features: Tensor, consumer_weight: Tensor, kept: Sequence[int], *, intercept: bool = True
) -> tuple[int, ...]:
    r"""Swap kept neurons for others as long as what the consumers receive is carried better.

    `span_order` chooses greedily: a neuron that was the best first one may be one too many later. Each kept
    neuron in turn is taken out and the best of all others, itself included, put in (Fedorov's exchange for
    experimental designs). What is lowered is the same $\mathrm{tr}\,W R W^\top$, the squared error of what the
    consumers receive after `refit`; R is the covariance that the kept features and the constant leave.
    Held are the regression of all features on the kept ones and W R, so that a swap costs an update of each.

    Preserved: the number of kept neurons. The error never rises. Where one round might take more than 2³¹
    operations (kept · neurons · (kept + outputs)) the choice is returned as it is.

    Args:
        features: post, shape (samples, neurons).
        consumer_weight: weights of the consumers, stacked, shape (outputs, neurons).
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
    given = weighted(features, consumer_weight, intercept=intercept)
    width = len(given.variance)
    chosen = list(kept)
    if len(set(chosen)) != len(chosen) or not all(0 <= neuron < width for neuron in chosen):
        raise InputError(f"`kept` is {chosen}; give different neuron numbers from 0 to {width - 1}.")
    outputs = min(len(given.weight), width)
    if not 0 < len(chosen) < width or len(chosen) * width * (len(chosen) + outputs) > MAX_OPERATIONS:
        return tuple(sorted(chosen))
    if len(given.weight) > width:  # only Wᵀ W counts
        given = replace(given, weight=torch.linalg.qr(given.weight, mode="r").R)
    return _Swaps(given, chosen).improve()


class _Swaps:
    """What regression on the kept neurons K leaves, kept up to date while K changes.

    With G the covariance of all neurons: `inverse` is G_KK⁻¹, `fit` G_KK⁻¹ G_K (its columns on K those of the
    identity), `variance` the diagonal of R and `left` W R, both 0 on K.
    """

    def __init__(self, given: Weighted, kept: Sequence[int]) -> None:
        self.given = given
        gram = given.gram(torch.tensor(kept, device=given.rows.device))
        chosen, factor = _independent(gram[:, list(kept)], given.floor[list(kept)])
        self.count, self.kept = len(kept), [kept[at] for at in chosen]
        self.idle = [neuron for neuron in kept if neuron not in self.kept]  # in the span already
        gram = gram[chosen]
        self.inverse = torch.cholesky_inverse(factor)
        self.fit = torch.cholesky_solve(gram, factor)
        self.out = torch.ones_like(given.variance, dtype=torch.bool)
        self.out[self.kept] = False
        self.variance = torch.where(self.out, given.variance - (gram * self.fit).sum(dim=0), 0.0)
        self.left = torch.where(self.out, given.received() - given.weight @ gram.T @ self.fit, 0.0)

    def improve(self) -> tuple[int, ...]:
        """The best in place of those that add nothing, then rounds of swaps until none helps."""
        for _ in self.idle:
            gain = self._gain(self.left, self.variance)
            if gain.amax() <= 0:
                break
            self._add(int(gain.argmax()))
        for _ in range(_ROUNDS):
            if not sum([self._swap(at) for at in range(len(self.kept))]):
                break
        spare = [neuron for neuron in (*self.idle, *range(len(self.out))) if neuron not in self.kept]
        chosen = dict.fromkeys([*self.kept, *spare])
        return tuple(sorted(list(chosen)[: self.count]))

    def _gain(self, left: Tensor, variance: Tensor) -> Tensor:
        """What each neuron would take from the error, given W R and the diagonal of R."""
        return torch.where(variance > self.given.floor, left.square().sum(dim=0) / variance, 0.0)

    def _swap(self, at: int) -> bool:
        """Take one neuron out and put the best in; false where that is the same one."""
        neuron, own = self.kept[at], self.inverse[at, at].clone()
        if own <= 0:
            return False
        # without it, R gains row rowᵀ / own
        row = torch.where(self.out, self.fit[at], 0.0)
        row[neuron] = 1.0
        left = torch.addr(self.left, self.given.weight @ row, row / own)
        variance = self.variance + row.square() / own
        gain = self._gain(left, variance)
        best = int(gain.argmax())
        if best == neuron or gain[best] <= gain[neuron] * (1 + _GAIN):
            return False
        column = self.inverse[:, at] / own
        self.fit.addr_(column, row, alpha=-1.0)
        self.inverse.addr_(column, column, alpha=-float(own))
        self.left, self.variance, self.out[neuron] = left, variance, True
        self._put_in(at, best)
        return True

    def _add(self, neuron: int) -> None:
        """Keep one more."""
        self.fit = nn.functional.pad(self.fit, (0, 0, 0, 1))
        self.inverse = nn.functional.pad(self.inverse, (0, 1, 0, 1))
        self.kept.append(neuron)
        self._put_in(len(self.kept) - 1, neuron)

    def _put_in(self, at: int, neuron: int) -> None:
        """Give a neuron the place `at`, where nothing is kept."""
        self.fit[at] = 0.0
        covariance = self.given.gram(torch.tensor([neuron], device=self.fit.device))[0]
        row = torch.where(self.out, covariance - covariance[self.kept] @ self.fit, 0.0)  # of R
        scale = row[neuron].clone()
        coefficient, share = self.fit[:, neuron].clone(), row / scale
        self.fit.addr_(coefficient, share, alpha=-1.0)
        self.fit[at] = share
        coefficient[at] = -1.0
        self.inverse[at] = self.inverse[:, at] = 0.0
        self.inverse.addr_(coefficient, coefficient / scale)
        self.left = torch.addr(self.left, self.given.weight @ row, share, alpha=-1.0)
        self.variance = self.variance - row * share
        self.left[:, neuron] = self.variance[neuron] = 0.0
        self.out[neuron] = False
        self.kept[at] = neuron


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
