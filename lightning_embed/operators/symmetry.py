"""Transforms that keep the network's size and function: the trivial critical transforms (002, A.1)."""

from collections.abc import Sequence

from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators import _checks as checks


def permute_neurons(
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, order: Sequence[int]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Put the neurons of a layer into another order; undone by the inverse order.

    Preserved, if the activation is the same for all neurons: the output, criticality, and the Hessian's spectrum.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        order: The old numbers of the neurons in their new order, every one once.

    Returns:
        (w_in, b_in, w_out), new tensors of the given types.

    Raises:
        InputError: If shapes do not agree, values are not finite, or the order is no permutation.

    Example:
        >>> import torch
        >>> permute_neurons(torch.tensor([[1.0], [2.0]]), None, torch.tensor([[3.0, 4.0]]), [1, 0])
        (tensor([[2.],
                [1.]]), None, tensor([[4., 3.]]))
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out)
    width = checks.matrix("w_in", w_in).shape[0]
    checks.matrix("w_out", w_out, columns=width)
    checks.bias("b_in", b_in, w_in)
    order = checks.indices("order", order, width)
    if len(order) != width:
        raise InputError(f"order must name all {width} neurons, not only {order}")
    return w_in[order], None if b_in is None else b_in[order], w_out[:, order]


def rescale_neuron(
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, neuron: int, beta: float, *, degree: float = 1.0
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Multiply a neuron's input weights and bias by β and its output weights by β^-p; undone by 1 / β.

    It is the transform S^β_{l,s} of 002, A.1 for a p-homogeneous activation, σ(β x) = β^p σ(x) for β > 0. The paper
    prints β ≠ 0; for β < 0 homogeneity says nothing, and ReLU shows that the output changes.

    Preserved: the output and criticality. Not preserved: the Hessian's spectrum; the orbit of β is a curve of equal
    risk, so each neuron with non-zero weights on both sides has one more zero eigenvalue at critical points.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        neuron: s, in 0..width-1.
        beta: β > 0, dimensionless.
        degree: p; 1 for ReLU and LeakyReLU, 2 for their squares.

    Returns:
        (w_in, b_in, w_out), new tensors of the given types.

    Raises:
        InputError: If shapes do not agree, values are not finite or too large for the type, the neuron does not
            exist, or β is not positive.

    Example:
        >>> import torch
        >>> rescale_neuron(torch.tensor([[1.0]]), torch.tensor([3.0]), torch.tensor([[4.0]]), 0, 2.0)
        (tensor([[2.]]), tensor([6.]), tensor([[2.]]))
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out)
    rows = checks.matrix("w_in", w_in)
    columns = checks.matrix("w_out", w_out, columns=rows.shape[0])
    offset = checks.bias("b_in", b_in, rows)
    (neuron,) = checks.indices("neuron", [neuron], rows.shape[0])
    if not 0 < beta < float("inf"):
        raise InputError(f"beta must be positive and finite, not {beta}: homogeneity holds for positive factors only")
    rows, columns, offset = rows.clone(), columns.clone(), offset.clone()
    rows[neuron] *= beta
    offset[neuron] *= beta
    columns[:, neuron] *= beta**-degree
    return (
        checks.back("the rescaled input weights", rows, w_in),
        None if b_in is None else checks.back("the rescaled bias", offset, b_in),
        checks.back("the rescaled output weights", columns, w_out),
    )
