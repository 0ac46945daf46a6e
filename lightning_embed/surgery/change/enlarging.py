"""What every embedding of a model needs: its hidden layers, new neurons in one, and the function kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.graph import Graph, HiddenLayer, Layout, output_weight, stored_weight
from lightning_embed.surgery.calibration import halves
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.surgery.nominate.sizes import by_producer
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.tape import model_device, tensors_by_name

KEPT = 0.05  # as a share of their variation, how far outputs may change: 16-bit types round by a few hundredths


def tapes_of(model: nn.Module, data: Any, call: Callable[[Any], Any] | None, seed: int) -> list[Tape]:
    """Record the model on the data, or, where there are none, on random numbers of its first Linear's size."""
    guessed = data is None
    if guessed:
        first = next((one for one in model.modules() if isinstance(one, nn.Linear)), None)
        size = 1 if first is None else first.in_features
        like = torch.empty(0) if first is None else first.weight
        generator = torch.Generator().manual_seed(seed)
        data = torch.randn(64, size, generator=generator).to(device=model_device(model), dtype=like.dtype)
    try:
        fit, decide = halves(model, data, call, None, seed)
    except InputError as error:
        if not guessed:
            raise
        raise InputError(
            f"{type(model).__name__} could not be called on random numbers of its first Linear's size; "
            "pass data=, some batches of its inputs."
        ) from error
    return [*fit, *decide]


def hidden_layer(graph: Graph, name: str) -> HiddenLayer:
    """A hidden layer by a name of its producers; InputError, with the names that there are, where it is none."""
    layers = by_producer(graph, name)
    if len(layers) == 1:
        return layers[0]
    if layers:
        several = ", ".join(layer.name for layer in layers)
        raise InputError(f"The neurons of {name!r} belong to several hidden layers; name one of {several}.")
    names = ", ".join(layer.name for layer in graph.layers) or "none"
    why = f" ({graph.refused[name]})" if name in graph.refused else ""
    raise InputError(f"{name!r} is no hidden layer of this model{why}; these are: {names}.")


def require_free(layer: HiddenLayer) -> None:
    """Refuse a layer whose neurons depend on each other or on other data."""
    if layer.merge_neurons:
        raise InputError(f"The neurons of {layer.name!r} may not be split: {layer.merge_neurons}.")


def split_layer(model: nn.Module, layer: HiddenLayer, source: Sequence[int], shares: Tensor) -> None:
    """Copy units in everything that makes them; let the copies share what reads them.

    Columns before rows, as a layer may read and make units of the same hidden layer.
    """
    attachment, edits = attach(model), Edits()
    for slot in (*layer.producers, *layer.reads, *{tensor.rpartition(".")[0] for tensor, _ in layer.per_neuron}):
        attachment.remember(model, slot)
    copies = _Copies(layer.width, source, shares, in_order=in_blocks(model, layer))
    for name, layout in layer.reads.items():
        consumer = submodule(model, name)
        weight = copies.columns(output_weight(consumer).detach(), layout)
        edits.set_tensor(consumer, "weight", stored_weight(consumer, weight))
        edits.sync_counts(consumer)
    for name, layout in layer.producers.items():
        producer = submodule(model, name)
        weight = copies.rows(output_weight(producer).detach(), 0, layout)
        bias = getattr(producer, "bias", None)
        edits.set_tensor(producer, "weight", stored_weight(producer, weight))
        if bias is not None:
            edits.set_tensor(producer, "bias", copies.rows(bias.detach(), 0, layout))
        edits.sync_counts(producer)
    for qualified, layout in layer.per_neuron:
        owner_name, _, tensor = qualified.rpartition(".")
        owner = submodule(model, owner_name)
        edits.set_tensor(owner, tensor, copies.rows(getattr(owner, tensor).detach(), layout.dim, layout))
        edits.sync_counts(owner)


def in_blocks(model: nn.Module, layer: HiddenLayer) -> bool:
    """Whether the units fill every tensor, one neighbouring block each, so that copies can come behind all of them."""
    ways = [(len(output_weight(submodule(model, name))), layout) for name, layout in layer.producers.items()]
    ways += [(output_weight(submodule(model, name)).shape[1], layout) for name, layout in layer.reads.items()]
    ways += [(tensors_by_name(model)[name].shape[layout.dim], layout) for name, layout in layer.per_neuron]
    return all(
        layout == Layout.blocks(layout.dim, layer.width, layout.size) and size == layer.width * layout.size
        for size, layout in ways
    )


class _Copies:
    """Which unit each of the new ones copies, and its share of what reads it.

    Where units fill all tensors in blocks the copies come behind. Elsewhere they come behind their originals, in every
    tensor alike: a run of neighbouring entries of one unit is repeated as often as the unit has copies. So the two
    halves of a packed gate, the parts of a concatenation and the channels of a flattened image stay in step.
    """

    def __init__(self, width: int, source: Sequence[int], shares: Tensor, *, in_order: bool) -> None:
        self._in_order = in_order
        self._source = torch.tensor(source)
        self._shares = shares
        self._of_unit = [torch.nonzero(self._source == unit).flatten() for unit in range(width)]

    def _places(self, size: int, layout: Layout) -> tuple[Tensor, Tensor]:
        """For every new place the old one that it copies, and the share of its unit (1 for what is nobody's)."""
        assert layout.index is not None
        if self._in_order:
            return layout.index[self._source].flatten(), self._shares.repeat_interleave(layout.size)
        owner = torch.full((size,), -1)
        owner[layout.index.flatten()] = torch.arange(layout.units).repeat_interleave(layout.size)
        places: list[int] = []
        shares: list[float] = []
        begin = 0
        while begin < size:
            unit, end = int(owner[begin]), begin + 1
            while unit >= 0 and end < size and owner[end] == unit:
                end += 1
            for share in self._shares[self._of_unit[unit]].tolist() if unit >= 0 else [1.0]:
                places.extend(range(begin, end))
                shares.extend([share] * (end - begin))
            begin = end
        return torch.tensor(places), torch.tensor(shares, dtype=torch.float64)

    def rows(self, tensor: Tensor, dim: int, layout: Layout) -> Tensor:
        """A tensor with the copies along a dimension."""
        places, _ = self._places(tensor.shape[dim], layout)
        return tensor.index_select(dim, places.to(tensor.device))

    def columns(self, weight: Tensor, layout: Layout) -> Tensor:
        """A reader's weight (rows, columns, …) in which the copies of a unit share its columns."""
        places, shares = self._places(weight.shape[1], layout)
        copied = weight.index_select(1, places.to(weight.device))
        return (copied.double() * shares.to(weight.device).reshape(1, -1, *(1,) * (weight.dim() - 2))).to(weight.dtype)


def require_kept(model: nn.Module, changed: nn.Module, tapes: Sequence[Tape], how: str) -> None:
    """Refuse a model that does not compute what the given one does."""
    for tape in tapes:
        try:
            pairs = list(zip(replay(model, tape), replay(changed, tape), strict=True))
        except ReplayError as error:
            raise InputError(f"The model cannot be {how}, because then it does not run: {error}") from error
        for old, new in pairs:
            if old.is_floating_point() and not _same(old, new):
                change = float((new - old).abs().max())
                raise InputError(
                    f"The model cannot be {how} with its function kept: its outputs change by up to {change:.2g}."
                )


def _same(old: Tensor, new: Tensor) -> bool:
    rounding = min(64 * torch.finfo(old.dtype).eps, KEPT) * torch.linalg.vector_norm(old.double())
    variation = torch.linalg.vector_norm((old - old.mean(0)).double())
    return bool(torch.linalg.vector_norm((new - old).double()) <= KEPT * variation + rounding)
