"""Splitting a neuron into copies, and its inverse: merging neurons that compute the same feature."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators import _checks as checks


def split_neuron(
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, neuron: int, alpha: float | Sequence[float] | Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Split one neuron into copies that share its output weights.

    With shares α_1 + ... + α_K = 1 the neuron s becomes K neurons with the input weights and the bias of s
    and the output weights α_k W_out[:, s]. The first copy takes the place of s, the others follow at the
    end. Shares (1 - α, α) are the one-step splitting embedding T^α of 001, Def. 4.4 (004, Def. 5); more
    shares are its repetition (001, Def. 4.6).

    Preserved, if the activation is the same for all copies (parameters per neuron must be copied too): the
    output for every input, the set of features, and criticality (001, Thm. 4.1). Not preserved: the
    Hessian's spectrum.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        neuron: The neuron s to split, in 0..width-1.
        alpha: The shares α_k, at least two, of any sign, summing to 1; a number α means (1 - α, α).

    Returns:
        (w_in, b_in, w_out) of the layer of width + K - 1 neurons. New tensors of the given types.

    Raises:
        InputError: If shapes do not agree, values are not finite, the neuron does not exist, or the shares
            are fewer than two or do not sum to 1.

    Example:
        >>> w_in, b_in, w_out = split_neuron(torch.eye(2), None, torch.tensor([[3.0, 4.0]]), 1, 0.25)
        >>> w_in.tolist(), b_in, w_out.tolist()
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], None, [[3.0, 3.0, 1.0]])
    """
    width = checks.matrix("w_in", w_in).shape[0]
    (neuron,) = checks.indices("neuron", [neuron], width)
    shares = _shares(alpha)
    source = [*range(width), *[neuron] * (len(shares) - 1)]
    every = shares.new_ones(len(source))
    every[neuron], every[width:] = shares[0], shares[1:]
    return split_neurons(w_in, b_in, w_out, source, every)


def split_neurons(
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, source: Sequence[int], shares: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Split any neurons of a layer at once: the wide layer's neuron j is a copy of `source[j]` with the share α_j.

    Its input weights and bias are those of the original, its output weights α_j times the original's; the shares of
    all copies of a neuron sum to 1. This is the K-step composition of 001, Def. 4.6 within one layer, in any order of
    the neurons. What is preserved and what is not: as in `split_neuron`.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        source: For every neuron of the wide layer the neuron that it copies; each of 0..width-1 at least once.
        shares: α, shape (len(source),), of any sign.

    Returns:
        (w_in, b_in, w_out) of the layer of len(source) neurons. New tensors of the given types.

    Raises:
        InputError: If shapes do not agree, values are not finite, a neuron has no copy, or the shares of its copies
            do not sum to 1.

    Example:
        >>> wide = split_neurons(torch.ones(1, 1), None, torch.tensor([[8.0]]), [0, 0, 0], torch.tensor([2, 0.5, -1.5]))
        >>> wide[2].tolist()
        [[16.0, 4.0, -12.0]]
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out)
    rows = checks.matrix("w_in", w_in)
    columns = checks.matrix("w_out", w_out, columns=len(rows))
    checks.bias("b_in", b_in, rows)
    source = [int(neuron) for neuron in source]
    if set(source) != set(range(len(rows))):
        raise InputError(f"source must name every neuron of 0..{len(rows) - 1} and no other, not {source}")
    precision = shares.dtype
    shares = checks.vector("shares", shares, len(source)).to(columns.device)
    index = torch.tensor(source, device=columns.device)
    sums = shares.new_zeros(len(rows)).index_add(0, index, shares)
    # Shares of opposite sign cancel: their sum is as exact as the largest of them.
    terms = shares.new_zeros(len(rows)).index_add(0, index, shares.abs())
    resolution = 16 * torch.bincount(index) * torch.finfo(precision).eps * terms
    wrong = ((sums - 1).abs() > resolution).nonzero().flatten().tolist()
    if wrong:
        total = float(sums[wrong[0]])
        raise InputError(
            f"the shares of the copies of neuron {wrong[0]} must sum to 1, not to {total!r}; divide them by their sum"
        )
    return (
        w_in[source],
        None if b_in is None else b_in[source],
        checks.back("the split output weights", columns[:, source] * shares, w_out),
    )


def _shares(alpha: float | Sequence[float] | Tensor) -> Tensor:
    if isinstance(alpha, Tensor) and alpha.is_floating_point():
        shares = alpha
    else:
        shares = torch.as_tensor(alpha, dtype=torch.float64)
    if shares.dim() == 0:
        shares = torch.stack([1 - shares.double(), shares.double()])
    if shares.dim() != 1 or len(shares) < 2 or not torch.isfinite(shares).all():
        raise InputError(f"alpha must be one finite number or at least two, not {alpha}")
    return shares


def merge_neurons(
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    kept: Sequence[int],
    mix: Tensor,
    shift: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Keep some neurons of a layer and let them carry the features of all.

    If the features φ of all neurons are φ ≈ mix φ[kept] + shift on the data, then
    W_out φ + b_out ≈ (W_out mix) φ[kept] + (b_out + W_out shift). This inverts `split_neuron` with the mix
    of `group_mix`, and merges whatever lies in the span of the kept features and the constant (001, Def. 4.2
    (ii)) with the mix of a regression.

    Preserved: the output wherever the features satisfy φ = mix φ[kept] + shift; the error is W_out times the
    error of that equation. A critical point stays one if the mix is that of `group_mix` and fits exactly;
    for a mix of a regression it need not.

    Args:
        w_in: Input weights, shape (width, fan_in).
        b_in: Input bias, shape (width,), or None.
        w_out: Output weights, shape (fan_out, width).
        b_out: Output bias, shape (fan_out,), or None.
        kept: The neurons to keep, in increasing order.
        mix: Shape (width, len(kept)); its columns follow `kept`.
        shift: Shape (width,), in units of the features.

    Returns:
        (w_in, b_in, w_out, b_out) of the layer of len(kept) neurons. New tensors of the given types; an
        output bias is added if there was none and W_out shift is not exactly zero.

    Raises:
        InputError: If shapes do not agree, values are not finite, or `kept` is empty or not increasing.

    Example:
        Two equal neurons, of output weights 3 and 1, become one of output weight 4.

        >>> kept, mix = group_mix([[0, 1]], width=2)
        >>> ones = torch.ones(2, 1)
        >>> merged = merge_neurons(ones, None, torch.tensor([[3.0, 1.0]]), None, kept, mix, torch.zeros(2))
        >>> [None if tensor is None else tensor.tolist() for tensor in merged]
        [[[1.0]], None, [[4.0]], None]
    """
    checks.same_device(w_in=w_in, b_in=b_in, w_out=w_out, b_out=b_out)
    rows = checks.matrix("w_in", w_in)
    width = rows.shape[0]
    columns = checks.matrix("w_out", w_out, columns=width)
    checks.bias("b_in", b_in, rows)
    offset = checks.bias("b_out", b_out, columns)
    kept = checks.indices("kept", kept, width)
    if not kept or any(left > right for left, right in pairwise(kept)):
        raise InputError(f"kept must name at least one neuron, in increasing order, not {kept}; sort it with mix")
    mix = checks.matrix("mix", mix, rows=width, columns=len(kept)).to(columns.device)
    shift = checks.vector("shift", shift, width).to(columns.device)
    return (
        w_in[kept],
        None if b_in is None else b_in[kept],
        checks.back("the merged output weights", columns @ mix, w_out),
        checks.back_bias(offset + columns @ shift, b_out, w_out),
    )


def group_mix(groups: Sequence[Sequence[int]], width: int, ratio: Tensor | None = None) -> tuple[list[int], Tensor]:
    """Write a grouping of neurons as the `kept` and `mix` of `merge_neurons`.

    The first neuron r of a group represents it: mix[j, r] = ratio[j] for every j of the group, which says
    φ_j = ratio_j φ_r. Neurons in no group represent themselves. Ratio 1 fits equal neurons, the inverse of
    001, Def. 4.4; -1 fits opposite input weights under an odd activation; the ratio of the input weights'
    norms fits parallel ones under a positively homogeneous activation such as ReLU.

    Args:
        groups: Groups of neurons, the representative first.
        width: Number of neurons in the layer.
        ratio: Shape (width,), dimensionless, 1 at every neuron that is kept; all ones if None.

    Returns:
        (kept, mix): the kept neurons in increasing order, and a float64 matrix of shape (width, len(kept)).

    Raises:
        InputError: If a group is empty, a neuron does not exist or is in two groups, or a ratio is not
            finite or differs from 1 at a kept neuron.

    Example:
        >>> kept, mix = group_mix([[2, 0]], width=3, ratio=torch.tensor([-1.0, 1.0, 1.0]))
        >>> kept, mix.tolist()
        ([1, 2], [[0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])
    """
    if any(len(group) == 0 for group in groups):
        raise InputError("groups must not hold an empty group; leave it out")
    checks.indices("groups", [neuron for group in groups for neuron in group], width)
    ratio = torch.ones(width, dtype=torch.float64) if ratio is None else checks.vector("ratio", ratio, width)

    represented_by = list(range(width))
    for group in groups:
        for neuron in group:
            represented_by[neuron] = group[0]
    kept = sorted(set(represented_by))
    if not (ratio[kept] == 1).all():
        raise InputError("ratio must be 1 at every kept neuron; divide each group by its representative's value")
    position = {neuron: column for column, neuron in enumerate(kept)}
    mix = torch.zeros(width, len(kept), dtype=torch.float64, device=ratio.device)
    mix[range(width), [position[neuron] for neuron in represented_by]] = ratio
    return kept, mix
