"""How affinely an activation acts on the data: the minimal Pearson correlation."""

import warnings

import torch
from torch import Tensor

from lightning_embed.statistics.moments import Moments, PrecisionWarning


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
