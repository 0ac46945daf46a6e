"""The parameters θ = ((W¹, b¹), …, (Wᴸ, bᴸ)) of a fully-connected network as a plain value.

Layers count from 0, the input, to L, the output, as in the papers: layer l has the parameters `theta[l - 1]`, of
shapes (m_l, m_{l-1}) and (m_l,), and the hidden layers are 1..L-1. Neurons count from 0.
"""

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_embed.errors import InputError

Theta = tuple[tuple[Tensor, Tensor], ...]
Activation = Callable[[Tensor], Tensor]


def widths_of(theta: Theta) -> tuple[int, ...]:
    """Give the widths (m_0, …, m_L) of θ, and check that its layers fit each other.

    Args:
        theta: The parameters; the weight of layer l has shape (m_l, m_{l-1}), its bias (m_l,).

    Returns:
        The widths, the input's and the output's included.

    Raises:
        InputError: If there is no layer or one does not fit the one before; the message names it.

    Example:
        >>> widths_of(((torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(1, 3), torch.zeros(1))))
        (2, 3, 1)
    """
    if not theta:
        raise InputError("theta has no layer; give at least one pair (weight, bias)")
    widths = [theta[0][0].shape[-1]]
    for number, (weight, bias) in enumerate(theta, start=1):
        if weight.dim() != 2 or weight.shape[1] != widths[-1] or bias.shape != weight.shape[:1]:
            raise InputError(
                f"layer {number} of theta must have a weight of shape (m, {widths[-1]}) and a bias of shape (m,), "
                f"not {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        widths.append(len(bias))
    return tuple(widths)


def features(theta: Theta, x: Tensor, activation: Activation, skips: Collection[int] = ()) -> list[Tensor]:
    """Run a network and give what every layer computes: f⁰ = x, fˡ = σ(Wˡ fˡ⁻¹ + bˡ), fᴸ = Wᴸ fᴸ⁻¹ + bᴸ.

    A layer with a skip connection computes σ(Wˡ fˡ⁻¹ + bˡ) + fˡ⁻¹ instead (000, Section 3).

    Args:
        theta: The parameters.
        x: Inputs, shape (samples, m_0).
        activation: σ, elementwise, the same in all hidden layers.
        skips: The hidden layers around which a skip connection runs; they must be as wide as the layer before.

    Returns:
        f⁰ … fᴸ, of shapes (samples, m_l). Differentiable.

    Example:
        >>> theta = ((torch.tensor([[1.0], [-1.0]]), torch.zeros(2)), (torch.ones(1, 2), torch.ones(1)))
        >>> [f.tolist() for f in features(theta, torch.tensor([[3.0]]), torch.relu)]
        [[[3.0]], [[3.0, 0.0]], [[4.0]]]
    """
    found = [x]
    for number, (weight, bias) in enumerate(theta, start=1):
        pre = found[-1] @ weight.T + bias
        if number == len(theta):
            found.append(pre)
        else:
            found.append(activation(pre) + found[-1] if number in skips else activation(pre))
    return found


def network(theta: Theta, x: Tensor, activation: Activation, skips: Collection[int] = ()) -> Tensor:
    """Give the output f_θ(x) = fᴸ of a network; see `features`.

    Args:
        theta: The parameters.
        x: Inputs, shape (samples, m_0).
        activation: σ, elementwise.
        skips: The hidden layers around which a skip connection runs.

    Returns:
        The output, shape (samples, m_L). Differentiable.

    Example:
        >>> network(((torch.tensor([[2.0]]), torch.ones(1)),), torch.tensor([[3.0]]), torch.tanh).tolist()
        [[7.0]]
    """
    return features(theta, x, activation, skips)[-1]


def to_vector(theta: Theta) -> Tensor:
    """Write θ as one vector, layer after layer: the rows of the weight, then the bias.

    This is the order of `torch.nn.utils.parameters_to_vector` on an nn.Sequential of the same layers.

    Args:
        theta: The parameters.

    Returns:
        vec(θ), shape (M,) with M = Σ (m_{l-1} + 1) m_l. Differentiable.

    Example:
        >>> to_vector(((torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])),)).tolist()
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    return torch.cat([part.flatten() for layer in theta for part in layer])


def from_vector(vector: Tensor, widths: Sequence[int]) -> Theta:
    """Read θ from a vector; the inverse of `to_vector`.

    Args:
        vector: vec(θ), shape (M,).
        widths: (m_0, …, m_L).

    Returns:
        The parameters, as views of the vector. Differentiable.

    Raises:
        InputError: If the vector is not as long as the widths say.

    Example:
        >>> from_vector(torch.tensor([1.0, 2.0, 3.0]), (2, 1))
        ((tensor([[1., 2.]]), tensor([3.])),)
    """
    size = parameter_count(widths)
    if vector.shape != (size,):
        raise InputError(f"vector must have shape ({size},) for the widths {tuple(widths)}, not {tuple(vector.shape)}")
    layers, start = [], 0
    for fan_in, width in pairwise(widths):
        middle, end = start + width * fan_in, start + width * (fan_in + 1)
        layers.append((vector[start:middle].reshape(width, fan_in), vector[middle:end]))
        start = end
    return tuple(layers)


def parameter_count(widths: Sequence[int]) -> int:
    """Count the parameters of a network: M = Σ (m_{l-1} + 1) m_l.

    Args:
        widths: (m_0, …, m_L).

    Returns:
        M.

    Example:
        >>> parameter_count((2, 3, 1))
        13
    """
    return sum((fan_in + 1) * width for fan_in, width in pairwise(widths))
