"""The measures as torchmetrics metrics, in a file of their own because torchmetrics is slow to import."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_embed.errors import InputError
from lightning_embed.statistics.linearization import mpc_of_moments
from lightning_embed.statistics.moments import Moments, check_pair, merge_moments, update_moments


def _pack(moments: Moments) -> Tensor:
    """Write moments as one float64 tensor (10, neurons), so that one gather carries them."""
    scalars = (float(moments.count), moments.resolution_pre, moments.resolution_post)
    rows = [moments.shift_pre, moments.shift_post, moments.sum_pre, moments.sum_post]
    rows += [moments.square_pre, moments.square_post, moments.cross]
    return torch.stack([*rows, *(torch.full_like(moments.cross, value) for value in scalars)])


def _unpack(state: Tensor) -> Moments | None:
    """Read `_pack`'s tensor; None if nothing was seen."""
    if state.shape[1] == 0 or state[7, 0] == 0:
        return None
    count, resolution_pre, resolution_post = state[7:, 0].tolist()
    shift_pre, shift_post, sum_pre, sum_post, square_pre, square_post, cross = state[:7].unbind()
    return Moments(
        int(count),
        shift_pre,
        shift_post,
        sum_pre,
        sum_post,
        square_pre,
        square_post,
        cross,
        resolution_pre,
        resolution_post,
    )


def _merge_ranks(states: Tensor) -> Tensor:
    """Reduce (ranks, 10, neurons) to (10, neurons)."""
    total: Moments | None = None
    for state in states:
        moments = _unpack(state)
        if moments is not None:
            total = moments if total is None else merge_moments(total, moments)
    return states[0] if total is None else _pack(total)


def _gather_filled(state: Tensor, group: Any = None) -> list[Tensor]:
    """Gather the states of all ranks that know their number of neurons: others would not stack."""
    gathered: list[Tensor] = gather_all_tensors(state, group)
    return [other for other in gathered if other.shape[1] > 0] or [state]


class MinimalPearsonCorrelation(Metric):
    r"""Minimal Pearson correlation (MPC) over batches and ranks, as a torchmetrics metric.

    $\mathrm{MPC} = \min_j |\rho(y_j, x_j)|$ (000, eq. 5.1); see `minimal_pearson_correlation`. Its state is
    the layer's moments, so batches and ranks of any sizes give what all samples at once would give; a rank
    without data changes nothing. `update` alone is half as dear as `forward`.

    Args:
        num_neurons: the layer's width, checked in every update; by default that of the first batch.
        **kwargs: arguments of `torchmetrics.Metric`.

    Raises:
        InputError: `num_neurons` is below 1.

    >>> metric = MinimalPearsonCorrelation()
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> metric.update(x, 2 * x)
    >>> metric.update(x, 2 * x)
    >>> metric.compute().item()
    1.0
    """

    is_differentiable = False
    higher_is_better = None
    # The state has no neutral element before the width is known, which the cheaper forward would need.
    full_state_update = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    moments: Tensor

    def __init__(self, num_neurons: int | None = None, **kwargs: Any) -> None:
        if num_neurons is not None and num_neurons < 1:
            raise InputError(f"`num_neurons` is {num_neurons}; give the layer's width, at least 1, or None.")
        kwargs.setdefault("dist_sync_fn", _gather_filled)
        super().__init__(**kwargs)
        self.num_neurons = num_neurons
        empty = torch.zeros(10, num_neurons or 0, dtype=torch.float64)
        self.add_state("moments", default=empty, dist_reduce_fx=_merge_ranks)

    def update(self, pre: Tensor, post: Tensor) -> None:
        """Add a batch.

        Args:
            pre: input of the activation, shape (samples, neurons), any floating dtype.
            post: output of the activation, same shape.

        Raises:
            InputError: the shapes do not fit each other or the batches before, no sample, or not floating.
        """
        check_pair(pre, post)
        if self.num_neurons not in (None, pre.shape[1]):
            raise InputError(f"`pre` has {pre.shape[1]} neurons, `num_neurons` is {self.num_neurons}; make them agree.")
        self.moments = _pack(update_moments(_unpack(self.moments), pre, post))

    def compute(self) -> Tensor:
        """Give the MPC of all that was seen.

        Returns:
            The minimum in [0, 1], float64 scalar; NaN if undefined or nothing was seen.
        """
        moments = _unpack(self.moments)
        if moments is None:
            return self.moments.new_full((), torch.nan)
        return mpc_of_moments(moments)
