"""Lifting a Linear to two with an activation between them, and its inverse: merging two Linears."""

import math

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators import _checks as checks


def lift_layer(
    w: Tensor,
    b: Tensor | None,
    inputs: Tensor,
    *,
    segment: tuple[float, float],
    slope: float,
    intercept: float,
    width: int | None = None,
    skip: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Insert a hidden layer that acts affinely on the given inputs into a Linear.

    The activation is σ(x) = λ x + μ on the open interval `segment`. The new weights satisfy the layer
    linearization condition and the output preserving condition (000, Def. 4.2 and eq. 4.2)

        W2 λ W1 = W,    W2 (λ b1 + μ) + b2 = b,

    by the construction of 000, Lemma A.1: (W1, W2) is (ζ W, I / λζ) if the Linear does not widen, else
    (ζ I, W / λζ); b1 moves the data into the segment. Further neurons have zero weights and a bias inside
    the segment. With `skip` the inserted layer is h + σ(W1 h + b1) and W2 (λ W1 + I) = W (000, Def. A.2):
    W1 = ±ζ I and W2 = W / (1 + |λ| ζ), the sign being that of λ, so that the divisor is never zero.
    ζ ≤ 1 is chosen such that the data fill at most the middle half of a bounded segment.

    Preserved: the output on `inputs` and on what stays in the segment with them, up to rounding; there also
    criticality, and at critical points the numbers of positive and negative Hessian eigenvalues (000, Props.
    4.2 and 4.3). Not preserved: the output on inputs that leave the segment.

    Args:
        w: The Linear's weight, shape (fan_out, fan_in).
        b: Its bias, shape (fan_out,), or None.
        inputs: What the Linear is given, shape (samples, fan_in).
        segment: The ends (low, high) of the interval on which the activation is affine; may be infinite.
        slope: The activation's slope λ there, not zero.
        intercept: Its value μ at zero if continued affinely.
        width: Neurons to insert, at least min(fan_in, fan_out), which is the default. With `skip` it can only
            be fan_in.
        skip: Whether a skip connection runs around the inserted Linear and its activation.

    Returns:
        (w1, b1, w2, b2), shapes (width, fan_in), (width,), (fan_out, width), (fan_out,), of the type of `w`.

    Raises:
        InputError: If shapes do not agree, values are not finite, there are no inputs, the segment is empty
            or its slope zero, the width is too small, or the type of `w` is too coarse to keep the data in
            the segment.

    Example:
        Under ReLU, x on [0, 4] is moved to [2, 6], where ReLU is the identity.

        >>> x = torch.tensor([[0.0], [4.0]])
        >>> relu = {"segment": (0.0, math.inf), "slope": 1.0, "intercept": 0.0}
        >>> w1, b1, w2, b2 = lift_layer(torch.ones(1, 1), None, x, **relu)
        >>> w1.tolist(), b1.tolist(), w2.tolist(), b2.tolist()
        ([[1.0]], [2.0], [[1.0]], [-2.0])
    """
    checks.same_device(w=w, b=b, inputs=inputs)
    weight = checks.matrix("w", w)
    fan_out, fan_in = weight.shape
    offset = checks.bias("b", b, weight)
    data = checks.matrix("inputs", inputs, columns=fan_in)
    if len(data) == 0:
        raise InputError("inputs holds no sample; give those on which the output must be preserved")
    _check_segment(segment, slope, intercept)
    width = _inserted_width(width, fan_in, fan_out, skip=skip)

    identity = torch.eye(fan_in, dtype=torch.float64, device=weight.device)
    if skip:
        base, base_bias = math.copysign(1.0, slope) * identity, data.new_zeros(fan_in)
    elif fan_out <= fan_in:
        base, base_bias = weight, offset
    else:
        base, base_bias = identity, data.new_zeros(fan_in)
    reached = data @ base.T + base_bias
    # Data that hardly vary beside their size keep a distance from the segment's ends that outweighs rounding.
    extent = max(float(reached.max() - reached.min()), float(reached.abs().max()) / 100) or 1.0
    zeta, start, centre = _scale_into(segment, extent)

    w1 = data.new_zeros(width, fan_in)
    b1 = data.new_full((width,), centre)
    w2 = data.new_zeros(fan_out, width)
    w1[: len(base)] = zeta * base
    b1[: len(base)] = zeta * (base_bias - reached.min()) + start
    if skip:
        w2[:] = weight / (1 + abs(slope) * zeta)
    elif fan_out <= fan_in:
        w2[:, :fan_out] = torch.eye(fan_out, dtype=torch.float64, device=weight.device) / (slope * zeta)
    else:
        w2[:, :fan_in] = weight / (slope * zeta)

    first, first_bias = checks.back("the lifted w1", w1, w), checks.back("the lifted b1", b1, w)
    second = checks.back("the lifted w2", w2, w)
    # The last bias closes the balance for the weights as they were rounded.
    b2 = offset - second.double() @ (slope * first_bias.double() + intercept)
    # As the layer itself will compute it, rounding included.
    pre = inputs.to(w.dtype) @ first.T + first_bias
    if not ((pre > segment[0]) & (pre < segment[1])).all():
        raise InputError(f"{w.dtype} is too coarse to move inputs into the segment {segment}; use float64")
    return first, first_bias, second, checks.back("the lifted b2", b2, w)


def _check_segment(segment: tuple[float, float], slope: float, intercept: float) -> None:
    low, high = segment
    if not low < high:
        raise InputError(f"segment must be (low, high) with low < high, not {segment}")
    if slope == 0 or not math.isfinite(slope):
        raise InputError(f"slope must be finite and not zero, not {slope}; choose a segment that is not flat")
    if not math.isfinite(intercept):
        raise InputError(f"intercept must be finite, not {intercept}")


def _inserted_width(width: int | None, fan_in: int, fan_out: int, *, skip: bool) -> int:
    least = fan_in if skip else min(fan_in, fan_out)
    if width is None:
        return least
    if skip and width != fan_in:
        raise InputError(f"width must be fan_in = {fan_in} with skip=True, because the skip adds them, not {width}")
    if width < least:
        raise InputError(f"width must be at least min(fan_in, fan_out) = {least}, not {width}")
    return width


def _scale_into(segment: tuple[float, float], extent: float) -> tuple[float, float, float]:
    """Give ζ, and the lower end and the middle of where it puts data of that extent in the segment."""
    low, high = segment
    if math.isfinite(low) and math.isfinite(high):
        zeta, centre = min(1.0, (high - low) / 2 / extent), low / 2 + high / 2
    elif math.isfinite(low):
        zeta, centre = 1.0, low + extent
    elif math.isfinite(high):
        zeta, centre = 1.0, high - extent
    else:
        zeta, centre = 1.0, 0.0
    return zeta, centre - zeta * extent / 2, centre


def merge_layers(
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    slope: Tensor,
    intercept: Tensor,
    *,
    skip: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Merge two Linears whose activation acts affinely on the data into one.

    If the features are σ(z) = λ z + μ for z = W1 h + b1, then (000, eq. 4.2; with a skip connection around
    the first Linear and its activation, h + σ(W1 h + b1), 000, Def. A.2)

        W = W2 diag(λ) W1  (+ W2 with skip),    b = W2 (λ b1 + μ) + b2.

    This inverts `lift_layer`. Preserved: the output wherever the activation acts as λ z + μ; elsewhere the
    error is W2 times the activation's deviation from it. Merging gives a critical point from one only where
    λ and μ are the activation's own on an open segment around the data.

    Args:
        w1: The first Linear's weight, shape (width, fan_in).
        b1: Its bias, shape (width,), or None.
        w2: The second Linear's weight, shape (fan_out, width).
        b2: Its bias, shape (fan_out,), or None.
        slope: λ, shape (width,), dimensionless; zero where a neuron is constant.
        intercept: μ, shape (width,), in units of the features.
        skip: Whether a skip connection runs around the first Linear and its activation; then width = fan_in.

    Returns:
        (w, b), shapes (fan_out, fan_in) and (fan_out,), of the types of `w2` and `b2`; b is None if `b2` is
        and nothing other than exact zeros would stand in it.

    Raises:
        InputError: If shapes do not agree or values are not finite.

    Example:
        >>> w1, w2 = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0, 10.0]])
        >>> w, b = merge_layers(w1, None, w2, None, torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.1]))
        >>> w.tolist(), b.tolist()
        ([[17.0]], [1.0])
    """
    checks.same_device(w1=w1, b1=b1, w2=w2, b2=b2)
    first = checks.matrix("w1", w1)
    width, fan_in = first.shape
    second = checks.matrix("w2", w2, columns=width)
    first_bias, second_bias = checks.bias("b1", b1, first), checks.bias("b2", b2, second)
    slope = checks.vector("slope", slope, width).to(first.device)
    intercept = checks.vector("intercept", intercept, width).to(first.device)
    if skip and width != fan_in:
        raise InputError(
            f"w1 must be square with skip=True, because the skip adds it to its input, not {(width, fan_in)}"
        )
    merged = second @ (slope[:, None] * first)
    if skip:
        merged = merged + second
    bias = second @ (slope * first_bias + intercept) + second_bias
    return checks.back("the merged weight", merged, w2), checks.back_bias(bias, b2, w2)
