"""Reconstruction: small corrections of a Linear that bring back what it put out before the network was cut."""

import torch
from torch import Tensor

from lightning_embed.errors import InputError

RIDGE = 1e-4
ITERATIONS = 10


def reconstruct(
    inputs: Tensor,
    error: Tensor,
    weight: Tensor,
    *,
    intercept: bool = True,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
) -> tuple[Tensor, Tensor]:
    r"""The change of a Linear's weight and bias that takes most of an error away, where the error matters.

    For every output neuron n the minimum of
    $\sum_i w_{in} (e_{in} - d_n \cdot x_i - c_n)^2 / \sum_i w_{in} + r \bar\lambda \|d_n\|^2$, with x the present
    inputs, e what the outputs lack, w the squared derivative of the network's output with respect to each of
    them (so that the sum is the output's change to first order) and $\bar\lambda$ the mean variance of the inputs
    (mean square without intercept).
    All neurons are solved together by conjugate gradients, preconditioned with the unweighted normal equations;
    few iterations are enough, and stopping early keeps the correction small where the data say little. With
    equal weights the first iteration is exact.

    Args:
        inputs: what the Linear reads now, shape (samples, fan_in).
        error: what its output lacks, shape (samples, fan_out).
        weight: at least 0, same shape as `error`; only ratios within a neuron matter. A neuron whose weights are
            all 0 counts every sample alike.
        intercept: whether c may differ from 0; False for a Linear without a bias.
        ridge: r, above 0.
        iterations: of the conjugate gradients.

    Returns:
        (d, c), the additions to weight (fan_out, fan_in) and bias (fan_out,), float64.

    Raises:
        InputError: shapes do not fit, there is no sample, values are not finite, a weight is negative, or `ridge`
            is not positive.

    >>> x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    >>> d, c = reconstruct(x, 2 * x + 1, torch.ones(3, 1), ridge=1e-9)
    >>> round(d.item(), 6), round(c.item(), 6)
    (2.0, 1.0)
    """
    _check(inputs, error, weight, ridge)
    samples, fan_in = inputs.shape
    x, e = inputs.detach().double(), error.detach().double()
    mean = x.mean(dim=0) if intercept else x.new_zeros(fan_in)
    x = torch.cat([x - mean, x.new_full((samples, 1), float(intercept))], dim=1)
    w = weight.detach().double()
    total = w.sum(dim=0)
    w = torch.where(total > 0, w * (samples / total.where(total > 0, 1.0)), 1.0) / samples
    gram = x.T @ x / samples
    scale = gram.diagonal()[:-1].mean()
    penalty = torch.full((fan_in + 1, 1), ridge * float(scale), dtype=torch.float64, device=x.device)
    penalty[-1] = 0.0 if intercept else 1.0  # a column of zeros needs some number here
    if not scale > 0:  # constant inputs: the bias alone
        return x.new_zeros(e.shape[1], fan_in), (w * e).sum(dim=0) * float(intercept)
    factor = torch.linalg.cholesky(gram + torch.diag(penalty[:, 0]))

    solution = x.new_zeros(fan_in + 1, e.shape[1])
    residual = x.T @ (w * e)
    start = torch.linalg.vector_norm(residual, dim=0)
    step = preconditioned = torch.cholesky_solve(residual, factor)
    product = (residual * preconditioned).sum(dim=0)
    for _ in range(iterations):
        image = x.T @ (w * (x @ step)) + penalty * step
        curvature = (step * image).sum(dim=0)
        going = (curvature > 0) & (torch.linalg.vector_norm(residual, dim=0) > 1e-12 * start)
        if not bool(going.any()):
            break
        length = torch.where(going, product / curvature.where(going, 1.0), 0.0)
        solution = solution + length * step
        residual = residual - length * image
        preconditioned = torch.cholesky_solve(residual, factor)
        before, product = product, (residual * preconditioned).sum(dim=0)
        step = preconditioned + torch.where(going, product / before.where(going, 1.0), 0.0) * step
    change = solution[:-1].T.contiguous()
    return change, solution[-1] - change @ mean


def _check(inputs: Tensor, error: Tensor, weight: Tensor, ridge: float) -> None:
    if inputs.ndim != 2 or error.ndim != 2 or len(inputs) != len(error) or len(inputs) == 0:
        raise InputError(
            f"`inputs` {tuple(inputs.shape)} and `error` {tuple(error.shape)} must be (samples, fan_in) and "
            "(samples, fan_out) of the same samples, at least one."
        )
    if weight.shape != error.shape:
        raise InputError(f"`weight` has shape {tuple(weight.shape)}, expected that of `error`, {tuple(error.shape)}.")
    for name, value in (("inputs", inputs), ("error", error), ("weight", weight)):
        if not torch.isfinite(value).all():
            raise InputError(f"`{name}` holds NaN or infinite values; find where the model makes them first.")
    if (weight < 0).any():
        raise InputError("`weight` has negative entries; give squared sensitivities, at least 0.")
    if not ridge > 0:
        raise InputError(f"`ridge` is {ridge}; a positive number is needed, such as 1e-4.")
