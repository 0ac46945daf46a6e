"""Plant copies of units in a network, and count what may merge in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_embed.graph import Graph, HiddenLayer, is_layer
from lightning_embed.graph.kinds import output_weight, stored_weight
from lightning_embed.graph.layout import Layout, columns_of
from lightning_embed.tape.tape import modules_by_name, tensors_by_name


def sites(graph: Graph) -> list[HiddenLayer]:
    """The hidden layers whose units may merge."""
    return [layer for layer in graph.layers if layer.merge_neurons is None]


def halves(graph: Graph) -> dict[str, int]:
    """Half the units of every site, rounded up."""
    return {layer.name: (layer.width + 1) // 2 for layer in sites(graph)}


def layers_of(model: nn.Module) -> list[str]:
    """All layers, and the convolutions with groups that lie between them."""
    found = modules_by_name(model).items()
    return [name for name, one in found if is_layer(one) or isinstance(one, nn.modules.conv._ConvNd)]


def merging_layers(model: nn.Module, graph: Graph) -> set[str]:
    """Those of `layers_of` that have rows which may merge."""
    names = {name for layer in sites(graph) for name in layer.producers}
    between = {tensor.rpartition(".")[0] for layer in sites(graph) for tensor, _ in layer.per_neuron}
    return names | (between & set(layers_of(model)))


def merging_share(model: nn.Module, graph: Graph) -> float:
    """Share of the parameters that lie in rows, columns or tensors per neuron of units that may merge."""
    modules, tensors = modules_by_name(model), tensors_by_name(model)
    marks = {id(one): torch.zeros(one.shape, dtype=torch.bool) for one in model.parameters()}

    def mark(tensor: Tensor | None, layout: Layout, layer: nn.Module | None = None) -> None:
        if id(tensor) in marks:
            there = marks[id(tensor)]
            there = there if layer is None else stored_weight(layer, there)  # as (rows, columns, …)
            there.index_fill_(layout.dim, _entries(layout, there), 1)

    for layer in sites(graph):
        for name, layout in layer.producers.items():
            mark(modules[name].weight, Layout(0, layout.index), modules[name])
            mark(getattr(modules[name], "bias", None), Layout(0, layout.index))
        for name, layout in layer.reads.items():
            mark(modules[name].weight, columns_of(layout), modules[name])
        for name, layout in layer.per_neuron:
            mark(tensors[name], layout)
    return sum(int(one.sum()) for one in marks.values()) / sum(one.numel() for one in marks.values())


def plant_copies(model: nn.Module, graph: Graph) -> None:
    """Make every second unit of every site a copy of the one before it; what reads them is left as it is."""
    modules, tensors = modules_by_name(model), tensors_by_name(model)
    with torch.no_grad():
        for layer in sites(graph):
            for name, layout in layer.producers.items():
                _copy(output_weight(modules[name]), Layout(0, layout.index))
                if getattr(modules[name], "bias", None) is not None:
                    _copy(modules[name].bias, Layout(0, layout.index))
            for name, layout in layer.per_neuron:
                _copy(tensors[name], layout)


def _copy(tensor: Tensor, layout: Layout) -> None:
    entries = _entries(layout, tensor).reshape(-1, layout.size)
    pairs = len(entries) // 2
    origins, copies = entries[: 2 * pairs : 2].flatten(), entries[1 : 2 * pairs : 2].flatten()
    tensor.index_copy_(layout.dim, copies, tensor.index_select(layout.dim, origins))


def _entries(layout: Layout, tensor: Tensor) -> Tensor:
    return torch.arange(tensor.shape[layout.dim]) if layout.index is None else layout.index.flatten()
