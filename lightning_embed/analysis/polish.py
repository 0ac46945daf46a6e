"""From near critical points onto them, for many points at once; and which of them only run away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from lightning_embed.analysis.risk import Risk

CRITICAL = 1e-12  # L1 norm of the gradient, at most, at a polished point
NEAR = 1e-8  # the same, where Newton steps take over from damped ones
GROWTH = 0.01  # by which share a point may grow between the two
NEWTON_STEPS = 20
ROUNDING = 1e-11  # of the largest eigenvalue: Newton steps along smaller ones would be noise


def gradient_sizes(risk: Risk, points: Tensor) -> Tensor:
    """L1 norms of the gradients at points of shape (points, parameters); shape (points,)."""
    return risk.gradients(points).abs().sum(dim=1)


def newton(risk: Risk, points: Tensor) -> Tensor:
    """Newton steps of least norm, θ - H⁺∇R, for every point as long as they shrink its gradient.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64, near critical points.

    Returns:
        The points after the steps, none with a larger L1 gradient than before.
    """
    gradients = risk.gradients(points)
    for _ in range(NEWTON_STEPS):
        hessians = vmap(risk.hessian)(points)
        steps = torch.linalg.lstsq(hessians, gradients[:, :, None], rcond=ROUNDING, driver="gelsd").solution[:, :, 0]
        moved = points - steps
        moved_gradients = risk.gradients(moved)
        better = moved_gradients.abs().sum(1, keepdim=True) < gradients.abs().sum(1, keepdim=True)
        if not better.any():
            break
        points = torch.where(better, moved, points)
        gradients = torch.where(better, moved_gradients, gradients)
    return points


def levenberg_marquardt(risk: Risk, points: Tensor, steps: int) -> Tensor:
    r"""Damped Newton steps on ∇R = 0, for every point with a damping of its own.

    The step minimises $\|H s + \nabla R\|^2 + \mu \|s\|^2$: $s = -Q\,\lambda/(\lambda^2+\mu)\,Q^\top \nabla R$ for
    $H = Q \lambda Q^\top$. It is taken, and μ divided by 4, where it shrinks the gradient's L2 norm; else μ grows
    fourfold. Unlike descent it comes to rest at critical points of every index, saddle points too.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64.
        steps: how many steps to try.

    Returns:
        The points after the steps. Each rests as soon as the L1 norm of its gradient is at most `NEAR`: further damped
        steps would drift along the zero eigenvalues, whose rounding they take for curvature.
    """
    gradients = risk.gradients(points)
    damping = gradients.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        values, vectors = torch.linalg.eigh(vmap(risk.hessian)(points))
        along = (vectors.mT @ gradients[:, :, None])[:, :, 0] * values / (values.square() + damping)
        moved = points - (vectors @ along[:, :, None])[:, :, 0]
        moved_gradients = risk.gradients(moved)
        far = gradients.abs().sum(dim=1, keepdim=True) > NEAR
        if not far.any():
            break
        better = far & (moved_gradients.norm(dim=1, keepdim=True) < gradients.norm(dim=1, keepdim=True))
        points = torch.where(better, moved, points)
        gradients = torch.where(better, moved_gradients, gradients)
        damping = torch.where(better, damping / 4, damping * 4)
    return points


def runs_away(points: Tensor, early: Tensor) -> Tensor:
    """Whether points are on a way to infinity, along which the gradient vanishes, instead of at critical points.

    On such a way the parameters grow by the same share for every further factor by which the gradient falls; a
    critical point no longer moves.

    Args:
        points: where the gradient is at most `CRITICAL`, shape (points, parameters).
        early: the same points when it had fallen to `NEAR`.

    Returns:
        One truth value a point.

    >>> runs_away(torch.tensor([[28.0], [3.0]]), torch.tensor([[19.0], [3.0]])).tolist()
    [True, False]
    """
    size, before, moved = (vectors.norm(dim=1) for vectors in (points, early, points - early))
    result: Tensor = (size > before) & (moved > GROWTH * size)
    return result
