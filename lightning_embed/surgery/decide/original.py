"""Bring back what Linears and convolutions put out before the merges."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, Layer, Layout, is_layer, output_layout, output_weight, patches, stored_weight
from lightning_embed.statistics import reconstruct
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.step import Applied
from lightning_embed.surgery.collect import Collector
from lightning_embed.surgery.nominate.features import stride, thinned
from lightning_embed.surgery.persist.checkpoint import Attachment
from lightning_embed.tape import Tape
from lightning_embed.tape.tape import modules_by_name

ROWS = 8  # two points always lie on a line
MAX_ROWS = 4096  # of each layer that are looked at, thinned evenly
OPERATIONS = 2**31  # of one pass over a layer's rows; wider ones are left as they are


class Original:
    """What the layers behind hidden ones put out.

    Taken from the model before its first merge; `reconstruct` then corrects a merged model towards it.

    Args:
        model: before its first merge.
        graph: what was observed of it.
        tapes: on which layers are corrected.
        left_alone: names of layers that are not corrected.
    """

    def __init__(self, model: nn.Module, graph: Graph, tapes: Sequence[Tape], left_alone: Container[str] = ()) -> None:
        self._tapes = tapes
        self._cap = max(1, MAX_ROWS // max(1, len(tapes)))
        modules = modules_by_name(model)
        fed = dict.fromkeys(name for layer in graph.layers for name in layer.consumers)
        trained = any(parameter.requires_grad for parameter in model.parameters())
        names = [
            name
            for name in modules
            if name in fed
            and name not in left_alone
            and _correctable(modules[name])
            and (not trained or modules[name].weight.requires_grad)
        ]
        self._outputs = self._look(model, names)

    def reconstruct(
        self, model: nn.Module, attachment: Attachment, kept: Mapping[str, Tensor]
    ) -> tuple[Applied, Reconstruction] | None:
        """Correct, one after the other, the layers whose outputs differ from the original ones.

        Args:
            model: corrected in place; `undo` of what is returned takes it back.
            attachment: of the model.
            kept: for layers whose neurons were merged, the numbers of the rows that stayed.

        Returns:
            What was done, or None where nothing differs.
        """
        done = Applied()
        names: list[str] = []
        changes: list[tuple[Tensor, Tensor]] = []
        modules = {name: modules_by_name(model).get(name) for name in self._outputs}
        layers = {name: module for name, module in modules.items() if is_layer(module)}  # the others are merged away
        wanted = {name: _columns(self._outputs[name], kept.get(name)) for name in layers}
        differ = self._differ(model, layers, wanted)
        for name, layer in layers.items():
            if not names and name not in differ:
                continue  # what lies before the first correction puts out what it did
            step = self._correction(model, name, layer, wanted[name])
            if step is None:
                continue
            try:
                done.extend(step.apply(model, attachment))
            except InputError:  # the corrected weights cannot be held, in half precision for one
                continue
            names.append(name)
            changes.append((step.weights[0], step.biases[0]))
        if not names:
            return None
        weights, biases = zip(*changes, strict=True)
        return done, Reconstruction(tuple(names), weights, biases)

    def _correction(self, model: nn.Module, name: str, layer: Layer, wanted: Tensor) -> Reconstruction | None:
        rows = len(wanted)
        if rows < ROWS or rows * layer.weight.numel() > OPERATIONS:
            return None
        inputs, outputs = self._now(model, name, layer)
        error = wanted.double() - outputs.double()
        finite = all(bool(torch.isfinite(values).all()) for values in (inputs, error))
        if inputs.shape[0] != rows or not finite or not bool(error.any()):
            return None
        change, bias = reconstruct(inputs, error, intercept=getattr(layer, "bias", None) is not None)
        stored = stored_weight(layer, change.reshape(output_weight(layer).shape))
        return Reconstruction((name,), (stored.contiguous().cpu(),), (bias.cpu(),))

    def _differ(self, model: nn.Module, layers: Mapping[str, Layer], wanted: Mapping[str, Tensor]) -> set[str]:
        """The layers that put out something else than is wanted."""
        collector = Collector(model)
        alike = {
            name: collector.puts_out(name, _Comparison(self, layer, wanted[name])) for name, layer in layers.items()
        }
        collector.run(self._tapes)
        return {name for name, calls in alike.items() if not all(calls)}

    def _now(self, model: nn.Module, name: str, layer: Layer) -> tuple[Tensor, Tensor]:
        """Rows that a layer reads and puts out in the present model."""

        def read(given: Tensor, output: Tensor) -> Tensor:
            if not isinstance(layer, nn.modules.conv._ConvNd):
                return thinned(given, self._cap, Layout(output_layout(layer).dim))
            count = output[:, 0].numel()
            chosen = torch.arange(0, count, stride(count, self._cap), device=output.device)
            return patches(given, layer, output, chosen)

        collector = Collector(model)
        inputs = collector.calls(name, None, read)
        outputs = collector.puts_out(name, lambda output: self._rows(layer, output))
        collector.run(self._tapes)
        return torch.cat(inputs), torch.cat(outputs)

    def _rows(self, layer: nn.Module, output: Tensor) -> Tensor:
        """Some rows of what a layer puts out."""
        assert is_layer(layer)
        return thinned(output, self._cap, output_layout(layer))

    def _look(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        modules, collector = modules_by_name(model), Collector(model)
        outputs = {
            name: collector.puts_out(name, lambda output, layer=modules[name]: self._rows(layer, output))  # type: ignore[misc]  # bound now
            for name in names
        }
        collector.run(self._tapes)
        return {name: torch.cat(calls) for name, calls in outputs.items() if calls}


class _Comparison:
    """Whether what a layer puts out, call by call, is what is wanted."""

    def __init__(self, original: Original, layer: Layer, wanted: Tensor) -> None:
        self._original, self._layer, self._wanted = original, layer, wanted
        self._seen = 0

    def __call__(self, output: Tensor) -> bool:
        rows = self._original._rows(self._layer, output)
        begin, self._seen = self._seen, self._seen + len(rows)
        return torch.equal(rows, self._wanted[begin : self._seen])


def _correctable(module: nn.Module) -> bool:
    """Whether a layer can be corrected; what a transposed convolution reads for an output is not at hand."""
    return is_layer(module) and not isinstance(module, nn.modules.conv._ConvTransposeNd)


def _columns(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values[:, kept.to(values.device)]
