"""Bring back what the Linears put out before the merges, where the outputs depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.graph import Graph
from lightning_embed.statistics import reconstruct
from lightning_embed.surgery.apply import Applied, apply_step
from lightning_embed.surgery.features import signed_total, thinned
from lightning_embed.surgery.plan import Reconstruction
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.recorder import in_backward
from lightning_embed.tape.tape import modules_by_name

ROWS = 4096  # of each Linear that are looked at, thinned evenly
ROWS_PER_INPUT = 2
OPERATIONS = 2**31  # of one pass over a Linear's rows; wider ones are left as they are


class Original:
    """What the Linears behind hidden layers put out, and the squared derivative of the outputs with respect to it.

    Taken from the model before its first merge; `reconstruct` then corrects a merged model towards it.
    """

    def __init__(self, model: nn.Module, graph: Graph, tapes: Sequence[Tape], *, seed: int) -> None:
        self._tapes = tapes
        self._cap = max(1, ROWS // max(1, len(tapes)))
        modules = modules_by_name(model)
        fed = dict.fromkeys(name for layer in graph.layers for name in layer.consumers)
        trained = any(one.requires_grad for one in model.parameters())
        names = [
            name
            for name in modules
            if name in fed
            and isinstance(modules[name], nn.Linear)
            and (not trained or modules[name].weight.requires_grad)
        ]
        self._outputs, self._weights = self._look(model, names, seed)

    def reconstruct(self, model: nn.Module, kept: Mapping[str, Tensor]) -> tuple[Applied, Reconstruction] | None:
        """Correct, one after the other, the Linears whose outputs differ from the original ones.

        Args:
            model: corrected in place; `undo` of what is returned takes it back.
            kept: for layers whose neurons were merged, the numbers of those that stayed.

        Returns:
            What was done, or None where nothing differs or too few rows tell how.
        """
        done = Applied()
        names: list[str] = []
        changes: list[tuple[Tensor, Tensor]] = []
        modules = modules_by_name(model)
        linears = {name: modules.get(name) for name in self._outputs}
        left = {name: one for name, one in linears.items() if isinstance(one, nn.Linear)}  # the others are merged away
        wanted = {name: _columns(self._outputs[name], kept.get(name)) for name in left}
        differs = self._differ(model, left, wanted)
        for name, linear in left.items():
            if not names and name not in differs:
                continue  # what lies before the first correction is as it was seen
            step = self._correction(model, name, linear, wanted[name], kept.get(name))
            if step is not None:
                done.extend(apply_step(model, step))
                names.append(name)
                changes.append((step.weights[0], step.biases[0]))
        if not names:
            return None
        return done, Reconstruction(tuple(names), tuple(one for one, _ in changes), tuple(one for _, one in changes))

    def _correction(
        self, model: nn.Module, name: str, linear: nn.Linear, wanted: Tensor, kept: Tensor | None
    ) -> Reconstruction | None:
        weight = _columns(self._weights[name], kept)
        rows, work = len(wanted), len(wanted) * linear.in_features * linear.out_features
        if rows < ROWS_PER_INPUT * linear.in_features or work > OPERATIONS:
            return None
        inputs, outputs = self._now(model, linear)
        error = wanted.double() - outputs.double()
        if inputs.shape[0] != rows or not bool(torch.isfinite(error).all()) or not bool(error.any()):
            return None
        change, bias = reconstruct(inputs, error, weight, intercept=linear.bias is not None)
        return Reconstruction((name,), (change.cpu(),), (bias.cpu(),))

    def _differ(self, model: nn.Module, linears: Mapping[str, nn.Linear], wanted: Mapping[str, Tensor]) -> set[str]:
        """The Linears that put out something else than is wanted."""
        found: set[str] = set()
        rows = dict.fromkeys(linears, 0)

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                now = thinned(output.detach(), self._cap)
                begin, rows[name] = rows[name], rows[name] + len(now)
                if not torch.equal(now, wanted[name][begin : rows[name]]):
                    found.add(name)

            return hook

        with ExitStack() as stack:
            for name, linear in linears.items():
                stack.callback(linear.register_forward_hook(hook_of(name)).remove)
            for tape in self._tapes:
                replay(model, tape)
        return found

    def _now(self, model: nn.Module, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Rows that a Linear reads and puts out in the present model."""
        read: list[Tensor] = []
        made: list[Tensor] = []

        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            (given,) = (*args, *kwargs.values())
            read.append(thinned(given.detach(), self._cap))
            made.append(thinned(output.detach(), self._cap))

        handle = linear.register_forward_hook(hook, with_kwargs=True)
        try:
            for tape in self._tapes:
                replay(model, tape)
        finally:
            handle.remove()
        return torch.cat(read), torch.cat(made)

    def _look(self, model: nn.Module, names: Sequence[str], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        weights: dict[str, list[Tensor]] = {name: [] for name in names}
        leaves: list[tuple[str, Tensor]] = []
        modules = modules_by_name(model)

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
                if in_backward():  # a checkpointed block is computed again there
                    return output
                outputs[name].append(thinned(output.detach(), self._cap))
                leaf = torch.zeros_like(output, requires_grad=True)
                leaves.append((name, leaf))
                return output + leaf

            return hook

        with ExitStack() as stack:
            for name in names:
                stack.callback(modules[name].register_forward_hook(hook_of(name)).remove)
            generator = torch.Generator().manual_seed(seed)
            for tape in self._tapes:
                leaves.clear()
                total = signed_total(replay(model, tape, grad=True), generator)
                for (name, _), gradient in zip(leaves, _gradients(total, [one for _, one in leaves]), strict=True):
                    squares = gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square()
                    weights[name].append(thinned(squares, self._cap))
        found = [name for name in names if outputs[name]]
        return {n: torch.cat(outputs[n]) for n in found}, {n: torch.cat(weights[n]) for n in found}


def _columns(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values[:, kept.to(values.device)]


def _gradients(total: Tensor, leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    if not total.requires_grad or not leaves:
        return iter([torch.zeros_like(leaf) for leaf in leaves])
    return iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
