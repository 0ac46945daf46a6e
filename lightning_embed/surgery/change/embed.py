"""Embed a model into a larger one that computes the same: wider, by splitting neurons, or deeper, by lifting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import HiddenLayer, Layout, observe
from lightning_embed.operators import (
    Segment,
    affine_segments,
    lift_layer,
    tangent_segment,
)
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.surgery.change.enlarging import hidden_layer, require_free, require_kept, split_layer, tapes_of
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.surgery.persist.checkpoint import detach
from lightning_embed.surgery.persist.copying import copy_of

M = TypeVar("M", bound=nn.Module)


@torch.inference_mode(mode=False)
def widen(
    model: M,
    widths: Mapping[str, int],
    data: Any = None,
    *,
    call: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> M:
    """Give hidden layers more neurons and keep the function: copies share their original's output weights.

    A multi-step splitting embedding (001, Def. 4.6): every new neuron copies the input weights, the bias and the
    parameters per neuron (batch norm, PReLU) of one old neuron, and all copies of a neuron share its output weights.
    The shares are random, so that the copies get different gradients and can part in training; dropout parts them too.

    Preserved: the outputs in eval mode for every input, up to rounding; the features; criticality. The state dict
    describes the new widths, as that of a merged model does: it loads into a model of the old size after `attach`.

    Args:
        model: any module; it is left untouched.
        widths: number of neurons to have, by the name of the hidden layer's Linear or convolution
            (channels).
        data: some batches on which to observe the model, as for `prune`; values do not matter. If None the model is
            called on random numbers of the first Linear's size, which suits a plain MLP.
        call: how to run the model on a batch: batch → outputs.
        seed: of the shares and of which neurons are copied more often.

    Returns:
        The wider model, a copy.

    Raises:
        InputError: a name is no hidden layer or its neurons may not be split (the reason is quoted), a width is
            smaller than the present one, the model cannot be observed, or its outputs would change.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> wide, x = widen(net, {"0": 8}), torch.randn(5, 2)
    >>> wide[0].out_features, torch.allclose(wide(x), net(x), atol=1e-6)
    (8, True)
    """
    wide = copy_of(model)
    tapes = tapes_of(model, data, call, seed)
    graph = observe(wide, tapes)
    for name, width in widths.items():
        layer = hidden_layer(graph, name)
        require_free(layer)
        if width < layer.width:
            raise InputError(
                f"{name!r} has {layer.width} neurons, more than the {width} asked for; "
                "use prune(widths=…) to narrow it."
            )
    generator = torch.Generator().manual_seed(seed)
    for number, (name, width) in enumerate(widths.items()):
        if number and len(graph.layers) > 1:
            graph = observe(wide, tapes)  # where its columns are may have changed
        layer = hidden_layer(graph, name)
        split_layer(wide, layer, *_random_copies(layer.width, width, generator))
    require_kept(model, wide, tapes, "widened")
    return wide


def _random_copies(old: int, new: int, generator: torch.Generator) -> tuple[list[int], Tensor]:
    """Which neuron each of the new layer copies, all about equally often, and its share; the old ones come first."""
    rounds = [torch.arange(old)]
    while sum(len(one) for one in rounds) < new:
        rounds.append(torch.randperm(old, generator=generator))
    source = torch.cat(rounds)[:new]
    raw = torch.rand(new, dtype=torch.float64, generator=generator) + 0.5
    return source.tolist(), raw / raw.new_zeros(old).index_add(0, source, raw)[source]


@torch.inference_mode(mode=False)
def deepen(
    model: M,
    data: Any,
    *,
    after: str,
    width: int | None = None,
    activation: nn.Module | None = None,
    radius: float = 0.02,
    skip: bool = False,
    call: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> M:
    """Insert a hidden layer behind another one and keep the function on the data: a one-layer lifting.

    The Linear that reads the layer becomes nn.Sequential(Linear, activation, Linear) in the same slot, factorised by
    `lift_layer` (000, Def. 4.2 and Lemma A.1) such that the data lie where the activation is affine. A smooth
    activation is replaced by its tangent at its straightest point near zero; the error falls with `radius`², at a
    point of inflection (tanh, sigmoid, GELU, SiLU), while rounding grows with 1 / radius.

    Preserved: the outputs on the data and in a neighbourhood of them, up to rounding or the tangent's error; there
    also criticality. Not preserved: the outputs on data that reach beyond the segment, so give data that represent
    all (000, Prop. 4.4). The state dict has the new names; load it into a model that was deepened alike. `prune`
    undoes it.

    Args:
        model: any module; it is left untouched.
        data: calibration data, as for `prune`.
        after: name of a hidden layer's Linear that a single Linear reads.
        width: neurons to insert; the least number that works, the smaller of the reading Linear's sizes, if None.
        activation: the inserted activation; a copy of the one behind `after` if None.
        radius: for smooth activations, half the length of the interval of pre values that the data fill by half.
        skip: insert a residual layer, h + σ(W h + b), instead (000, Def. A.2); it is as wide as what the Linear reads.
        call: how to run the model on a batch: batch → outputs.
        seed: of the loader's shuffling.

    Returns:
        The deeper model, a copy, detached (see `attach`).

    Raises:
        InputError: `after` is no hidden layer, several Linears read it, its activation is no single module, the width
            is too small, or the outputs change by more than 5 % of their variation.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> x = torch.randn(50, 2)
    >>> deep = deepen(net, x, after="0")
    >>> deep[2], torch.allclose(deep(x), net(x), atol=1e-5)
    (Sequential(
      (0): Linear(in_features=3, out_features=1, bias=True)
      (1): ReLU()
      (2): Linear(in_features=1, out_features=1, bias=True)
    ), True)
    """
    deep = copy_of(model)
    detach(deep)
    tapes = tapes_of(model, data, call, seed)
    layer = hidden_layer(observe(deep, tapes), after)
    if len(layer.consumers) != 1:
        names = ", ".join(layer.consumers)
        raise InputError(f"{after!r} is read by several Linears ({names}); a layer is inserted before a single one.")
    (name,) = layer.consumers
    consumer = _linear(deep, name)
    if layer.reads[name] != Layout.blocks(-1, consumer.in_features):
        raise InputError(f"{name!r} reads other values beside {after!r}, or several of each neuron; take another one.")
    between = copy.deepcopy(activation) if activation is not None else _activation_behind(deep, layer)
    segment = next(iter(affine_segments(between)), None) or _straightest(between, radius)
    w1, b1, w2, b2 = lift_layer(
        consumer.weight.detach(),
        None if consumer.bias is None else consumer.bias.detach(),
        collect_features(deep, [layer], tapes)[after].post.to(consumer.weight.device),
        segment=(segment.low, segment.high),
        slope=segment.slope,
        intercept=segment.intercept,
        width=width,
        skip=skip,
    )
    first, last = _new_linear(w1, b1, consumer), _new_linear(w2, b2, consumer)
    lifted = nn.Sequential(Residual(first, between), last) if skip else nn.Sequential(first, between, last)
    Edits().set_slot(deep, name, lifted.train(consumer.training))
    require_kept(model, deep, tapes, "deepened")
    return deep


class Residual(nn.Module):
    """A residual layer, h + σ(W h + b).

    Args:
        linear: W and b, as many outputs as inputs.
        activation: σ.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, h: Tensor) -> Tensor:
        """Add what the layer makes of its input to the input."""
        added: Tensor = self.activation(self.linear(h))
        return h + added


def _new_linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=like.weight.requires_grad)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=like.weight.requires_grad)
    return linear


def _activation_behind(model: nn.Module, layer: HiddenLayer) -> nn.Module:
    """A copy of the only module behind a layer that is neither a normalisation nor a dropout."""
    others = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    modules = [submodule(model, name) for name in layer.region_modules]
    found = [one for one in modules if not isinstance(one, others)]
    if len(found) != 1 or next(found[0].parameters(), None) is not None:
        raise InputError(
            f"No single module without parameters is the activation behind {layer.name!r}; pass activation=."
        )
    return copy.deepcopy(found[0])


def _straightest(activation: nn.Module, radius: float) -> Segment:
    """The tangent segment of a smooth activation whose error is the smallest beside its slope, for centres in ±3."""
    segments = []
    for centre in sorted(torch.linspace(-3, 3, 97).tolist(), key=abs):
        try:
            segments.append(tangent_segment(activation, centre, radius))
        except InputError:  # flat there
            continue
    if not segments:
        raise InputError(f"{type(activation).__name__} has no point of non-zero slope within ±3; choose another one.")
    return min(segments, key=lambda one: one.error / abs(one.slope))


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = submodule(model, name)
    if type(module) is not nn.Linear:
        raise InputError(f"{name!r} is a {type(module).__name__}; only an nn.Linear can be embedded.")
    return module
