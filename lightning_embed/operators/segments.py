"""Where an activation is affine: exactly, or nearly and by how much it is not."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.operators.theta import Activation

_SELU_SCALE = 1.0507009873554804934193349852946  # by which torch's SELU multiplies


@dataclass(frozen=True)
class Segment:
    """An open interval on which σ(x) = slope · x + intercept (an affine subdomain, 000, Def. 4.1).

    Attributes:
        low: lower end; may be -∞.
        high: upper end; may be ∞.
        slope: λ, not zero.
        intercept: μ, the value at zero if continued affinely.
        error: the largest |σ(x) - λ x - μ| on the interval; 0 where σ is affine.
    """

    low: float
    high: float
    slope: float
    intercept: float
    error: float = 0.0

    def holds(self, pre: Tensor) -> Tensor:
        """Tell of every neuron whether all its values lie in the segment.

        Args:
            pre: Shape (samples, neurons).

        Returns:
            Booleans, shape (neurons,).
        """
        return ((pre > self.low) & (pre < self.high)).all(dim=0)


def affine_segments(activation: nn.Module) -> tuple[Segment, ...]:
    """Give the segments of non-zero slope on which an activation is exactly affine.

    Args:
        activation: A module of torch.nn.

    Returns:
        The segments, the one around or above zero first; none for smooth activations (see `tangent_segment`) and for
        what is not known.

    Example:
        >>> affine_segments(nn.LeakyReLU(0.1))[1]
        Segment(low=-inf, high=0.0, slope=0.1, intercept=0.0, error=0.0)
        >>> affine_segments(nn.Tanh())
        ()
    """
    above = Segment(0.0, math.inf, 1.0, 0.0)
    match activation:
        case nn.Identity():
            return (Segment(-math.inf, math.inf, 1.0, 0.0),)
        case nn.ReLU() | nn.ELU() | nn.CELU():
            return (above,)
        case nn.SELU():
            return (Segment(0.0, math.inf, _SELU_SCALE, 0.0),)
        case nn.LeakyReLU():
            below = Segment(-math.inf, 0.0, activation.negative_slope, 0.0)
            return (above, below) if activation.negative_slope else (above,)
        case nn.Hardtanh():  # ReLU6 is one
            return (Segment(float(activation.min_val), float(activation.max_val), 1.0, 0.0),)
        case nn.Hardsigmoid():
            return (Segment(-3.0, 3.0, 1 / 6, 0.5),)
        case nn.Hardswish():
            return (Segment(3.0, math.inf, 1.0, 0.0),)
        case nn.Threshold():
            return (Segment(float(activation.threshold), math.inf, 1.0, 0.0),)
        case nn.Hardshrink() | nn.Softshrink():
            end = float(activation.lambd)
            shift = end if isinstance(activation, nn.Softshrink) else 0.0
            return (Segment(end, math.inf, 1.0, -shift), Segment(-math.inf, -end, 1.0, shift))
    return ()


def tangent_segment(activation: Activation, centre: float = 0.0, radius: float = 0.01) -> Segment:
    """Give the segment around a point on which a smooth activation is nearly its tangent (000, Remark 4.1).

    The error falls with the square of the radius, at a point of inflection with its cube.

    Args:
        activation: σ, smooth.
        centre: The point of contact.
        radius: Half the length of the interval.

    Returns:
        The segment, with the largest error on 1001 equally spaced points of it.

    Raises:
        InputError: If the radius is not positive, or σ is flat at the centre.

    Example:
        >>> segment = tangent_segment(torch.tanh, radius=0.1)
        >>> segment.slope, round(segment.error, 6)  # |x - tanh x| = x³ / 3 - …
        (1.0, 0.000332)
    """
    if not radius > 0:
        raise InputError(f"radius must be positive, not {radius}")
    point = torch.tensor(centre, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        value = activation(point)
        slope = float(torch.autograd.grad(value, point)[0])
    if abs(slope) < 1e-6:
        raise InputError(f"the activation is flat at {centre}; choose a centre where it has a slope")
    intercept = float(value.detach()) - slope * centre
    grid = torch.linspace(centre - radius, centre + radius, 1001, dtype=torch.float64)
    with torch.no_grad():
        error = float((activation(grid) - slope * grid - intercept).abs().max())
    return Segment(centre - radius, centre + radius, slope, intercept, error)
