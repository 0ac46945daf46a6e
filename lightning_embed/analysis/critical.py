"""Find a critical point: descend, take the best candidate, polish it, refuse what runs away."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.analysis.polish import CRITICAL, gradient_sizes, polish, runs_away
from lightning_embed.analysis.risk import Data, Loss, Risk
from lightning_embed.errors import InputError


@dataclass(frozen=True)
class CriticalPoint:
    """A critical point and the way to it.

    Attributes:
        model: a copy of the model at the point, in float64.
        loss: the risk there.
        gradient: L1 norm of the gradient there.
        step: the step of the descent that gave the candidate; 0 is the model as given. Of `find_critical_points` the
            number of the start.
        candidate_gradient: L1 norm of the gradient at the candidate.
        moved: Euclidean distance from the candidate to the point.
    """

    model: nn.Module
    loss: float
    gradient: float
    step: int
    candidate_gradient: float
    moved: float


def find_critical_point(
    model: nn.Module, loss: Loss, data: Data, *, steps: int = 10_000, rate: float = 0.01
) -> CriticalPoint:
    r"""Find a critical point of the empirical risk near a gradient descent from the model's weights.

    Full-batch gradient descent in float64; its point of the least $\|\nabla R_S\|_1$ is the candidate (000, App. C
    (1)), for descent is slow exactly where the gradient is small. It is polished by Levenberg-Marquardt steps on
    ∇R_S(θ) = 0 and Newton steps of least norm, θ - H⁺∇R_S, which go to a saddle point as well as to a minimum.

    Args:
        model: any module that maps the inputs to one tensor; not changed, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.
        steps: of the descent; 0 polishes the model's own weights.
        rate: learning rate of the descent.

    Returns:
        The point, with ‖∇R_S‖₁ ≤ `CRITICAL`.

    Raises:
        InputError: the data or the loss cannot be used (see `Risk`), the descent diverges, the gradient does not
            vanish, or the point runs away: the loss may decrease towards infinity, where small gradients are no
            critical points.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> point = find_critical_point(nn.Linear(1, 1), nn.MSELoss(), (x, 3 * x + 1), steps=10)
    >>> [round(value.item(), 9) for value in point.model.parameters()]
    [3.0, 1.0]
    """
    risk = Risk(model, loss, data)
    candidate, step = _descend(risk, steps, rate)
    point = polish(risk, candidate[None])[0]
    before, after = gradient_sizes(risk, torch.stack([candidate, point])).tolist()
    grown = f"the norm of the parameters went from {candidate.norm():.3g} to {point.norm():.3g}"
    if not after <= CRITICAL:
        raise InputError(
            f"no critical point found: the L1 norm of the gradient went from {before:.1e} (step {step}) to "
            f"{after:.1e}, above {CRITICAL:.0e}, and {grown}. If they grew, the loss may fall towards infinity; else "
            "train longer (steps=), or start from other weights"
        )
    if runs_away(risk, candidate[None], point[None]).item():
        raise InputError(
            f"the point runs away: {grown}, along directions without curvature. The loss falls towards "
            "infinity and has no critical point here; start from other weights, or change the data or the loss"
        )
    moved = float((point - candidate).norm())
    return CriticalPoint(risk.module(point), risk.value(point).item(), after, step, before, moved)


def find_critical_points(
    model: nn.Module, loss: Loss, data: Data, *, starts: int = 100, spread: float = 1.0, seed: int = 0
) -> tuple[CriticalPoint, ...]:
    """Polish many random points at once, with no descent before, and keep those that arrive at a critical point.

    Descent from small weights ends at few critical points, and where the loss falls towards infinity at none. Damped
    Newton steps on ∇R_S = 0 go to critical points of every index, and from normal random weights some arrive.

    Args:
        model: any module that maps the inputs to one tensor; only its architecture counts. Not changed, and run in
            eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.
        starts: how many points to start from.
        spread: standard deviation of their entries.
        seed: of the starts.

    Returns:
        The points with ‖∇R_S‖₁ ≤ `CRITICAL` that do not run away, by increasing loss; maybe none. `step` is the number
        of the start. Different starts may arrive at one point, or at the same up to a symmetry.

    Raises:
        InputError: the data or the loss cannot be used (see `Risk`), or starts is not positive.

    The loss (a w - 1)² has the saddle point a = w = 0 beside its minima:

    >>> product = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> found = find_critical_points(product, nn.MSELoss(), (torch.ones(1, 1), torch.ones(1, 1)), starts=8)
    >>> sorted({round(point.loss, 9) for point in found})
    [0.0, 1.0]
    """
    if starts < 1:
        raise InputError(f"starts must be positive, not {starts}")
    risk = Risk(model, loss, data)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(starts, len(risk.point), dtype=torch.float64, generator=generator)
    begun = spread * normal.to(risk.point.device)
    ended = polish(risk, begun)
    before, after = gradient_sizes(risk, begun), gradient_sizes(risk, ended)
    kept = ((after <= CRITICAL) & ~runs_away(risk, begun, ended)).nonzero().flatten().tolist()
    points = [
        CriticalPoint(
            risk.module(ended[number]),
            risk.value(ended[number]).item(),
            after[number].item(),
            number,
            before[number].item(),
            float((ended[number] - begun[number]).norm()),
        )
        for number in kept
    ]
    return tuple(sorted(points, key=lambda point: point.loss))


def _descend(risk: Risk, steps: int, rate: float) -> tuple[Tensor, int]:
    """The point of the least L1 gradient of a gradient descent, and its step."""
    point = risk.point
    best, best_size, best_step = point, math.inf, 0
    for step in range(steps + 1):
        here = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(risk.value(here), here)
        size = gradient.abs().sum().item()
        if not math.isfinite(size):
            raise InputError(f"the descent diverged at step {step}; lower rate={rate}")
        if size < best_size:
            best, best_size, best_step = point, size, step
        point = point - rate * gradient
    return best, best_step
