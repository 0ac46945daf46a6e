"""Lifting the parameters of a network to those of a deeper one, and telling whether parameters are lifted ones."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators.lifting import lift_layer, merge_layers
from lightning_embed.operators.segments import Segment
from lightning_embed.operators.theta import Activation, Theta, features, from_vector, to_vector, widths_of


def lift(
    theta: Theta,
    after: int,
    inputs: Tensor,
    activation: Activation,
    segment: Segment,
    *,
    width: int | None = None,
    skip: bool = False,
    skips: Collection[int] = (),
) -> Theta:
    """Lift θ by one layer, inserted after layer q (000, Def. 4.2 and Lemma A.1; with `skip` Def. A.2).

    Layer q + 1 is factorised by `lift_layer`; all other layers are inherited. Several layers are inserted by lifting
    again: the composition is a multi-layer lifting.

    Preserved, where the segment is exact: the output on the inputs and in a neighbourhood of each (000, Props. 4.1 and
    A.4), the span of every original layer's features and the constant, criticality (000, Prop. 4.2), and at critical
    points the numbers of positive and negative Hessian eigenvalues. The features of an inserted layer lie in the span
    of layer q; they need not span it, if the layer is narrower (000 prints an equality). On a segment of error δ the
    output changes by at most ‖W'^{q+1}‖ √width δ at the next layer's input.

    Args:
        theta: The shallow network's parameters.
        after: q, from 0 (the input) to L - 1.
        inputs: S_x, shape (samples, m_0).
        activation: σ.
        segment: Where σ is affine.
        width: Neurons to insert; the least number, min(m_q, m_{q+1}), if None. With `skip` it is m_q.
        skip: Whether a skip connection runs around the inserted layer.
        skips: The hidden layers of the shallow network around which one runs; not q + 1, whose skip connection would
            begin at the inserted layer from then on.

    Returns:
        The deep network's parameters; the inserted layer is q + 1.

    Raises:
        InputError: If there is no such layer, a skip connection begins at it, or `lift_layer` refuses.

    Example:
        >>> theta = ((torch.tensor([[1.0]]), torch.zeros(1)), (torch.tensor([[3.0]]), torch.zeros(1)))
        >>> deep = lift(theta, 1, torch.tensor([[0.0], [2.0]]), torch.relu, Segment(0.0, float("inf"), 1.0, 0.0))
        >>> [part.tolist() for layer in deep for part in layer]
        [[[1.0]], [0.0], [[3.0]], [3.0], [[1.0]], [-3.0]]
    """
    widths_of(theta)
    if not 0 <= after < len(theta):
        raise InputError(f"after must be a layer in 0..{len(theta) - 1}, not {after}")
    if after + 1 in skips:
        raise InputError(f"the skip connection around layer {after + 1} begins at layer {after}; insert elsewhere")
    weight, bias = theta[after]
    w1, b1, w2, b2 = lift_layer(
        weight,
        bias,
        features(theta, inputs, activation, skips)[after],
        segment=(segment.low, segment.high),
        slope=segment.slope,
        intercept=segment.intercept,
        width=width,
        skip=skip,
    )
    return (*theta[:after], (w1, b1), (w2, b2), *theta[after + 1 :])


def lifted_from(
    theta: Theta,
    layer: int,
    inputs: Tensor,
    activation: Activation,
    segments: Sequence[Segment],
    *,
    risk: Callable[[Theta], Tensor] | None = None,
    tolerance: float = 1e-9,
    skips: Collection[int] = (),
) -> Theta | None:
    """Tell whether θ is lifted at a layer, and from which shallower parameters (000, Def. 4.2).

    It is, iff every neuron of the layer has all its pre values in one segment of non-zero slope and the layer is no
    narrower than Def. 3.1 asks. A *lifted critical point* is one whose merged parameters are critical besides (000,
    Remark 5.1); that the deep point is critical does not imply it, if the layer's factors lack rank. An MPC of 1, which
    the remark names, is necessary and not sufficient: two distinct pre values always correlate perfectly.

    Args:
        theta: The deep network's parameters.
        layer: The hidden layer, in 1..L-1.
        inputs: S_x, shape (samples, m_0).
        activation: σ.
        segments: The segments on which σ is affine, of non-zero slope; of `affine_segments`.
        risk: θ ↦ R_S(θ) of the shallower network, differentiable; if given, the merged parameters must be critical.
        tolerance: The largest absolute gradient entry that counts as zero, in units of the risk.
        skips: The hidden layers of the deep network around which a skip connection runs.

    Returns:
        The merged parameters θ' with θ ∈ T_S(θ'), or None if θ is not lifted at this layer.

    Raises:
        InputError: If there is no such hidden layer.

    Example:
        >>> theta = ((torch.tensor([[1.0]]), torch.ones(1)), (torch.tensor([[2.0]]), torch.zeros(1)))
        >>> relu = [Segment(0.0, float("inf"), 1.0, 0.0)]
        >>> lifted_from(theta, 1, torch.tensor([[0.0], [1.0]]), torch.relu, relu)
        ((tensor([[2.]]), tensor([2.])),)
        >>> lifted_from(theta, 1, torch.tensor([[-2.0], [1.0]]), torch.relu, relu) is None
        True
    """
    widths = widths_of(theta)
    if not 0 < layer < len(theta):
        raise InputError(f"layer must be a hidden layer, in 1..{len(theta) - 1}, not {layer}")
    (w1, b1), (w2, b2) = theta[layer - 1], theta[layer]
    before = features(theta, inputs, activation, skips)[layer - 1]
    slope, intercept = torch.zeros_like(b1), torch.zeros_like(b1)
    for segment in segments:
        inside = segment.holds(before @ w1.T + b1)
        slope[inside], intercept[inside] = segment.slope, segment.intercept
    if not slope.all() or widths[layer] < min(widths[layer - 1], widths[layer + 1]):
        return None
    weight, bias = merge_layers(w1, b1, w2, b2, slope, intercept, skip=layer in skips)
    assert bias is not None
    merged = (*theta[: layer - 1], (weight, bias), *theta[layer + 1 :])
    if risk is not None and float(_gradient(risk, merged).abs().max()) > tolerance:
        return None
    return merged


def _gradient(risk: Callable[[Theta], Tensor], theta: Theta) -> Tensor:
    vector = to_vector(theta).detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(risk(from_vector(vector, widths_of(theta))), vector)[0]
