"""Where neurons are: a Linear's along the last dimension, a convolution's channels before the positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution


def is_layer(module: object) -> TypeGuard[Layer]:
    """Whether a module has neurons: a Linear, or a convolution whose channels they are.

    >>> is_layer(nn.Conv2d(1, 2, 3)), is_layer(nn.ConvTranspose2d(1, 2, 3)), is_layer(nn.ReLU())
    (True, False, False)
    """
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def is_sharded(layer: object) -> bool:
    """Whether a layer's weight is spread over processes, so that this one has only a part of it (or none).

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    return is_layer(layer) and type(layer.weight.data).__name__ == "DTensor"  # importing it for this would take long


@dataclass(frozen=True)
class Layout:
    """The dimension of a tensor that holds neurons, and how many neighbouring entries of it belong to each.

    A flattened image of 3 channels and 2 × 2 positions holds each channel in 4 entries:

    >>> flat = torch.arange(12.0).reshape(1, 12)
    >>> Layout(-1, block=4).rows(flat)
    tensor([[ 0.,  4.,  8.],
            [ 1.,  5.,  9.],
            [ 2.,  6., 10.],
            [ 3.,  7., 11.]])
    >>> Layout(-1, block=4).select(flat, torch.tensor([2]))
    tensor([[ 8.,  9., 10., 11.]])
    """

    dim: int
    block: int = 1

    @property
    def positions(self) -> bool:
        """Whether a neuron is a map of several values for each sample."""
        return self.dim != -1 or self.block > 1

    def fits(self, value: Tensor, neurons: int) -> bool:
        """Whether a tensor holds so many neurons in this way."""
        return value.dim() >= -self.dim and value.shape[self.dim] == neurons * self.block

    def rows(self, value: Tensor) -> Tensor:
        """The values as (samples and positions, neurons)."""
        apart: Tensor = value.unflatten(self.dim, (-1, self.block)).movedim(self.dim - 1, -1)
        return apart.reshape(-1, apart.shape[-1])

    def select(self, value: Tensor, neurons: Tensor) -> Tensor:
        """The part of a tensor that belongs to some neurons."""
        return value.index_select(self.dim, self.entries(neurons).to(value.device))

    def entries(self, neurons: Tensor) -> Tensor:
        """The places along the dimension that belong to some neurons."""
        within = torch.arange(self.block, device=neurons.device)
        return (neurons[:, None] * self.block + within).flatten()


def _dim(layer: Layer) -> int:
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def output_layout(layer: Layer) -> Layout:
    """Where the neurons are in what a layer puts out.

    >>> output_layout(nn.Conv2d(1, 2, 3))
    Layout(dim=-3, block=1)
    """
    return Layout(_dim(layer))


def input_layout(consumer: Layer, neurons: int) -> Layout:
    """Where the neurons of the layer before are in what a consumer reads.

    >>> input_layout(nn.Linear(12, 5), neurons=3)
    Layout(dim=-1, block=4)
    """
    return Layout(_dim(consumer), consumer.weight.shape[1] // max(1, neurons))


def input_rows(weight: Tensor, neurons: int) -> Tensor:
    """A consumer's weights by the neuron that they read, (rows, neurons).

    A row is an output and, of a convolution, a tap of its kernel; where it reads flattened maps, an output and a
    position.

    >>> input_rows(torch.arange(6.0).reshape(1, 6), neurons=2)
    tensor([[0., 3.],
            [1., 4.],
            [2., 5.]])
    """
    return weight.detach().reshape(len(weight), neurons, -1).transpose(1, 2).reshape(-1, neurons)


def from_input_rows(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `input_rows`, for any number of neurons; `like` is the weight that they were taken from."""
    return rows.reshape(len(like), -1, rows.shape[1]).transpose(1, 2).reshape(len(like), -1, *like.shape[2:])


def patches(inputs: Tensor, convolution: Convolution, outputs: Tensor, rows: Tensor) -> Tensor:
    """What a convolution reads for some of its output positions.

    Args:
        inputs: shape (samples, channels, …).
        convolution: without groups.
        outputs: what it puts out, shape (samples, its channels, …).
        rows: numbers of rows of `output_layout(convolution).rows(outputs)`.

    Returns:
        Shape (len(rows), channels · taps of the kernel), as `convolution.weight.flatten(1)` multiplies it.

    >>> conv = nn.Conv1d(1, 1, 2)
    >>> given = torch.tensor([[[1.0, 2.0, 3.0]]])
    >>> patches(given, conv, conv(given), torch.tensor([1]))
    tensor([[2., 3.]])
    """
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
    padded = nn.functional.pad(inputs, convolution._reversed_padding_repeated_twice, mode).movedim(1, -1)
    sample, *places = torch.unravel_index(rows, (len(outputs), *outputs.shape[2:]))
    taps = len(places)
    at = [sample.reshape(-1, *(1,) * taps)]
    ways = zip(places, convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    for dim, (place, size, stride, dilation) in enumerate(ways):
        reach = dilation * torch.arange(size, device=rows.device)
        at.append((place[:, None] * stride + reach).reshape(-1, *(size if one == dim else 1 for one in range(taps))))
    return padded[tuple(at)].movedim(-1, 1).flatten(1)


def pads_zeros(consumer: Layer) -> bool:
    """Whether a consumer also reads zeros that are no values of its neurons, so that no bias replaces a constant.

    >>> pads_zeros(nn.Conv2d(1, 1, 3)), pads_zeros(nn.Conv2d(1, 1, 3, padding="same")), pads_zeros(nn.Linear(1, 1))
    (False, True, False)
    """
    if isinstance(consumer, nn.Linear) or consumer.padding_mode != "zeros":
        return False
    if isinstance(consumer.padding, str):
        return consumer.padding == "same" and math.prod(consumer.kernel_size) > 1
    return any(consumer.padding)
