"""Exchange: improve a choice of kept neurons by swapping one at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.statistics.span import weighted_gram

MAX_OPERATIONS = 2**30  # of one round; beyond it the choice is left as it is (some seconds on two cores)
_ROUNDS = 2
_GAIN = 1e-6  # relative gain below which a swap is rounding


def exchange(
    features: Tensor, consumer_weight: Tensor, kept: Sequence[int], *, intercept: bool = True
) -> tuple[int, ...]:
    r"""Swap kept neurons for others as long as what the consumers receive is carried better.

    `span_order` chooses greedily: a neuron that was the best first one may be one too many later. Each kept
    neuron in turn is taken out and the best of all others, itself included, put in (Fedorov's exchange for
    experimental designs). What is lowered is the same $\mathrm{tr}\,W R W^\top$, the squared error of what the
    consumers receive after `refit`; R is the covariance that the kept features and the constant leave. It is
    held by sweeping the Gram matrix, so that a swap costs two updates of rank one.

    Preserved: the number of kept neurons. The error never rises. Where one round would take more than 2³⁰
    operations (kept · outputs · neurons) the choice is returned as it is.

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
    gram, weight, floor = weighted_gram(features, consumer_weight, intercept=intercept)
    width = len(gram)
    chosen = list(kept)
    if len(set(chosen)) != len(chosen) or not all(0 <= neuron < width for neuron in chosen):
        raise InputError(f"`kept` is {chosen}; give different neuron numbers from 0 to {width - 1}.")
    if len(weight) > width:  # only Wᵀ W counts
        weight = torch.linalg.qr(weight, mode="r").R
    if not 0 < len(chosen) < width or len(chosen) * len(weight) * width > MAX_OPERATIONS:
        return tuple(sorted(chosen))
    return _Sweeps(gram, weight, floor, chosen).improve()


class _Sweeps:
    """The Gram matrix with the kept neurons swept out, and what is left of the consumers' input.

    After sweeping the kept set K, `table` holds −G_KK⁻¹ on K, G_KK⁻¹ G_KN between K and the others N, and R on N.
    """

    def __init__(self, gram: Tensor, weight: Tensor, floor: Tensor, kept: list[int]) -> None:
        self.table, self.weight, self.floor = gram, weight, floor
        self.out = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        self.kept: list[int] = []
        for neuron in kept:
            if gram[neuron, neuron] > floor[neuron]:
                self._sweep(neuron)
                self.kept.append(neuron)
                self.out[neuron] = False
        self.idle = [neuron for neuron in kept if neuron not in self.kept]  # in the span already
        self.left = weight[:, self.out] @ gram[self.out][:, self.out]  # W R on N
        self.left = torch.zeros_like(weight).masked_scatter(self.out.expand_as(weight), self.left)

    def improve(self) -> tuple[int, ...]:
        """Rounds of swaps until none helps."""
        for _ in range(_ROUNDS):
            if not sum([self._swap(neuron) for neuron in list(self.kept)]):
                break
        return tuple(sorted([*self.kept, *self.idle]))

    def _sweep(self, neuron: int, sign: float = 1.0) -> None:
        row = self.table[neuron].clone()
        scale = row[neuron].clone()
        self.table.addr_(row, row / scale, alpha=-1.0)
        self.table[neuron] = self.table[:, neuron] = sign * row / scale
        self.table[neuron, neuron] = -1.0 / scale

    def _swap(self, neuron: int) -> bool:
        """Take one neuron out and put the best in; false where that is the same one."""
        row = self.table[neuron]
        inverse = -row[neuron]
        if inverse <= 0:
            return False
        # without it, R gains direction directionᵀ / inverse
        direction = torch.where(self.out, row, 0.0)
        direction[neuron] = 1.0
        read = self.weight @ direction
        left = torch.addr(self.left, read, direction / inverse)
        diagonal = torch.where(self.out, self.table.diagonal() + row.square() / inverse, 0.0)
        diagonal[neuron] = 1.0 / inverse
        gain = torch.where(diagonal > self.floor, left.square().sum(dim=0) / diagonal, 0.0)
        best = int(gain.argmax())
        if best == neuron or gain[best] <= gain[neuron] * (1 + _GAIN):
            return False
        self._sweep(neuron, sign=-1.0)
        self.out[neuron] = True
        column = torch.where(self.out, self.table[best], 0.0)
        self.left = torch.addr(left, self.weight @ column, column / self.table[best, best], alpha=-1.0)
        self._sweep(best)
        self.out[best] = False
        self.left[:, best] = 0.0
        self.kept[self.kept.index(neuron)] = best
        return True
