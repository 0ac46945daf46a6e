"""From near critical points onto them, for many points at once; and which of them only run away."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from lightning_embed.analysis.risk import Risk

CRITICAL = 1e-12  # L1 norm of the gradient, at most, at a polished point
NEAR = 1e-8  # the same, where Newton steps take over from damped ones
DAMPED_STEPS = 300
NEWTON_STEPS = 20
ROUNDING = 1e-11  # of the largest eigenvalue: steps along smaller ones would be noise
FAR = 0.5  # of the norm of a start plus 1: how far polishing may come along zero eigenvalues


def gradient_sizes(risk: Risk, points: Tensor) -> Tensor:
    """L1 norms of the gradients at points of shape (points, parameters); shape (points,)."""
    return risk.gradients(points).abs().sum(dim=1)


def polish(risk: Risk, points: Tensor) -> Tensor:
    """Damped and then plain Newton steps on ∇R = 0, for every point.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64.

    Returns:
        The points after the steps; whether they are critical points is for `gradient_sizes` and `runs_away` to say.
    """
    return newton(risk, levenberg_marquardt(risk, points))


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


def levenberg_marquardt(risk: Risk, points: Tensor) -> Tensor:
    r"""Damped Newton steps on ∇R = 0, for every point with a damping of its own.

    The step minimises $\|H s + \nabla R\|^2 + \mu \|s\|^2$: $s = -Q\,\lambda/(\lambda^2+\mu)\,Q^\top \nabla R$ for
    $H = Q \lambda Q^\top$. It is taken, and μ divided by 4, where it shrinks the gradient's L2 norm; else μ grows
    fourfold. Unlike descent it comes to rest at critical points of every index, saddle points too. MINPACK, through
    scipy, scales by the columns of H instead and leaps from beside a saddle point along its zero eigenvalues.

    Args:
        risk: the risk.
        points: shape (points, parameters), float64.

    Returns:
        The points after the steps. Each rests as soon as the L1 norm of its gradient is at most `NEAR`: further damped
        steps would drift along the zero eigenvalues, whose rounding they take for curvature.
    """
    gradients = risk.gradients(points)
    damping = gradients.square().sum(dim=1, keepdim=True)
    for _ in range(DAMPED_STEPS):
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


def runs_away(risk: Risk, starts: Tensor, points: Tensor) -> Tensor:
    """Whether polished points are on a way to infinity, along which the gradient vanishes, and at no critical points.

    There the Hessian vanishes along the way too. So it is told by how far a point has come along the zero eigenvalues
    that it has at the end: polishing goes straight to a degenerate set of critical points, and not along it.

    Args:
        risk: the risk.
        starts: the points before they were polished, shape (points, parameters).
        points: the points after.

    Returns:
        One truth value a point.
    """
    values, vectors = torch.linalg.eigh(vmap(risk.hessian)(points))
    before = torch.linalg.eigvalsh(vmap(risk.hessian)(starts))
    scale = torch.cat([values, before], dim=1).abs().amax(dim=1, keepdim=True)
    along = (vectors.mT @ (points - starts)[:, :, None])[:, :, 0]
    flat = torch.where(values.abs() <= ROUNDING * scale, along, 0.0)
    result: Tensor = flat.norm(dim=1) > FAR * (1 + starts.norm(dim=1))
    return result
