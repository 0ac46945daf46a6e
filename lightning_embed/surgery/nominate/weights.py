"""The weights around a hidden layer, as criteria read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer, input_rows, output_weight
from lightning_embed.statistics import augmented_weights
from lightning_embed.surgery.change.edit import submodule

_ENTRIES = 2**24  # of weights that are taken to double precision at a time


def consumer_weight(model: nn.Module, layer: HiddenLayer, readers: Sequence[str] | None = None) -> Tensor:
    """The weights W of a layer's readers (all, or some), one below the other: (sum of fan_outs, width).

    Every tap of a convolution's kernel and every column of a unit that has several counts as an output. Where there are
    many more of them than neurons, a square matrix with the same WᵀW stands for them.
    """
    names = layer.consumers if readers is None else readers
    weights = [(output_weight(submodule(model, name)).detach(), layer.reads[name]) for name in names]
    read = sum(len(weight) * weight[0, 0].numel() * layout.size * layout.units for weight, layout in weights)
    if read <= 4 * layer.width**2:
        return torch.cat([input_rows(weight, layout).double() for weight, layout in weights])
    gram = weights[0][0].new_zeros(layer.width, layer.width, dtype=torch.float64)
    for weight, layout in weights:
        for part in weight.split(max(1, _ENTRIES // weight[0].numel())):
            rows = input_rows(part, layout).double()
            gram += rows.T @ rows
    values, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root.T


def condensation_vectors(model: nn.Module, layer: HiddenLayer) -> list[Tensor] | None:
    """Augmented input weights [w, b] whose cosine similarity nominates condensed neurons; None where it may not.

    One matrix (width, fan_in + 1) for every producer, and for every row of one that gives several to each neuron. Equal
    directions mean equal features only if every column has the same activation. A batch norm right behind a single
    producer is folded into the weights: w γ/s, (b − mean) γ/s + β. One further on changes nothing: the features that it
    reads are equal.
    """
    vectors = [rows for name in layer.producers for rows in _augmented(model, layer, name)]
    if layer.uniform:
        return vectors
    owners = {name.rpartition(".")[0] for name, _ in layer.per_neuron}
    norm = submodule(model, owners.pop()) if len(owners) == 1 and len(vectors) == 1 else None
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    if len(norm.running_mean) != layer.width:
        return None
    if layer.functions[0] != "batch_norm":
        return vectors
    layout = next(iter(layer.producers.values()))
    assert layout.index is not None
    linear, rows = submodule(model, next(iter(layer.producers))), layout.index.flatten()
    weight = output_weight(linear).detach().double().flatten(1)[rows]
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    bias = getattr(linear, "bias", None)
    shift = (shift if bias is None else shift + bias.detach().double()[rows]) * scale
    if norm.affine:
        scale = scale * norm.weight.detach().double()
        shift = shift * norm.weight.detach().double() + norm.bias.detach().double()
    return [augmented_weights(weight * scale[:, None], shift)]


def _augmented(model: nn.Module, layer: HiddenLayer, producer: str) -> list[Tensor]:
    """Rows [w, b] of a producer, of every entry of its units apart."""
    module, layout = submodule(model, producer), layer.producers[producer]
    assert layout.index is not None
    weight = output_weight(module).detach().double().flatten(1)
    bias = getattr(module, "bias", None)
    whole = augmented_weights(weight, None if bias is None else bias.detach().double())
    return [whole[rows.to(whole.device)] for rows in layout.index.unbind(1)]
