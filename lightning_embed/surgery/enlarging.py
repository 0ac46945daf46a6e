"""What every embedding of a model needs: its hidden layers, new neurons in one, and the function kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.graph import Graph, HiddenLayer, from_input_rows, input_rows, is_layer
from lightning_embed.graph.kinds import output_weight, stored_weight
from lightning_embed.operators import split_neurons
from lightning_embed.surgery.checkpoint import attach
from lightning_embed.surgery.edit import Edits, submodule
from lightning_embed.surgery.prune import halves
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.tape import model_device

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
    """A hidden layer by name; InputError, with the names that there are, where it is none."""
    try:
        return graph[name]
    except KeyError:
        names = ", ".join(layer.name for layer in graph.layers) or "none"
        why = f" ({graph.refused[name]})" if name in graph.refused else ""
        raise InputError(f"{name!r} is no hidden layer of this model{why}; these are: {names}.") from None


def require_free(layer: HiddenLayer) -> None:
    """Refuse a layer whose neurons depend on each other or on other data."""
    if layer.merge_neurons:
        raise InputError(f"The neurons of {layer.name!r} may not be split: {layer.merge_neurons}.")


def split_layer(model: nn.Module, layer: HiddenLayer, source: Sequence[int], shares: Tensor) -> None:
    """Let a layer have the neurons `source`, each with its share of the output weights of the neuron that it copies."""
    attachment, edits = attach(model), Edits()
    for name in (layer.name, *layer.consumers, *{name.rpartition(".")[0] for name, _ in layer.per_neuron}):
        attachment.remember(model, name)
    first = submodule(model, layer.name)
    assert is_layer(first)
    w_in, b_in = output_weight(first).detach(), first.bias
    for name in layer.consumers:
        consumer = submodule(model, name)
        assert is_layer(consumer)
        read = output_weight(consumer).detach()
        rows = input_rows(read, layer.width)
        weight, bias, columns = split_neurons(w_in.flatten(1), b_in, rows, source, shares)
        edits.set_tensor(consumer, "weight", stored_weight(consumer, from_input_rows(columns, read)))
        edits.sync_counts(consumer)
        edits.set_tensor(first, "weight", stored_weight(first, weight.reshape(-1, *w_in.shape[1:])))
        if bias is not None:
            edits.set_tensor(first, "bias", bias)
    edits.sync_counts(first)
    for qualified, layout in layer.per_neuron:
        owner_name, _, tensor = qualified.rpartition(".")
        owner = submodule(model, owner_name)
        old = getattr(owner, tensor)
        index = torch.tensor(source, device=old.device)
        edits.set_tensor(owner, tensor, old.detach().index_select(layout.dim, index))
        edits.sync_counts(owner)


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
