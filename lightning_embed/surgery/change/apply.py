"""Carry out the steps of a plan on a model: new weights computed, checked, then put in place all at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Layer, from_input_rows, input_layout, input_rows, is_layer
from lightning_embed.operators import merge_layers, merge_neurons
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.surgery.change.optimizer import Fresh, ParameterMove, Sliced, Whole, remap_optimizers
from lightning_embed.surgery.change.plan import LayerMerge, NeuronMerge, Plan, Reconstruction, Record, Step
from lightning_embed.surgery.persist.checkpoint import Attachment, attach, detach, is_attached

log = logging.getLogger(__name__)


@dataclass
class Applied:
    """A step that was carried out: how to take it back, and where every parameter went."""

    edits: Edits = field(default_factory=Edits)
    moves: list[ParameterMove] = field(default_factory=list)

    def extend(self, later: Applied) -> None:
        """Take in a step that was carried out after this one; undoing takes both back."""
        self.edits.extend(later.edits)
        self.moves.extend(later.moves)

    def undo(self) -> None:
        """Put the old parameters, buffers and modules back; the very same objects, so bit for bit."""
        self.edits.undo()
        self.moves.clear()


@torch.inference_mode(mode=False)
def apply(
    model: nn.Module,
    plan: Plan,
    *,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Carry out a plan on a model in place, without a check of its effect.

    A layer merge puts W₂ diag(λ) W₁ and W₂ (λ∘b₁ + μ) + b₂ into the consumer (paper 000, eq. 4.2 read from right to
    left); a neuron merge keeps some rows of W₁ and puts W₂ M and W₂ s + b₂ into the consumer, where the features of
    all neurons are M φ_kept + s. The model's state dict describes its architecture from then on (see `attach`).

    Preserved: the outputs as far as the plan's fits hold (`prune` measures that, and undoes what changes too much),
    every other parameter, names of modules, modes, hooks on modules. Not preserved: gradient hooks on the parameters
    that are replaced; the log says so.

    Args:
        model: the model that the plan was proposed for (or one of the same architecture).
        plan: what to merge, from `propose` or `Plan.from_dict`.
        optimizers: optimizers that hold the model's parameters; they are edited in place: the same objects, groups
            and hyper-parameters, with first and second moments carried over where a map exists.

    Raises:
        InputError: a step does not fit the model (a name is missing, a width differs, a value is not finite). The
            model and the optimizers are then as they were before the call.

    >>> from lightning_embed import Criteria, propose
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1))
    >>> for one, value in zip(net.parameters(), (2.0, 1.0, 3.0, 0.0)):
    ...     _ = one.data.fill_(value)
    >>> apply(net, propose(net, torch.linspace(-1, 1, 64)[:, None]))
    >>> [round(one.item(), 4) for one in net.parameters()]  # 3 (2 x + 1)
    [6.0, 3.0]
    """
    if isinstance(optimizers, torch.optim.Optimizer):
        optimizers = (optimizers,)
    optimizers = list(optimizers)
    known = is_attached(model)
    attachment = attach(model)
    done: list[Applied] = []
    try:
        for step in plan:
            done.append(apply_step(model, step))  # noqa: PERF401  # those before an error are needed
    except Exception:
        for applied in reversed(done):
            applied.undo()
        attachment.forget_untouched(model)
        if not known:
            detach(model)
        raise
    # the steps' moves chain: what one step's move calls new is the next one's old
    for step, applied in zip(plan, done, strict=True):
        settle(model, applied, optimizers, Record.of(step))


def settle(model: nn.Module, applied: Applied, optimizers: Iterable[torch.optim.Optimizer], record: Record) -> None:
    """Make a step final: the optimizers follow, the model's history tells of it."""
    remap_optimizers(optimizers, applied.moves)
    attach(model).history.append(record.to_dict())
    hooked = sum(bool(move.old is not None and _has_hooks(move.old)) for move in applied.moves)
    if hooked:
        log.warning(
            "%d merged parameters of %s and its consumers had gradient hooks, which the new ones do not have; "
            "register them again.",
            hooked,
            record.layer,
        )


def _has_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def apply_step(model: nn.Module, step: Step) -> Applied:
    """Carry out one step; on an error nothing is changed."""
    attachment = attach(model)
    applied = Applied()
    try:
        if isinstance(step, LayerMerge):
            _merge_layer(model, step, applied, attachment)
        elif isinstance(step, Reconstruction):
            _correct(model, step, applied)
        else:
            _merge_neurons(model, step, applied, attachment)
    except Exception:
        applied.undo()
        raise
    return applied


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return submodule(model, name)
    except KeyError:
        raise InputError(
            f"The plan names {name!r}, which the model does not have; was the plan made for another model?"
        ) from None


def _layer(model: nn.Module, name: str) -> Layer:
    module = _module(model, name)
    if not is_layer(module):
        raise InputError(
            f"The plan merges {name!r}, which is a {type(module).__name__} in this model and no Linear or convolution; "
            "was it applied already?"
        )
    return module


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = _layer(model, name)
    _require(isinstance(module, nn.Linear), name, f"it is a {type(module).__name__}, which has no such merge")
    assert isinstance(module, nn.Linear)
    return module


def _require(fits: bool, layer: str, what: str) -> None:
    if not fits:
        raise InputError(f"The plan does not fit layer {layer!r} of this model: {what}. Propose it anew.")


def _merge_layer(model: nn.Module, step: LayerMerge, applied: Applied, attachment: Attachment) -> None:
    layer = _linear(model, step.layer)
    width, fan_in = layer.weight.shape
    _require(step.slope.shape == step.intercept.shape == (width,), step.layer, f"its width is {width}")
    _require(step.input_power.shape == (fan_in,), step.layer, f"it has {fan_in} inputs")
    consumers = [_linear(model, name) for name in step.consumers]
    slope, intercept = step.slope.to(layer.weight.device), step.intercept.to(layer.weight.device)
    merged = []
    for name, consumer in zip(step.consumers, consumers, strict=True):
        _require(consumer.in_features == width, name, f"it reads {consumer.in_features} inputs, not {width}")
        merged.append(merge_layers(layer.weight, layer.bias, consumer.weight, consumer.bias, slope, intercept))

    edits = applied.edits
    for name, consumer, (weight, bias) in zip(step.consumers, consumers, merged, strict=True):
        attachment.remember(model, name)
        old, old_bias = consumer.weight, consumer.bias
        edits.set_tensor(consumer, "weight", weight)
        edits.sync_counts(consumer)
        fresh = Fresh(old, consumer.weight, old_bias, step.input_power, step.feature_power)
        applied.moves.append(fresh)
        _set_bias(consumer, bias, applied)
    for name in (step.layer, *step.region_modules):
        gone = _module(model, name)
        attachment.remember(model, name)
        edits.set_slot(model, name, nn.Identity().train(gone.training))
        applied.moves.extend(Whole(parameter, None) for parameter in gone.parameters())


def _merge_neurons(model: nn.Module, step: NeuronMerge, applied: Applied, attachment: Attachment) -> None:
    layer = _layer(model, step.layer)
    width = len(layer.weight)
    kept = list(step.kept)
    _require(step.mix.shape == (width, len(kept)), step.layer, f"its width is {width}, the plan's {step.width}")
    _require(bool(kept) and sorted(set(kept)) == kept and kept[-1] < width, step.layer, "kept indices are off")
    consumers = [_layer(model, name) for name in step.consumers]
    mix, shift = step.mix.to(layer.weight.device), step.shift.to(layer.weight.device)
    for name, consumer in zip(step.consumers, consumers, strict=True):
        read = consumer.weight.shape[1]
        _require(read > 0 and read % width == 0, name, f"it reads {read} inputs, not {width} or a multiple")
    merged = [
        _without(layer, name, consumer, kept, mix, shift)
        for name, consumer in zip(step.consumers, consumers, strict=True)
    ]

    edits = applied.edits
    index = torch.tensor(kept, device=layer.weight.device)
    attachment.remember(model, step.layer)
    own_bias = None if layer.bias is None else layer.bias.detach()[index]
    for name, value in (("weight", layer.weight.detach()[index]), ("bias", own_bias)):
        old = getattr(layer, name)
        if old is not None:
            edits.set_tensor(layer, name, value)
            applied.moves.append(Sliced(old, getattr(layer, name), index, 0, mix))
    edits.sync_counts(layer)
    for qualified, dim in step.per_neuron:
        owner_name, _, tensor_name = qualified.rpartition(".")
        owner = _module(model, owner_name)
        old = getattr(owner, tensor_name, None)
        if not isinstance(old, Tensor) or old.dim() <= dim:
            raise InputError(f"The plan cuts {qualified!r}, which is no such tensor in this model; propose it anew.")
        attachment.remember(model, owner_name)
        _require(old.shape[dim] == width, qualified, f"dimension {dim} is {old.shape[dim]}, not {width}")
        edits.set_tensor(owner, tensor_name, old.detach().index_select(dim, index.to(old.device)))
        if isinstance(old, nn.Parameter):
            applied.moves.append(Sliced(old, getattr(owner, tensor_name), index, dim))
        edits.sync_counts(owner)
    for name, consumer, (weight, bias) in zip(step.consumers, consumers, merged, strict=True):
        attachment.remember(model, name)
        old, entries = consumer.weight, input_layout(consumer, width).entries(index)
        edits.set_tensor(consumer, "weight", weight)
        edits.sync_counts(consumer)
        applied.moves.append(Sliced(old, consumer.weight, entries, 1))
        _set_bias(consumer, bias, applied)


def _without(
    layer: Layer, name: str, consumer: Layer, kept: list[int], mix: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a consumer for the kept neurons; every tap of a kernel is an output of its own to mix."""
    rows = input_rows(consumer.weight, len(layer.weight)).double()
    _, _, mixed, shifts = merge_neurons(layer.weight.flatten(1), layer.bias, rows, None, kept, mix, shift)
    weight = from_input_rows(mixed, consumer.weight)
    bias = None if consumer.bias is None else consumer.bias.detach().double()
    if shifts is not None:
        added = shifts.reshape(len(weight), -1).sum(dim=1)
        bias = added if bias is None else bias + added
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and not torch.isfinite(value.to(consumer.weight.dtype)).all():
            raise InputError(f"The merged {what} of {name!r} is not finite in {consumer.weight.dtype}.")
    return weight, bias


def _correct(model: nn.Module, step: Reconstruction, applied: Applied) -> None:
    for name, change, bias_change in zip(step.layers, step.weights, step.biases, strict=True):
        linear = _layer(model, name)
        _require(change.shape == linear.weight.shape, name, f"its weight is {tuple(linear.weight.shape)}")
        _require(bias_change.shape == linear.weight.shape[:1], name, f"it has {len(linear.weight)} outputs")
        for tensor, addition in (("weight", change), ("bias", bias_change)):
            old = getattr(linear, tensor)
            if old is not None:
                corrected = (old.detach().double() + addition.to(old.device)).to(old.dtype)
                if not torch.isfinite(corrected).all():
                    raise InputError(f"The corrected {tensor} of {name!r} is not finite in {old.dtype}.")
                applied.edits.set_tensor(linear, tensor, corrected)
                applied.moves.append(Whole(old, getattr(linear, tensor)))


def _set_bias(consumer: Layer, bias: Tensor | None, applied: Applied) -> None:
    """Give a consumer its new bias; where it had none, the optimizer learns of one more parameter."""
    if bias is None:
        return
    old = consumer.bias
    applied.edits.set_tensor(consumer, "bias", bias, like=consumer.weight)
    applied.moves.append(Whole(old, consumer.bias, beside=consumer.weight))
