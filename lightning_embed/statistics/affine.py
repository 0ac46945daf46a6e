"""The affine map that stands for a linearized activation: least squares, weighted, or tangent."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.statistics.moments import Moments, check_pair


@dataclass(frozen=True, eq=False)
class AffineFit:
    """A line for every neuron, post ≈ slope · pre + intercept; all float64, shape (neurons,).

    Attributes:
        slope: λ of 000, Def. A.2.
        intercept: μ of 000, Def. A.2.
        residual: root of the mean squared error over the variance of post, both under the weights of the
            fit; least squares gives √(1-ρ²), a tangent may exceed 1. 0 where the error is below the spacing
            of numbers at the mean of post, infinite where post is constant and the line elsewhere.
    """

    slope: Tensor
    intercept: Tensor
    residual: Tensor


def affine_fit_of_moments(moments: Moments) -> AffineFit:
    """Least-squares line of every neuron from the moments of a layer; see `affine_fit`.

    Args:
        moments: moments of a layer.

    Returns:
        The fit; a neuron whose pre or post is constant gets slope 0, the mean of post and, if post is the
        constant, residual 0.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> affine_fit_of_moments(Moments.of(x, 3 * x + 1)).slope.item()
    3.0
    """
    slope = (moments.covariance / moments.var_pre).masked_fill(moments.constant, 0.0)
    intercept = moments.mean_post - slope * moments.mean_pre
    rho_squared = moments.covariance.square() / (moments.var_pre * moments.var_post)
    residual = (1 - rho_squared.clamp(max=1.0)).sqrt().masked_fill(moments.constant_pre, 1.0)
    return AffineFit(slope, intercept, residual.masked_fill(moments.constant_post, 0.0))


def _normalized(weight: Tensor | None, pre: Tensor) -> Tensor:
    """Weights that sum to one over the samples, float64, (samples, neurons)."""
    equal = torch.full(pre.shape, 1.0 / pre.shape[0], dtype=torch.float64, device=pre.device)
    if weight is None:
        return equal
    if weight.shape != pre.shape:
        raise InputError(f"`weight` has shape {tuple(weight.shape)}, expected that of `pre`, {tuple(pre.shape)}.")
    if (weight < 0).any():
        raise InputError("`weight` has negative entries; give squared sensitivities, at least 0.")
    weight = weight.detach().double()
    # Scaled first: the squares of small derivatives may add up to a number whose inverse overflows.
    weight = weight / weight.amax(0).where(weight.amax(0) != 0, 1.0)
    total = weight.sum(0)
    return torch.where(total == 0, equal, weight / total)


def _residual(pre: Tensor, post: Tensor, w: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    x, y = pre.double(), post.double()
    mean = (w * y).sum(0)
    error = (w * (y - slope * x - intercept).square()).sum(0)
    variance = (w * (y - mean).square()).sum(0)
    exact = error.sqrt() <= torch.finfo(post.dtype).eps * mean.abs()
    return (error / variance).sqrt().masked_fill(exact, 0.0)


def affine_fit(pre: Tensor, post: Tensor, weight: Tensor | None = None) -> AffineFit:
    r"""Least-squares line through (pre, post) of every neuron, the λ, μ of a layer merge.

    $\lambda = \mathrm{cov}_w(x, y)/\mathrm{var}_w(x)$, $\mu = \bar y_w - \lambda \bar x_w$ minimise
    $\sum_i w_i (y_i - \lambda x_i - \mu)^2$; with a linearized layer they are its affine map (000, Def. A.2,
    eq. 4.2). Weighted by the squared derivative of the network's output with respect to post, the sum is the
    first-order change of the output. Preserved: the (weighted) mean of post; its variance only if ρ² = 1.

    Args:
        pre: input of the activation, shape (samples, neurons), any floating dtype.
        post: output of the activation, same shape.
        weight: weight of each sample for each neuron, at least 0, same shape; only ratios within a neuron
            matter. A neuron whose weights are all 0 is fitted without. None: all equal.

    Returns:
        The fit. A neuron whose pre is constant on the data, or whose post is, gets slope 0 and the
        (weighted) mean of post; one with values that are not finite gets NaN.

    Raises:
        InputError: the shapes do not fit, a weight is negative, no sample, or not floating.

    >>> pre = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> fit = affine_fit(pre, pre.abs())
    >>> fit.slope.item(), round(fit.intercept.item(), 6)
    (0.0, 0.666667)
    >>> affine_fit(pre, pre.abs(), weight=torch.tensor([[0.0], [1.0], [1.0]])).slope.item()
    1.0
    """
    check_pair(pre, post)
    if weight is None:
        return affine_fit_of_moments(Moments.of(pre, post))
    w = _normalized(weight, pre)
    pre, post = pre.detach(), post.detach()
    x, y = pre.double(), post.double()
    mean_x, mean_y = (w * x).sum(0), (w * y).sum(0)
    dx, dy = x - mean_x, y - mean_y
    var_x, var_y = (w * dx.square()).sum(0), (w * dy.square()).sum(0)
    constant_x = var_x.sqrt() <= torch.finfo(pre.dtype).eps * mean_x.abs()
    constant_y = var_y.sqrt() <= torch.finfo(post.dtype).eps * mean_y.abs()
    slope = ((w * dx * dy).sum(0) / var_x).masked_fill(constant_x | constant_y, 0.0)
    intercept = mean_y - slope * mean_x
    return AffineFit(slope, intercept, _residual(pre, post, w, slope, intercept))


def _derivative(function: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor) -> Tensor:
    """Column-wise derivative of a column-wise function at x (samples, neurons), by autograd if it has one."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        # An activation in place must not meet a leaf, hence the copy.
        value = function(leaf.clone())
        if value.requires_grad:
            gradient: Tensor | None
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
            if gradient is not None:
                return gradient
    step = torch.finfo(x.dtype).eps ** (1 / 3) * scale
    above, below = x + step, x - step
    with torch.no_grad():
        difference = function(above.clone()) - function(below.clone())
    slope: Tensor = difference / (above - below)
    return slope


def tangent_fit(function: Callable[[Tensor], Tensor], pre: Tensor, weight: Tensor | None = None) -> AffineFit:
    r"""Tangent of the activation at the mean of pre, neuron by neuron.

    $\lambda = \sigma'(\bar x)$, $\mu = \sigma(\bar x) - \lambda \bar x$: the affine map of a lifted layer
    whose pre values lie in one affine segment (000, Def. A.2). Preserved: value and derivative at the mean,
    not the mean of post.

    Args:
        function: the map from pre to post, (samples, neurons) to the same shape, where no entry depends on
            another. Where autograd finds no derivative, central differences are used.
        pre: input of the activation, shape (samples, neurons), any floating dtype.
        weight: weights of the mean and of the residual, as in `affine_fit`.

    Returns:
        The fit; NaN for neurons whose values are not finite.

    Raises:
        InputError: the shapes do not fit, a weight is negative, no sample, or not floating.

    >>> fit = tangent_fit(torch.tanh, torch.tensor([[-1.0], [1.0]]))
    >>> fit.slope.item(), fit.intercept.item()
    (1.0, 0.0)
    """
    pre = pre.detach()
    with torch.no_grad():
        post = function(pre.clone())
    check_pair(pre, post)
    w = _normalized(weight, pre)
    x = pre.double()
    mean_x = (w * x).sum(0)
    # As many rows as in the data: a recorded function may have their number built in.
    at_mean = mean_x.to(pre.dtype).expand_as(pre)
    scale = (w * x.square()).sum(0).sqrt().to(pre.dtype)
    slope = _derivative(function, at_mean, scale.where(scale != 0, 1.0)).double().mean(0)
    with torch.no_grad():
        value = function(at_mean.clone()).double().mean(0)
    intercept = value - slope * at_mean[0].double()
    return AffineFit(slope, intercept, _residual(pre, post, w, slope, intercept))
