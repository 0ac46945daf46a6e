"""Reconstruction: small corrections of a Linear that bring back what it put out before the network was cut."""

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.statistics.ridge import few, leave_one_out

RIDGE = 1e-4


def reconstruct(
    inputs: Tensor, error: Tensor, *, intercept: bool = True, ridge: float | None = None
) -> tuple[Tensor, Tensor]:
    r"""The change of a Linear's weight and bias that takes most of an error away.

    The minimum of $\sum_i \|e_i - D x_i - c\|^2 / n + r \bar\lambda \|D\|^2$ over the n samples, with x the present
    inputs, e what the outputs lack and $\bar\lambda$ the mean variance of the inputs (mean square without intercept).
    Every output and every sample counts alike: weighting each by the squared derivative of the network's outputs fits
    the calibration data better and other data worse.

    Args:
        inputs: what the Linear reads now, shape (samples, fan_in).
        error: what its output lacks, shape (samples, fan_out).
        intercept: whether c may differ from 0; False for a Linear without a bias.
        ridge: r, above 0; if None 1e-4, or, with fewer than four samples for each input, what foretells best those that
            are left out (see `leave_one_out`).

    Returns:
        (D, c), the additions to weight (fan_out, fan_in) and bias (fan_out,), float64.

    Raises:
        InputError: shapes do not fit, there is no sample, values are not finite, or `ridge` is not positive.

    >>> x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> d, c = reconstruct(x, 2 * x + 1, ridge=1e-9)
    >>> round(d.item(), 6), round(c.item(), 6)
    (2.0, 1.0)
    """
    _check(inputs, error, ridge)
    samples, fan_in = inputs.shape
    x, e = inputs.detach().double(), error.detach().double()
    mean = x.mean(dim=0) if intercept else x.new_zeros(fan_in)
    offset = e.mean(dim=0) if intercept else e.new_zeros(e.shape[1])
    x = x - mean
    gram = x.T @ x / samples
    scale = gram.diagonal().mean()
    if not scale > 0:  # constant inputs: the bias alone
        return x.new_zeros(e.shape[1], fan_in), offset
    if ridge is None:
        ridge = leave_one_out(x, e - offset) if few(samples, fan_in) else RIDGE
    factor = torch.linalg.cholesky(gram + ridge * scale * torch.eye(fan_in, dtype=x.dtype, device=x.device))
    change = torch.cholesky_solve(x.T @ (e - offset) / samples, factor).T.contiguous()
    return change, offset - change @ mean


def _check(inputs: Tensor, error: Tensor, ridge: float | None) -> None:
    if inputs.ndim != 2 or error.ndim != 2 or len(inputs) != len(error) or len(inputs) == 0:
        raise InputError(
            f"`inputs` {tuple(inputs.shape)} and `error` {tuple(error.shape)} must be (samples, fan_in) and "
            "(samples, fan_out) of the same samples, at least one."
        )
    for name, value in (("inputs", inputs), ("error", error)):
        if not torch.isfinite(value).all():
            raise InputError(f"`{name}` holds NaN or infinite values; find where the model makes them first.")
    if ridge is not None and not ridge > 0:
        raise InputError(f"`ridge` is {ridge}; a positive number is needed, such as 1e-4.")
