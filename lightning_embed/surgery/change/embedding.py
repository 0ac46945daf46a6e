"""Any embedding on a model: one neuron or channel split, null neurons added, a general compatible embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, is_layer, observe, output_weight
from lightning_embed.operators import Embedding, Theta
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.surgery.change.enlarging import (
    hidden_layer,
    in_blocks,
    require_free,
    require_kept,
    split_layer,
    tapes_of,
)
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.surgery.persist.copying import copy_of

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Split:
    """One neuron, or a channel of a convolution, becomes several (001, Def. 4.4; 004, Def. 5 and Sec. 6).

    Attributes:
        neuron: its number.
        shares: of its output weights, one for every copy, summing to 1; a number α means (1 - α, α). The first copy
            stays in the neuron's place, the others stand at the end.
    """

    neuron: int
    shares: float | Sequence[float] = 0.5


@dataclass(frozen=True, eq=False)
class Null:
    """New neurons at the end of a layer that no other layer reads yet (001, Def. 4.3): zero output weights.

    Attributes:
        count: how many.
        bias: their biases, shape (count,); zeros if None.
        input_weights: shape (count, fan_in); zeros if None. Given ones keep the function, but not criticality: the
            gradient of the output weights is then that of a feature which the model does not have.
    """

    count: int = 1
    bias: Tensor | None = None
    input_weights: Tensor | None = None


@torch.inference_mode(mode=False)
def embed(
    model: M,
    what: Embedding | Mapping[str, Split | Null],
    data: Any = None,
    *,
    layers: Sequence[str] | None = None,
    call: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> M:
    """Embed a model into a wider one that computes the same, by a named embedding or by any compatible one.

    `widen` chooses by itself which neurons it copies; here one says it. What is said of single layers is a mapping from
    their names. A compatible embedding (001, Def. 5.2: `compatible_embedding`, `global_splitting`, `random_embedding`)
    is applied to a chain of Linears, each of which alone reads the one before.

    Preserved: the outputs in eval mode, for every input, up to rounding (of an embedding with null neurons: with the
    activation it was made for); criticality, except for `Null` with input weights, and where null neurons are not zero
    only if the layers that read them have biases. The state dict describes the new widths, as that of a merged model
    does.

    Args:
        model: any module; it is left untouched.
        what: by the name of a hidden layer's Linear or convolution a `Split` or `Null`; or an `Embedding`.
        data: some batches on which to observe the model, as for `widen`.
        layers: the hidden layers of the chain that an `Embedding` takes, in order; all hidden layers if None.
        call: how to run the model on a batch: batch → outputs.
        seed: of the loader's shuffling, or of the random numbers that stand for data.

    Returns:
        The wider model, a copy.

    Raises:
        InputError: a name is no hidden layer or its neurons may not be split, there is no such neuron, shares or shapes
            do not fit, the layers are no chain of the embedding's widths, or the outputs would change.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> wide, x = embed(net, {"0": Split(1, [0.5, 0.25, 0.25])}), torch.randn(5, 2)
    >>> wide[0].out_features, torch.allclose(wide(x), net(x), atol=1e-6)
    (5, True)
    """
    wide = copy_of(model)
    tapes = tapes_of(model, data, call, seed)
    graph = observe(wide, tapes)
    if isinstance(what, Embedding):
        _compatible(wide, graph, what, layers)
    else:
        for name, how in what.items():
            layer = hidden_layer(graph, name)
            require_free(layer)
            if isinstance(how, Split):
                _split(wide, layer, how)
            elif isinstance(how, Null):
                _null(wide, layer, how)
            else:
                raise InputError(f"{name!r}: give a Split, a Null, or one Embedding for the model, not {how!r}.")
            graph = observe(wide, tapes)  # the next layer reads another width now
    require_kept(model, wide, tapes, "embedded")
    return wide


def _split(model: nn.Module, layer: HiddenLayer, how: Split) -> None:
    if how.neuron not in range(layer.width):
        raise InputError(f"{layer.name!r} has the neurons 0 to {layer.width - 1}, not {how.neuron}.")
    alpha = how.shares
    shares = torch.tensor([1 - alpha, alpha] if isinstance(alpha, (int, float)) else list(alpha), dtype=torch.float64)
    if len(shares) < 2 or not torch.isfinite(shares).all() or abs(float(shares.sum()) - 1) > 1e-9:
        raise InputError(f"The shares of a split must be two or more finite numbers that sum to 1, not {alpha}.")
    source = [*range(layer.width), *[how.neuron] * (len(shares) - 1)]
    every = torch.ones(len(source), dtype=torch.float64)
    every[how.neuron], every[layer.width :] = shares[0], shares[1:]
    split_layer(model, layer, source, every)


def _null(model: nn.Module, layer: HiddenLayer, how: Null) -> None:
    """Copies of neuron 0 with no share of its output weights, whose input weights are then replaced."""
    linear = submodule(model, layer.name)
    assert is_layer(linear)
    weight = output_weight(linear)
    if len(layer.producers) != 1 or not in_blocks(model, layer):
        raise InputError(
            f"{layer.name!r} shares its neurons' places with other values; null neurons have no place there."
        )
    if how.count < 1:
        raise InputError(f"Null(count=…) must be at least 1, not {how.count}.")
    if how.bias is not None and linear.bias is None:
        raise InputError(f"{layer.name!r} has no bias; leave out Null(bias=…).")
    for name, value, shape in (
        ("bias", how.bias, (how.count,)),
        ("input_weights", how.input_weights, (how.count, *weight.shape[1:])),
    ):
        if value is not None and (tuple(value.shape) != shape or not torch.isfinite(value).all()):
            raise InputError(f"Null({name}=…) must be finite and of shape {shape} for {layer.name!r}.")
    every = torch.cat([torch.ones(layer.width), torch.zeros(how.count)]).double()
    split_layer(model, layer, [*range(layer.width), *[0] * how.count], every)
    with torch.no_grad():
        output_weight(linear)[-how.count :] = 0.0 if how.input_weights is None else how.input_weights.to(weight)
        if linear.bias is not None:
            linear.bias[-how.count :] = 0.0 if how.bias is None else how.bias.to(linear.bias)


def _compatible(model: nn.Module, graph: Graph, embedding: Embedding, layers: Sequence[str] | None) -> None:
    linears = _chain(model, graph, layers)
    attachment, edits = attach(model), Edits()
    theta: Theta = tuple(
        (one.weight.detach(), one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias.detach())
        for one in linears.values()
    )
    wide = embedding(theta)
    for (name, linear), (weight, bias) in zip(linears.items(), wide, strict=True):
        attachment.remember(model, name)
        edits.set_tensor(linear, "weight", weight)
        if linear.bias is not None or bias.any():
            edits.set_tensor(linear, "bias", bias, like=linear.weight)
        edits.sync_counts(linear)


def _chain(model: nn.Module, graph: Graph, layers: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The Linears of a chain of hidden layers and the one that reads the last, by name."""
    hidden = [hidden_layer(graph, name) for name in (layers or [one.name for one in graph.layers])]
    if not hidden:
        raise InputError("The model has no hidden layer; print(le.measure(model, data)) tells why.")
    names = [one.name for one in hidden]
    for layer, after in zip(hidden, [*names[1:], None], strict=True):
        require_free(layer)
        if len(layer.consumers) != 1 or (after is not None and layer.consumers != (after,)):
            read = ", ".join(layer.consumers)
            raise InputError(
                f"A compatible embedding takes a chain of Linears; {layer.name!r} is read by {read}"
                + (f", not by {after!r} alone." if after else ".")
            )
        if layer.per_neuron:
            held = ", ".join(name for name, _ in layer.per_neuron)
            raise InputError(f"A compatible embedding knows no parameters between Linears; {layer.name!r} has {held}.")
    names.append(hidden[-1].consumers[0])
    modules = {name: submodule(model, name) for name in names}
    found = {name: one for name, one in modules.items() if isinstance(one, nn.Linear)}
    for name, one in modules.items():
        if name not in found:
            raise InputError(f"A compatible embedding takes Linears; {name!r} is a {type(one).__name__}.")
    return found
