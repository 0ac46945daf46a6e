"""Which of the factors that make a neuron scale with it, for optimizers: in a gate the gated value, not the gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer, Layout
from lightning_embed.surgery.collect import Collector
from lightning_embed.tape import Tape

MOST = 16  # entries of a neuron that are asked one by one


def scaled_entries(model: nn.Module, layer: HiddenLayer, tape: Tape) -> dict[str, tuple[bool, ...]]:
    """For every producer of a hidden layer, which of its entries scale with the neuron.

    Each is doubled in turn: where all that is read doubles too, copies of a neuron may have any sizes of it, and their
    gradients add up by these; the other factors are then equal in all copies. Where none scales alone (the summands of
    a residual stage) they do so together, and none is told apart.

    Returns:
        Empty where nothing is told apart.
    """
    entries = [(name, entry) for name, layout in layer.producers.items() for entry in range(layout.size)]
    if not 1 < len(entries) <= MOST:
        return {}
    before = _reads(model, layer, tape, None)
    scaled = {
        (name, entry): all(
            torch.allclose(now, 2 * was, rtol=1e-3, atol=1e-5 * float(was.abs().max()))
            for now, was in zip(_reads(model, layer, tape, (name, entry)), before, strict=True)
        )
        for name, entry in entries
    }
    if all(scaled.values()) or not any(scaled.values()):
        return {}
    return {
        name: tuple(scaled[name, entry] for entry in range(layout.size)) for name, layout in layer.producers.items()
    }


def _reads(model: nn.Module, layer: HiddenLayer, tape: Tape, doubled: tuple[str, int] | None) -> list[Tensor]:
    """What the readers read of the units, with one entry of a producer doubled."""
    collector = Collector(model)
    if doubled is not None:
        name, entry = doubled
        layout = layer.producers[name]
        assert layout.index is not None
        places = Layout(layout.dim, layout.index[:, entry : entry + 1])

        def double(output: Tensor) -> Tensor:
            twice = torch.ones(output.shape[places.dim], dtype=output.dtype, device=output.device)
            twice[places.entries(torch.arange(places.units)).to(output.device)] = 2
            return output * twice.reshape(-1, *(1,) * (-1 - places.dim))

        collector.alter(name, double)
    read = [
        collector.reads(name, lambda value, layout=layout: layout.rows(value).clone())  # type: ignore[misc]  # bound now
        for name, layout in layer.reads.items()
    ]
    collector.run([tape])
    return [value for calls in read for value in calls]
