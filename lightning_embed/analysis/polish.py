"""From near a critical point onto it, for many points at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from lightning_embed.analysis.risk import Risk

NEWTON_STEPS = 20
ROUNDING = 1e-11  # of the largest eigenvalue: Newton steps along smaller ones would be noise


def gradient_sizes(risk: Risk, points: Tensor) -> Tensor:
    """L1 norms of the gradients, shape (points,); see `lightning_embed.statistics.gradient_l1`."""
    gradients: Tensor = vmap(risk.gradient)(points)
    return gradients.abs().sum(dim=1)


def newton(risk: Risk, points: Tensor) -> Tensor:
    """Newton steps of least norm, θ - H⁺∇R, for every point as long as they shrink its gradient.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64, near critical points.

    Returns:
        The points after the steps, none with a larger L1 gradient than before.
    """
    sizes = gradient_sizes(risk, points)
    for _ in range(NEWTON_STEPS):
        hessians, gradients = vmap(risk.hessian)(points), vmap(risk.gradient)(points)
        steps = torch.linalg.lstsq(hessians, gradients[:, :, None], rcond=ROUNDING, driver="gelsd").solution[:, :, 0]
        moved = points - steps
        moved_sizes = gradient_sizes(risk, moved)
        better = moved_sizes < sizes
        if not better.any():
            break
        points = torch.where(better[:, None], moved, points)
        sizes = torch.where(better, moved_sizes, sizes)
    return points


def levenberg_marquardt(risk: Risk, points: Tensor, steps: int) -> Tensor:
    r"""Damped Newton steps on ∇R = 0, for every point with a damping of its own.

    The step minimises $\|H s + \nabla R\|^2 + \mu \|s\|^2$: $s = -Q\,\lambda/(\lambda^2+\mu)\,Q^\top \nabla R$ for
    $H = Q \lambda Q^\top$. It is taken, and μ divided by 4, where it shrinks the gradient's L2 norm; else μ grows
    fourfold. Unlike descent it comes to rest at critical points of every index, saddles too.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64.
        steps: how many steps to try.

    Returns:
        The points after the steps.
    """
    gradients = vmap(risk.gradient)(points)
    damping = gradients.norm(dim=1, keepdim=True) ** 2
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(vmap(risk.hessian)(points))
        along = (vectors.mT @ gradients[:, :, None])[:, :, 0] * values / (values**2 + damping)
        moved = points - (vectors @ along[:, :, None])[:, :, 0]
        moved_gradients = vmap(risk.gradient)(moved)
        better = moved_gradients.norm(dim=1, keepdim=True) < gradients.norm(dim=1, keepdim=True)
        points = torch.where(better, moved, points)
        gradients = torch.where(better, moved_gradients, gradients)
        damping = torch.where(better, damping / 4, damping * 4)
    return points
