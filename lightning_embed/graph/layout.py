"""Where neurons are: a Linear's along the last dimension, a convolution's channels before the positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lightning_embed.graph.kinds import Convolution, Layer, kind_of, output_weight


def is_layer(module: object) -> TypeGuard[Layer]:
    """Whether a module has neurons: a Linear, a convolution whose channels they are, or of a registered class.

    A convolution with groups is none: it is part of what lies between two layers (see `register_layer`).

    >>> is_layer(nn.Conv2d(1, 2, 3)), is_layer(nn.Conv2d(2, 2, 3, groups=2)), is_layer(nn.ReLU())
    (True, False, False)
    """
    return isinstance(module, nn.Module) and kind_of(module) is not None


def is_sharded(layer: object) -> bool:
    """Whether a layer's weight is spread over processes, so that this one has only a part of it (or none).

    >>> is_sharded(nn.Linear(1, 1))
    False
    """
    return is_layer(layer) and type(layer.weight.data).__name__ == "DTensor"  # importing it for this would take long


@dataclass(frozen=True, eq=False)
class Layout:
    """Which entries along a dimension of a tensor belong to each unit (neuron).

    Entries that no unit holds, such as inputs that are concatenated with a layer's values, are nobody's and stay.

    Attributes:
        dim: the dimension; counted from the end for values that layers pass on, from the front for parameters.
        index: int64, shape (units, entries of each). None: every entry is a unit of its own.

    A flattened image of 3 channels and 2 × 2 positions holds each channel in 4 entries:

    >>> flat = torch.arange(12.0).reshape(1, 12)
    >>> image = Layout.blocks(-1, units=3, block=4)
    >>> image.rows(flat)
    tensor([[ 0.,  4.,  8.],
            [ 1.,  5.,  9.],
            [ 2.,  6., 10.],
            [ 3.,  7., 11.]])
    >>> image.select(flat, torch.tensor([2]))
    tensor([[ 8.,  9., 10., 11.]])

    A gate that reads the two halves of six values has two entries for each of three units:

    >>> gate = Layout(-1, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    >>> gate.select(torch.arange(6.0), torch.tensor([0, 2]))
    tensor([0., 2., 3., 5.])
    """

    dim: int
    index: Tensor | None = None

    @staticmethod
    def blocks(dim: int, units: int, block: int = 1) -> Layout:
        """Every unit holds `block` neighbouring entries, from the first entry on."""
        return Layout(dim, torch.arange(units * block).reshape(units, block))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout) or self.dim != other.dim:
            return False
        if self.index is None or other.index is None:
            return self.index is other.index
        return torch.equal(self.index, other.index)

    def __hash__(self) -> int:
        return hash((self.dim, None if self.index is None else tuple(self.index.shape)))

    def __repr__(self) -> str:
        return f"Layout(dim={self.dim}, index={self.to_plain()['index']})"

    @property
    def units(self) -> int:
        """Number of units."""
        assert self.index is not None, "a layout without an index has as many units as the tensor has entries"
        return int(self.index.shape[0])

    @property
    def size(self) -> int:
        """Number of entries of each unit."""
        return 1 if self.index is None else int(self.index.shape[1])

    @property
    def positions(self) -> bool:
        """Whether a unit is several values of each sample: a map, or several entries."""
        return self.dim != -1 or self.size > 1

    @cached_property
    def _from_the_front(self) -> int | None:
        """How many entries are held, where they are all from the first one on and in order."""
        if self.index is None:
            return None
        in_order = torch.arange(self.index.numel()).reshape(self.index.shape)
        return self.index.numel() if torch.equal(self.index, in_order) else None

    def rows(self, value: Tensor) -> Tensor:
        """The values as (samples, positions and entries; units)."""
        if self.index is not None and self._from_the_front != value.shape[self.dim]:
            value = value.index_select(self.dim, self.index.flatten().to(value.device))
        dim = self.dim % value.dim()
        apart: Tensor = value.unflatten(dim, (-1, self.size)).movedim(dim, -1)
        return apart.reshape(-1, apart.shape[-1])

    def entries(self, units: Tensor) -> Tensor:
        """The places along the dimension that belong to some units."""
        return units if self.index is None else self.index.to(units.device)[units].flatten()

    def staying(self, size: int, kept: Tensor) -> Tensor:
        """The places along a dimension of `size` that stay when only some units are kept; nobody's stay."""
        if self.index is None:
            return kept
        stays = torch.ones(size, dtype=torch.bool)
        stays[self.index.flatten()] = False
        stays[self.entries(kept.cpu())] = True
        return torch.nonzero(stays).flatten().to(kept.device)

    def select(self, value: Tensor, kept: Tensor) -> Tensor:
        """A tensor without the entries of the units that are not kept."""
        return value.index_select(self.dim, self.staying(value.shape[self.dim], kept).to(value.device))

    def after(self, kept: Tensor) -> Layout:
        """Where the kept units are in what `select` returns."""
        assert self.index is not None
        return Layout(self.dim, self.index[kept.cpu()]).without(self.leaving(kept))

    def leaving(self, kept: Tensor) -> Tensor:
        """The places along the dimension that go when only some units are kept, in increasing order."""
        assert self.index is not None
        gone = torch.ones(self.units, dtype=torch.bool)
        gone[kept.cpu()] = False
        return self.index[gone].flatten().sort().values

    def without(self, places: Tensor) -> Layout:
        """Where the units are when places, in increasing order, have gone; every unit has lost as many entries."""
        assert self.index is not None
        stays = ~torch.isin(self.index, places)
        index = self.index if bool(stays.all()) else self.index[stays].reshape(self.units, -1)
        return Layout(self.dim, index - torch.searchsorted(places, index))

    def to_plain(self) -> dict[str, Any]:
        """The layout as numbers and lists; an arithmetic index, as most are, as its shape, start and two steps.

        >>> Layout.blocks(1, units=4096, block=2).to_plain()
        {'dim': 1, 'index': {'shape': [4096, 2], 'start': 0, 'steps': [2, 1]}}
        """
        if self.index is None or not self.index.numel():
            return {"dim": self.dim, "index": None if self.index is None else self.index.tolist()}
        units, size = self.index.shape
        start = int(self.index[0, 0])
        down = int(self.index[1, 0]) - start if units > 1 else 0
        across = int(self.index[0, 1]) - start if size > 1 else 0
        if torch.equal(self.index, _arithmetic(units, size, start, down, across)):
            return {"dim": self.dim, "index": {"shape": [units, size], "start": start, "steps": [down, across]}}
        return {"dim": self.dim, "index": self.index.tolist()}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Layout:
        """The inverse of `to_plain`.

        >>> Layout.from_plain(Layout.blocks(1, 3, 2).to_plain()) == Layout.blocks(1, 3, 2)
        True
        """
        index = plain["index"]
        if index is None:
            return Layout(plain["dim"])
        if isinstance(index, Mapping):
            (units, size), (down, across) = index["shape"], index["steps"]
            return Layout(plain["dim"], _arithmetic(units, size, index["start"], down, across))
        return Layout(plain["dim"], torch.tensor(index, dtype=torch.int64).reshape(len(index), -1))


def _arithmetic(units: int, size: int, start: int, down: int, across: int) -> Tensor:
    return start + down * torch.arange(units)[:, None] + across * torch.arange(size)[None]


def output_layout(layer: Layer) -> Layout:
    """Where the neurons are in what a layer puts out.

    >>> output_layout(nn.Conv2d(1, 2, 3))
    Layout(dim=-3, index=None)
    """
    return Layout(_dim(layer))


def _dim(layer: Layer) -> int:
    kind = kind_of(layer)
    assert kind is not None
    return -1 - kind.positions


def input_dim(layer: Layer) -> int:
    """The dimension of a layer's input that holds what the columns of its weight multiply.

    >>> input_dim(nn.Linear(2, 3)), input_dim(nn.Conv2d(1, 2, 3))
    (-1, -3)
    """
    return _dim(layer)


def input_layout(consumer: Layer, neurons: int) -> Layout:
    """Where the neurons of the layer before are in what a consumer reads, if it reads them and nothing else.

    >>> input_layout(nn.Linear(12, 5), neurons=3) == Layout.blocks(-1, units=3, block=4)
    True
    """
    return Layout.blocks(_dim(consumer), neurons, output_weight(consumer).shape[1] // max(1, neurons))


def columns_of(layout: Layout) -> Layout:
    """Where the units that lie so in a reader's input are in its weight (rows, columns, …)."""
    return Layout(1, layout.index)


def input_rows(weight: Tensor, neurons: int | Layout) -> Tensor:
    """A reader's weights by the unit that they multiply, (rows, units).

    A row is an output and, of a convolution, a tap of its kernel; where a unit has several columns, an output and one
    of them.

    Args:
        weight: (rows, columns, …), see `output_weight`.
        neurons: where the units are among the columns, or their number where they are all of them.

    >>> input_rows(torch.arange(6.0).reshape(1, 6), neurons=2)
    tensor([[0., 3.],
            [1., 4.],
            [2., 5.]])
    """
    if isinstance(neurons, Layout):
        assert neurons.index is not None
        weight = weight.index_select(1, neurons.index.flatten().to(weight.device))
        neurons = neurons.units
    return weight.detach().reshape(len(weight), neurons, -1).transpose(1, 2).reshape(-1, neurons)


def from_input_rows(rows: Tensor, like: Tensor, layout: Layout | None = None) -> Tensor:
    """The inverse of `input_rows`, for any number of neurons; `like` is the weight that they were taken from.

    With a layout of columns, `like` is a weight of the wanted shape, whose other columns are kept as they are.
    """
    if layout is None:
        return rows.reshape(len(like), -1, rows.shape[1]).transpose(1, 2).reshape(len(like), -1, *like.shape[2:])
    assert layout.index is not None
    columns = rows.reshape(len(like), -1, rows.shape[1]).transpose(1, 2).reshape(len(like), -1, *like.shape[2:])
    return like.to(rows.dtype).index_copy(1, layout.index.flatten().to(like.device), columns)


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


def bias_can_stand(consumer: Layer) -> bool:
    """Whether a reader's bias can stand for a neuron that is constant: it has one, or could, and reads nothing else.

    >>> bias_can_stand(nn.Linear(1, 1, bias=False)), bias_can_stand(nn.Conv2d(1, 1, 3, padding=1))
    (True, False)
    """
    return hasattr(consumer, "bias") and not pads_zeros(consumer)


def pads_zeros(consumer: Layer) -> bool:
    """Whether a consumer also reads zeros that are no values of its neurons, so that no bias replaces a constant.

    So does a transposed convolution, between the values that it spreads.

    >>> pads_zeros(nn.Conv2d(1, 1, 3)), pads_zeros(nn.Conv2d(1, 1, 3, padding="same")), pads_zeros(nn.Linear(1, 1))
    (False, True, False)
    """
    if isinstance(consumer, nn.modules.conv._ConvTransposeNd):
        return True  # what a constant adds to an output depends on the taps that reach it
    if not isinstance(consumer, Convolution) or consumer.padding_mode != "zeros":
        return False
    if isinstance(consumer.padding, str):
        return consumer.padding == "same" and math.prod(consumer.kernel_size) > 1
    return any(consumer.padding)
