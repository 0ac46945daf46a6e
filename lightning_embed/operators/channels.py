"""Splitting a channel of a convolution into copies, and its inverse: merging channels."""

from collections.abc import Sequence

from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.operators.splitting import merge_neurons, split_neuron


def split_channel(
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, channel: int, alpha: float | Sequence[float] | Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Split one channel into copies that share its output kernels (004, Section 6).

    All neurons of a channel share a kernel, so the channel is split as `split_neuron` splits a neuron, with one share
    α_k for the whole copy: its kernels and bias are copied, the kernels that read it are multiplied by α_k.

    Preserved, if what lies between the convolutions acts in every channel alone and in all alike (pooling,
    activations; parameters per channel must be copied too): the output for every input, the set of features,
    criticality.

    Args:
        w_in: Kernels of the convolution, shape (channels, in, *kernel); not grouped.
        b_in: Its bias, shape (channels,), or None.
        w_out: Kernels that read the channels, shape (out, channels, *kernel); not grouped. A Linear that reads them
            flattened is one whose weight is reshaped to (out, channels, *size).
        channel: The channel to split.
        alpha: The shares α_k, summing to 1; a number α means (1 - α, α).

    Returns:
        (w_in, b_in, w_out) of channels + K - 1 channels; the first copy in the channel's place, the others at the end.

    Raises:
        InputError: If a kernel is no kernel, or `split_neuron` refuses.

    Example:
        >>> import torch
        >>> w_in, _, w_out = split_channel(torch.ones(1, 3, 2, 2), None, torch.ones(1, 1, 2, 2), 0, 0.25)
        >>> tuple(w_in.shape), w_out[0, :, 0, 0].tolist()
        ((2, 3, 2, 2), [0.75, 0.25])
    """
    rows, columns = _rows(w_in), _columns(w_out)
    rows, b_in, columns = split_neuron(rows, b_in, columns, channel, alpha)
    return rows.reshape(-1, *w_in.shape[1:]), b_in, _kernels(columns, w_out)


def merge_channels(
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    kept: Sequence[int],
    mix: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Keep some channels and let them carry the features of all; this inverts `split_channel`.

    If the channels φ satisfy φ = mix φ[kept] at every place, the kernels that read them become W_out mix, as in
    `merge_neurons`. A constant shift is not taken: zero padding would not shift with it.

    Args:
        w_in: Kernels of the convolution, shape (channels, in, *kernel).
        b_in: Its bias, shape (channels,), or None.
        w_out: Kernels that read the channels, shape (out, channels, *kernel).
        kept: The channels to keep, in increasing order.
        mix: Shape (channels, len(kept)), of `group_mix` or a regression.

    Returns:
        (w_in, b_in, w_out) of len(kept) channels.

    Raises:
        InputError: If a kernel is no kernel, or `merge_neurons` refuses.

    Example:
        >>> import torch
        >>> from lightning_embed.operators import group_mix
        >>> kept, mix = group_mix([[0, 1]], 2)
        >>> merge_channels(torch.ones(2, 1, 1), None, torch.ones(1, 2, 1), kept, mix)[2].tolist()
        [[[2.0]]]
    """
    rows, columns = _rows(w_in), _columns(w_out)
    rows, b_in, columns, _ = merge_neurons(rows, b_in, columns, None, kept, mix, mix.new_zeros(len(mix)))
    return rows.reshape(-1, *w_in.shape[1:]), b_in, _kernels(columns, w_out)


def _rows(kernels: Tensor) -> Tensor:
    if kernels.dim() < 3:
        raise InputError(f"kernels must have shape (out, in, *kernel), not {tuple(kernels.shape)}")
    return kernels.flatten(1)


def _columns(kernels: Tensor) -> Tensor:
    """The kernels as a matrix whose columns are the channels that they read."""
    if kernels.dim() < 3:
        raise InputError(f"kernels must have shape (out, in, *kernel), not {tuple(kernels.shape)}")
    return kernels.movedim(1, -1).flatten(0, -2)


def _kernels(columns: Tensor, like: Tensor) -> Tensor:
    return columns.reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1).contiguous()
