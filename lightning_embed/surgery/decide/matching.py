"""Match the outputs: a few steps on all remaining weights towards what the network computed before, with no labels."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_embed.graph import is_layer, is_sharded, output_weight
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.step import Applied
from lightning_embed.surgery.decide.check import Check, Effect
from lightning_embed.surgery.decide.scale import as_rows
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.tape import modules_by_name

ITERATIONS = 40  # of L-BFGS at most
ROUND = 10  # iterations between two looks at the deciding data


def match_outputs(
    model: nn.Module, original: nn.Module, fit: Sequence[Tape], check: Check, left_alone: Container[str] = ()
) -> Reconstruction | None:
    r"""The correction of all layers with which a merged network's outputs are nearest to the original's.

    Minimises $\sum_k \lVert (f'_k - f_k) / s_k \rVert^2$ over the fitting tapes by full-batch L-BFGS, where $f_k$ are
    the outputs of the original, in eval mode, and $s_k$ the spreads by which a change is divided (see `Scale`). Every
    ten iterations the deciding data are looked at; the weights that change the outputs least there are taken.

    Args:
        model: the merged model; it is left as it is.
        original: the model before the merges.
        fit: tapes on which the outputs are matched.
        check: tells the change on the deciding data.
        left_alone: names of layers that are not moved.

    Returns:
        A step that corrects weights and biases of Linears and convolutions, with the change before it as evidence; None
        where nothing is better than what is there, or there is nothing to train.
    """
    layers = {name: layer for name, layer in _trainable(model).items() if name not in left_alone}
    if not layers:
        return None
    tensors = {
        (name, tensor): value
        for name, layer in layers.items()
        for tensor in ("weight", "bias")
        if (value := getattr(layer, tensor, None)) is not None
    }
    targets = [[output for output in replay(original, tape) if output.is_floating_point()] for tape in fit]
    squares = _squares(targets, check)
    with _trained_in_place(list(tensors.values())):
        values = _descend(model, fit, targets, squares, list(tensors.values()), check)
    if values is None:
        return None
    moved = {
        key: (new.double() - old.detach().double()).cpu()
        for (key, old), new in zip(tensors.items(), values, strict=True)
    }
    no_bias = {name: torch.zeros(len(output_weight(layer)), dtype=torch.float64) for name, layer in layers.items()}
    return Reconstruction(
        tuple(layers),
        tuple(moved[name, "weight"] for name in layers),
        tuple(moved.get((name, "bias"), no_bias[name]) for name in layers),
        {"change before": check.change(model)},
    )


def matched(
    model: nn.Module, original: nn.Module, fit: Sequence[Tape], check: Check, left_alone: Container[str] = ()
) -> tuple[Reconstruction, Applied, Effect] | None:
    """Match a merged model's outputs to the original's, in place, where it is better for all that counts.

    Args:
        model: changed in place.
        original: the model before the merges.
        fit: tapes on which the outputs are matched.
        check: of the original's outputs.
        left_alone: names of layers that are not moved.

    Returns:
        What was done, for `undo`, and the effect of all changes; None where nothing was.
    """
    step = match_outputs(model, original, fit, check, left_alone)
    if step is None:
        return None
    was_allowed = not check.refusal(check.effect(model))
    applied = step.apply(model, attach(model))
    effect = check.effect(model)
    if was_allowed and check.refusal(effect):  # nearer in the outputs and yet further in what else counts
        applied.undo()
        return None
    return step, applied, effect


def _trainable(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers whose weights may move: plain, finite, in single or double precision, held once, and not frozen."""
    held: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        held[id(parameter)] = held.get(id(parameter), 0) + 1
    frozen = any(parameter.requires_grad for parameter in model.parameters())  # else all are: a model put to rest
    return {
        name: module  # type: ignore[misc]  # a layer of any kind
        for name, module in modules_by_name(model).items()
        if is_layer(module)
        and not is_sharded(module)
        and type(module._parameters.get("weight")) is nn.Parameter
        and not is_lazy(module.weight)
        and module.weight.dtype in (torch.float32, torch.float64)
        and held[id(module.weight)] == 1
        and all(
            parameter.layout == torch.strided and bool(torch.isfinite(parameter).all())
            for parameter in module.parameters(recurse=False)
        )
        and (module.weight.requires_grad or not frozen)
    }


def _squares(targets: Sequence[Sequence[Tensor]], check: Check) -> list[Tensor]:
    """By what the squared error of every output is divided, column by column (see `Scale`)."""
    known = check.squares
    columns = [as_rows(output).shape[1] for output in targets[0]]
    if [len(square) for square in known] == columns:
        return known
    # the tapes differ in what they put out: each output as a whole
    whole = []
    for number in range(min(map(len, targets))):
        deviation = [output.double() - output.double().mean() for output in (outputs[number] for outputs in targets)]
        square = sum(float(part[torch.isfinite(part)].square().sum()) for part in deviation)
        whole.append(torch.tensor(square or math.inf))
    return whole


def _descend(
    model: nn.Module,
    fit: Sequence[Tape],
    targets: Sequence[Sequence[Tensor]],
    squares: Sequence[Tensor],
    tensors: list[Tensor],
    check: Check,
) -> list[Tensor] | None:
    """Values of the tensors with which the deciding outputs change least; None if those that they have now."""
    optimizer = torch.optim.LBFGS(tensors, max_iter=ROUND, history_size=ROUND, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        total = 0.0
        for tape, wanted in zip(fit, targets, strict=True):
            outputs = [output for output in replay(model, tape, grad=True) if output.is_floating_point()]
            parts = [
                (_difference(now, was).square().sum(dim=0) / square.to(now.device)).sum()
                for now, was, square in zip(outputs, wanted, squares, strict=False)
                if now.requires_grad
            ]
            if parts:
                error = torch.stack(parts).sum()
                error.backward()
                total += float(error.detach())
        return total

    least, best = check.change(model), None
    for _ in range(ITERATIONS // ROUND):
        optimizer.step(loss)
        change = check.change(model)
        if not change < least or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            break
        least, best = change, [tensor.detach().clone() for tensor in tensors]
    return best


def _difference(now: Tensor, was: Tensor) -> Tensor:
    """What is missing, as (rows, columns); nothing where an output is infinite, as it stays so."""
    there = torch.isfinite(was)
    return as_rows(now.masked_fill(~there, 0.0)) - as_rows(was.masked_fill(~there, 0.0))


@contextmanager
def _trained_in_place(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let tensors be trained, and put values, gradients and flags back when the block ends."""
    saved = [(tensor, tensor.detach().clone(), tensor.grad, tensor.requires_grad) for tensor in tensors]
    try:
        for tensor, _, _, _ in saved:
            tensor.requires_grad_(True)
            tensor.grad = None
        yield
    finally:
        with torch.no_grad():
            for tensor, value, grad, required in saved:
                tensor.requires_grad_(required)
                tensor.copy_(value)
                tensor.grad = grad
