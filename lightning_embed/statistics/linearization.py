"""How affinely an activation acts on the data: the minimal Pearson correlation."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_embed.errors import InputError
from lightning_embed.statistics.moments import (
    Moments,
    PrecisionWarning,
    check_pair,
    merge_moments,
    update_moments,
)


def pearson_of_moments(moments: Moments) -> Tensor:
    r"""Pearson correlation of pre and post, neuron by neuron, from their moments.

    $\rho_j = \mathrm{cov}(x_j, y_j) / \sqrt{\mathrm{var}(x_j)\,\mathrm{var}(y_j)}$ (inside 000, eq. 5.1).
    Rounding the data to their dtype alone moves $1-\rho$ by about
    $\epsilon^2 (\bar x^2/\mathrm{var}\,x + \bar y^2/\mathrm{var}\,y)/24$.

    Args:
        moments: moments of a layer.

    Returns:
        Correlations in [-1, 1], float64, shape (neurons,); NaN where pre or post is constant on the data or
        not finite.

    Warns:
        PrecisionWarning: for some neuron the rounding above exceeds 1e-8 + 1 % of $1-\rho$.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> pearson_of_moments(Moments.of(x, -3 * x)).item()
    -1.0
    """
    std_pre, std_post = moments.var_pre.sqrt(), moments.var_post.sqrt()
    rho = (moments.covariance / (std_pre * std_post)).clamp(-1.0, 1.0)
    rho = rho.masked_fill(moments.constant, torch.nan)
    rounding_pre = moments.resolution_pre * moments.mean_pre / std_pre
    rounding_post = moments.resolution_post * moments.mean_post / std_post
    unresolved = (rounding_pre.square() + rounding_post.square()) / 24 > 1e-8 + 0.01 * (1 - rho.abs())
    if unresolved.any():
        warnings.warn(
            f"The correlation of {int(unresolved.sum())} of {moments.neurons} neurons is not resolved by the "
            "dtype of the data: their mean is too large beside their standard deviation. "
            "Run the model in a wider dtype to measure them.",
            PrecisionWarning,
            stacklevel=2,
        )
    return rho


def pearson_correlation(pre: Tensor, post: Tensor) -> Tensor:
    r"""Pearson correlation of pre and post, neuron by neuron.

    $\rho_j = \mathrm{cov}(x_j, y_j) / \sqrt{\mathrm{var}(x_j)\,\mathrm{var}(y_j)}$ (inside 000, eq. 5.1).

    Args:
        pre: input of the activation, shape (samples, neurons), any floating dtype.
        post: output of the activation, same shape.

    Returns:
        Correlations in [-1, 1], float64, shape (neurons,); NaN where undefined: pre or post constant on the
        data (a single sample, too) or not finite. Two samples always correlate perfectly.

    Raises:
        InputError: the shapes differ or are not (samples, neurons), no sample, or not floating.

    Warns:
        PrecisionWarning: see `pearson_of_moments`.

    >>> pre = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    >>> pearson_correlation(pre, torch.stack([2 * pre[:, 0] + 1, pre[:, 1] ** 2], dim=1))
    tensor([1., 0.], dtype=torch.float64)
    """
    return pearson_of_moments(Moments.of(pre, post))


def mpc_of_moments(moments: Moments) -> Tensor:
    """Minimal Pearson correlation of a layer from its moments; see `minimal_pearson_correlation`.

    Args:
        moments: moments of a layer.

    Returns:
        The minimum in [0, 1], float64 scalar; NaN if all neurons are constant or one is not finite.

    >>> mpc_of_moments(Moments.of(torch.eye(2), torch.eye(2))).item()
    1.0
    """
    varying = moments.select(~moments.constant)
    if varying.neurons == 0:
        return moments.cross.new_full((), torch.nan)
    return pearson_of_moments(varying).abs().amin()


def minimal_pearson_correlation(pre: Tensor, post: Tensor) -> Tensor:
    r"""Minimal Pearson correlation (MPC): how affinely a layer's activation acts on the data.

    $\mathrm{MPC} = \min_j |\rho(y_j, x_j)|$ (000, eq. 5.1), over the neurons that vary on the data: a neuron
    constant on them has no correlation and is left out (000, App. C removes zero-neurons first). It does not
    change when a neuron is shifted or rescaled. 1 is necessary for a linearized layer, not sufficient: two
    distinct values always correlate perfectly.

    Args:
        pre: input of the activation, shape (samples, neurons), any floating dtype.
        post: output of the activation, same shape.

    Returns:
        The minimum in [0, 1], float64 scalar; NaN if undefined: every neuron constant (a single sample,
        too), or a value that is not finite.

    Raises:
        InputError: the shapes differ or are not (samples, neurons), no sample, or not floating.

    Warns:
        PrecisionWarning: see `pearson_of_moments`.

    >>> pre = torch.tensor([[-1.0, 3.0], [0.0, 3.0], [2.0, 3.0]])
    >>> round(minimal_pearson_correlation(pre, torch.relu(pre)).item() ** 2, 6)  # 25 / 28
    0.892857
    """
    return mpc_of_moments(Moments.of(pre, post))


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
