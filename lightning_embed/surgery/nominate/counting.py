"""What a budget counts, as a function of the widths of the hidden layers: parameters or operations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer, Layout, is_layer, kind_of, output_weight
from lightning_embed.surgery.change.edit import parameter_count, submodule
from lightning_embed.surgery.collect import Collector
from lightning_embed.surgery.persist.snapshot import size_of
from lightning_embed.tape import Tape
from lightning_embed.tape.tape import modules_by_name, tensors_by_name


@dataclass(frozen=True)
class _Cut:
    """A tensor of which neurons hold entries.

    Attributes:
        shape: with all neurons.
        dims: dimension → (layer, entries of one of its neurons along it).
        worth: what one entry counts.
        feeders: layers of which one at least must have lost neurons for the tensor to be there at all; empty if it is.
    """

    shape: tuple[int, ...]
    dims: Mapping[int, Sequence[tuple[str, int]]]
    worth: float = 1.0
    feeders: tuple[str, ...] = ()


class Count:
    """The number of a model's parameters, or of its operations, as a function of the widths of its hidden layers.

    A tensor loses along each of its dimensions the entries of every neuron that is cut there; several hidden layers
    may share a dimension, as in a reader of a concatenation.

    Args:
        model: as it is now.
        layers: those whose widths vary.
        worth: what one entry of a tensor counts, by its name (1 if None: parameters). An entry of a weight is worth as
            many operations as there are positions in what the layer puts out.
        total: what all counts with all neurons; the parameters if None.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[HiddenLayer],
        worth: Mapping[str, float] | None = None,
        total: float | None = None,
    ) -> None:
        self._full = {layer.name: layer.width for layer in layers}
        named = {name: tensor for name, tensor in tensors_by_name(model).items() if isinstance(tensor, nn.Parameter)}
        dims: dict[str, dict[int, list[tuple[str, int]]]] = {}
        for layer in layers:
            for name, dim, layout in tensors_of(model, layer):
                if name in named:
                    dims.setdefault(name, {}).setdefault(dim, []).append((layer.name, layout.size))
        self._cuts = [
            _Cut(tuple(named[name].shape), by_dim, 1.0 if worth is None else worth.get(name, 0.0))
            for name, by_dim in dims.items()
        ]
        whole = parameter_count(model) if total is None else total
        self._fixed = whole - sum(cut.worth * math.prod(cut.shape) for cut in self._cuts)
        if worth is None:
            self._cuts += _new_biases(model, layers, dims)
        self._of: dict[str, list[_Cut]] = {layer.name: [] for layer in layers}
        for cut in self._cuts:
            for name in dict.fromkeys((*cut.feeders, *(name for by in cut.dims.values() for name, _ in by))):
                self._of[name].append(cut)

    def __call__(self, widths: Mapping[str, int]) -> float:
        """What is left with these widths."""
        return self._fixed + self._sum(self._cuts, widths)

    def saving(self, widths: Mapping[str, int], layer: str, width: int) -> float:
        """What is saved when one layer is cut to a width, beside these widths of the others."""
        cuts = self._of[layer]
        return self._sum(cuts, widths) - self._sum(cuts, {**widths, layer: width})

    def _sum(self, cuts: Sequence[_Cut], widths: Mapping[str, int]) -> float:
        return sum(cut.worth * self._entries(cut, widths) for cut in cuts)

    def _entries(self, cut: _Cut, widths: Mapping[str, int]) -> int:
        if cut.feeders and not any(widths[name] < self._full[name] for name in cut.feeders):
            return 0
        left = [
            size - sum(entries * (self._full[name] - widths[name]) for name, entries in cut.dims.get(dim, ()))
            for dim, size in enumerate(cut.shape)
        ]
        return math.prod(left)


def operations(model: nn.Module, tape: Tape) -> tuple[dict[str, float], float]:
    """What one entry of each weight counts in floating-point operations for one sample, and what all count together.

    An entry is multiplied and added once for every position of what its layer puts out (of a transposed convolution:
    of what it reads).
    """
    weighted = {name: module for name, module in modules_by_name(model).items() if _multiplies(module)}
    collector = Collector(model)
    calls = {
        name: collector.calls(name, None, lambda given, output, module=module: _positions(module, given, output))  # type: ignore[misc]  # bound now
        for name, module in weighted.items()
    }
    collector.run([tape])
    samples = max(1, tape.samples)
    worth = {f"{name}.weight": 2.0 * sum(positions) / samples for name, positions in calls.items()}
    return worth, float(size_of(model, tape, ()).flops)


def _multiplies(module: nn.Module) -> bool:
    return is_layer(module) or isinstance(module, nn.modules.conv._ConvNd)


def _positions(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """The number of samples times positions that a layer computes."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return given[:, 0].numel()
    if isinstance(module, nn.modules.conv._ConvNd):
        return output[:, 0].numel()
    return output[..., 0].numel()


def _new_biases(
    model: nn.Module, layers: Sequence[HiddenLayer], dims: Mapping[str, Mapping[int, Sequence[tuple[str, int]]]]
) -> list[_Cut]:
    """Biases that merging gives to readers without one."""
    feeders: dict[str, list[str]] = {}
    for layer in layers:
        for name in layer.reads:
            feeders.setdefault(name, []).append(layer.name)
    biases = []
    for name, by in feeders.items():
        reader = submodule(model, name)
        if getattr(reader, "bias", None) is None:
            rows = dims.get(f"{name}.weight", {}).get(_row_dim(reader), [])
            biases.append(_Cut((len(output_weight(reader)),), {0: rows}, 1.0, tuple(by)))
    return biases


def tensors_of(model: nn.Module, layer: HiddenLayer) -> Iterator[tuple[str, int, Layout]]:
    """All tensors that are cut with a hidden layer's neurons: their names, the dimension as stored, and where."""
    for name, layout in layer.producers.items():
        yield f"{name}.weight", _row_dim(submodule(model, name)), layout
        yield f"{name}.bias", 0, layout
    for name, layout in layer.reads.items():
        yield f"{name}.weight", 1 - _row_dim(submodule(model, name)), layout
    for name, layout in layer.per_neuron:
        yield name, layout.dim, layout


def _row_dim(layer: nn.Module) -> int:
    """The dimension of a layer's weight, as it is stored, that counts its rows."""
    kind = kind_of(layer)
    return 1 if kind is not None and kind.transposed else 0
