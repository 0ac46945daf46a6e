"""Bring back what Linears and convolutions put out before the merges, where the outputs depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, Layer, is_layer, output_layout, patches
from lightning_embed.statistics import reconstruct
from lightning_embed.surgery.change.apply import Applied, apply_step
from lightning_embed.surgery.change.plan import Reconstruction
from lightning_embed.surgery.nominate.features import signed_total, stride, thinned
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.recorder import in_backward
from lightning_embed.tape.tape import modules_by_name

ROWS = 4096  # of each layer that are looked at, thinned evenly
ROWS_PER_INPUT = 2
OPERATIONS = 2**31  # of one pass over a layer's rows; wider ones are left as they are


class Original:
    """What the layers behind hidden ones put out, and the squared derivative of the outputs with respect to it.

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
            if name in fed and is_layer(modules[name]) and (not trained or modules[name].weight.requires_grad)
        ]
        self._outputs, self._weights = self._look(model, names, seed)

    def reconstruct(self, model: nn.Module, kept: Mapping[str, Tensor]) -> tuple[Applied, Reconstruction] | None:
        """Correct, one after the other, the layers whose outputs differ from the original ones.

        Args:
            model: corrected in place; `undo` of what is returned takes it back.
            kept: for layers whose neurons were merged, the numbers of those that stayed.

        Returns:
            What was done, or None where nothing differs or too few rows tell how.
        """
        done = Applied()
        names: list[str] = []
        changes: list[tuple[Tensor, Tensor]] = []
        modules = {name: modules_by_name(model).get(name) for name in self._outputs}
        layers = {name: one for name, one in modules.items() if is_layer(one)}  # the others are merged away
        wanted = {name: _columns(self._outputs[name], kept.get(name)) for name in layers}
        differ = self._differ(model, layers, wanted)
        for name, layer in layers.items():
            if not names and name not in differ:
                continue  # what lies before the first correction puts out what it did
            step = self._correction(model, name, layer, wanted[name], kept.get(name))
            if step is None:
                continue
            try:
                done.extend(apply_step(model, step))
            except InputError:  # the corrected weights cannot be held, in half precision for one
                continue
            names.append(name)
            changes.append((step.weights[0], step.biases[0]))
        if not names:
            return None
        return done, Reconstruction(tuple(names), tuple(one for one, _ in changes), tuple(one for _, one in changes))

    def _correction(
        self, model: nn.Module, name: str, layer: Layer, wanted: Tensor, kept: Tensor | None
    ) -> Reconstruction | None:
        weight, fan_in = _columns(self._weights[name], kept), layer.weight[0].numel()
        rows, work = len(wanted), len(wanted) * layer.weight.numel()
        if rows < ROWS_PER_INPUT * fan_in or work > OPERATIONS:
            return None
        inputs, outputs = self._now(model, layer)
        error = wanted.double() - outputs.double()
        finite = all(bool(torch.isfinite(one).all()) for one in (inputs, error, weight))
        if inputs.shape[0] != rows or not finite or not bool(error.any()):
            return None
        change, bias = reconstruct(inputs, error, weight, intercept=layer.bias is not None)
        return Reconstruction((name,), (change.reshape(layer.weight.shape).cpu(),), (bias.cpu(),))

    def _differ(self, model: nn.Module, layers: Mapping[str, Layer], wanted: Mapping[str, Tensor]) -> set[str]:
        """The layers that put out something else than is wanted."""
        found: set[str] = set()
        rows = dict.fromkeys(layers, 0)

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                now = self._rows(layers[name], output)
                begin, rows[name] = rows[name], rows[name] + len(now)
                if not torch.equal(now, wanted[name][begin : rows[name]]):
                    found.add(name)

            return hook

        with ExitStack() as stack:
            for name, layer in layers.items():
                stack.callback(layer.register_forward_hook(hook_of(name)).remove)
            for tape in self._tapes:
                replay(model, tape)
        return found

    def _now(self, model: nn.Module, layer: Layer) -> tuple[Tensor, Tensor]:
        """Rows that a layer reads and puts out in the present model."""
        read: list[Tensor] = []
        made: list[Tensor] = []

        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            (given,) = (*args, *kwargs.values())
            made.append(self._rows(layer, output))
            if isinstance(layer, nn.Linear):
                read.append(thinned(given.detach(), self._cap))
            else:
                count = output[:, 0].numel()
                chosen = torch.arange(0, count, stride(count, self._cap), device=output.device)
                read.append(patches(given.detach(), layer, output, chosen))

        handle = layer.register_forward_hook(hook, with_kwargs=True)
        try:
            for tape in self._tapes:
                replay(model, tape)
        finally:
            handle.remove()
        return torch.cat(read), torch.cat(made)

    def _rows(self, layer: nn.Module, output: Tensor) -> Tensor:
        """Some rows of what a layer puts out."""
        assert is_layer(layer)
        return thinned(output.detach(), self._cap, output_layout(layer))

    def _look(self, model: nn.Module, names: Sequence[str], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outputs: dict[str, list[Tensor]] = {name: [] for name in names}
        weights: dict[str, list[Tensor]] = {name: [] for name in names}
        leaves: list[tuple[str, Tensor]] = []
        modules = modules_by_name(model)

        def hook_of(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
                if in_backward():  # a checkpointed block is computed again there
                    return output
                outputs[name].append(self._rows(modules[name], output))
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
                    weights[name].append(self._rows(modules[name], gradient).double().square())
        found = [name for name in names if outputs[name]]
        return {n: torch.cat(outputs[n]) for n in found}, {n: torch.cat(weights[n]) for n in found}


def _columns(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values[:, kept.to(values.device)]


def _gradients(total: Tensor, leaves: Sequence[Tensor]) -> Iterator[Tensor]:
    if not total.requires_grad or not leaves:
        return iter([torch.zeros_like(leaf) for leaf in leaves])
    return iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
