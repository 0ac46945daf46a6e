"""Adding neurons that compute nothing, and its inverse: dropping neurons whose feature is constant."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators import _checks as checks


def add_null_neurons(
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    count: int,
    *,
    bias: Tensor | None = None,
    input_weights: Tensor | None = None,
    output_weights: Tensor | None = None,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Append neurons that leave the output as it was.

    Without `input_weights` and `output_weights` this is the one-step null embedding, `count` times: zero
    input and output weights and any bias α (001, Def. 4.3). Each new neuron may instead have

    - any output weights u, its input weights being zero: its feature is the constant v = σ(α), and the
      output bias becomes b_out - u v (001, Condition 2 of Def. 5.2), or
    - any input weights, its output weights being zero.

    Preserved: the output for every input, always. Criticality only if both are zero (001, Thm. 4.1), the
    span of the features and the constant only if the input weights are zero.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        b_out: Output bias, shape (fan_out,), or None.
        count: Number of neurons to append.
        bias: The new neurons' biases α, shape (count,); zeros if None. Must be None if `b_in` is.
        input_weights: Shape (count, fan_in); zeros if None.
        output_weights: The weights u, shape (fan_out, count); zeros if None.
        values: The activation's values σ(α), shape (count,). Needed with `output_weights` only, because the
            operators know no activation.

    Returns:
        (w_in, b_in, w_out, b_out) of the layer of width + count neurons. New tensors of the given types; an
        output bias is added if there was none and u v is not exactly zero.

    Raises:
        InputError: If shapes do not agree, values are not finite, `count` is not positive, a new neuron has
            both input and output weights, `values` is missing, or there is a bias without `b_in`.

    Example:
        A new neuron of output weight 5 and the constant value 2 takes 10 from the output bias.

        >>> one = torch.ones(1, 1)
        >>> wide = add_null_neurons(
        ...     one, None, one, None, 1, output_weights=torch.tensor([[5.0]]), values=torch.tensor([2.0])
        ... )
        >>> [None if tensor is None else tensor.tolist() for tensor in wide]
        [[[1.0], [0.0]], None, [[1.0, 5.0]], [-10.0]]
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out)
    rows = checks.matrix("w_in", w_in)
    width, fan_in = rows.shape
    columns = checks.matrix("w_out", w_out, columns=width)
    old_bias = checks.bias("b_in", b_in, rows)
    offset = checks.bias("b_out", b_out, columns)
    if count < 1:
        raise InputError(f"count must be at least 1, not {count}")
    if b_in is None and bias is not None:
        raise InputError("bias was given but the layer has no b_in; give zeros as b_in to add one")
    if output_weights is not None and values is None:
        raise InputError("values is needed with output_weights: give the activation's values at the new biases")

    new_bias = _given_or_zeros("bias", bias, (count,), rows)
    new_rows = _given_or_zeros("input_weights", input_weights, (count, fan_in), rows)
    new_columns = _given_or_zeros("output_weights", output_weights, (columns.shape[0], count), columns)
    constants = _given_or_zeros("values", values, (count,), columns)
    both = (new_rows.any(dim=1) & new_columns.any(dim=0)).nonzero().flatten().tolist()
    if both:
        raise InputError(f"new neurons {both} have input_weights and output_weights; set one of them to zero")
    return (
        checks.back("the widened input weights", torch.cat([rows, new_rows]), w_in),
        None if b_in is None else checks.back("the widened bias", torch.cat([old_bias, new_bias]), b_in),
        checks.back("the widened output weights", torch.cat([columns, new_columns], dim=1), w_out),
        checks.back_bias(offset - new_columns @ constants, b_out, w_out),
    )


def _given_or_zeros(name: str, value: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if value is None:
        return like.new_zeros(shape)
    checked = (
        checks.vector(name, value, *shape)
        if len(shape) == 1
        else checks.matrix(name, value, rows=shape[0], columns=shape[1])
    )
    return checked.to(like.device)


def drop_null_neurons(
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    neurons: Sequence[int],
    values: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Drop neurons whose feature is constant on the data, and move what they added into the output bias.

    With N the dropped neurons and v their constant features, b_out becomes b_out + W_out[:, N] v: the
    inverse of `add_null_neurons` (001, Def. 4.3 and Condition 2 of Def. 5.2).

    Preserved: the output wherever the features of N are v, so everywhere if their input weights are zero,
    else on the data only; and everywhere if their output weights are zero, whatever `values` says.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        b_out: Output bias, shape (fan_out,), or None.
        neurons: The neurons N to drop.
        values: Their constant features v, shape (len(neurons),), in the order of `neurons`.

    Returns:
        (w_in, b_in, w_out, b_out) of the layer of width - len(neurons) neurons. New tensors of the given
        types; an output bias is added if there was none and W_out[:, N] v is not exactly zero.

    Raises:
        InputError: If shapes do not agree, values are not finite, a neuron does not exist or is named
            twice, or no neuron would be left.

    Example:
        >>> w_out = torch.tensor([[1.0, 5.0]])
        >>> narrow = drop_null_neurons(torch.ones(2, 1), None, w_out, None, [1], torch.tensor([2.0]))
        >>> [None if tensor is None else tensor.tolist() for tensor in narrow]
        [[[1.0]], None, [[1.0]], [10.0]]
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out)
    rows = checks.matrix("w_in", w_in)
    width = rows.shape[0]
    columns = checks.matrix("w_out", w_out, columns=width)
    checks.bias("b_in", b_in, rows)
    offset = checks.bias("b_out", b_out, columns)
    neurons = checks.indices("neurons", neurons, width)
    constants = checks.vector("values", values, len(neurons)).to(columns.device)
    if len(neurons) == width:
        raise InputError("neurons names the whole layer; remove it with merge_layers and a slope of zero instead")
    kept = [neuron for neuron in range(width) if neuron not in set(neurons)]
    return (
        w_in[kept],
        None if b_in is None else b_in[kept],
        w_out[:, kept],
        checks.back_bias(offset + columns[:, neurons] @ constants, b_out, w_out),
    )
