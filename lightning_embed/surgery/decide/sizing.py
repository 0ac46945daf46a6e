"""The path of the sizes: so many neurons in each layer, as they are asked for or dealt out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.graph import HiddenLayer
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.in_turn import in_turn
from lightning_embed.surgery.change.neuron_merge import Fit, NeuronMerge
from lightning_embed.surgery.change.step import Applied
from lightning_embed.surgery.decide.event import Bench
from lightning_embed.surgery.decide.thresholds import merge_layers
from lightning_embed.surgery.nominate.counting import Count, operations
from lightning_embed.surgery.nominate.dealing import even_widths, foretold_costs, path
from lightning_embed.surgery.nominate.linearization import Linearization
from lightning_embed.surgery.nominate.size import Size
from lightning_embed.surgery.nominate.sizes import Share, Widths
from lightning_embed.surgery.persist.copying import copy_of
from lightning_embed.surgery.persist.snapshot import latency, size_of

TURNS = 9  # how often the two networks are timed in turn


def merge_to_widths(bench: Bench, sizes: Widths) -> None:
    """Leave the wanted number of neurons in each layer; those that are to go altogether first, whatever their MPC."""
    widths = sizes.by_layer(bench.graph)
    gone = {name for name, width in widths.items() if width == 0}
    if gone:
        merge_layers(bench, [Linearization(0.0)], gone)
    narrow(bench, {name: width for name, width in widths.items() if width})


def narrow(bench: Bench, widths: Mapping[str, int]) -> bool:
    """Leave so many neurons in these layers, all at once; whether that is allowed."""
    steps: list[NeuronMerge] = []
    features = bench.features()
    for name in widths.keys() - {layer.name for layer in bench.graph.layers}:
        bench.refuse(name, "size", f"after the merges before it: {bench.graph.refused.get(name)}")
    for layer in bench.graph.layers:
        if widths.get(layer.name, layer.width) >= layer.width:
            continue
        if layer.merge_neurons is not None:  # a merge before has changed what lies behind it
            bench.refuse(layer, "size", f"after the merges before it: {layer.merge_neurons}")
        elif layer.name in features:
            steps += Size(widths[layer.name]).nominate(bench.view(layer, features[layer.name]))
    return not steps or bench.together(steps)


class Budget:
    """A share of what a model has, from the moment on when this is made.

    Args:
        bench: where the model is worked on.
        sizes: what is asked for.
    """

    def __init__(self, bench: Bench, sizes: Share) -> None:
        self._bench, self._sizes = bench, sizes
        self._tape = bench.event.fit[0]
        self._whole = copy_of(bench.model) if sizes.of == "latency" else None
        self._full = 1.0 if sizes.of == "latency" else self._measured(bench.model)

    def merge(self) -> None:
        """Narrow the layers until no more than the share is left.

        Raises:
            InputError: merging neurons cannot leave so little; nothing is changed then.
        """
        bench = self._bench
        features = bench.features()
        layers = [layer for layer in bench.graph.layers if layer.merge_neurons is None and layer.name in features]
        wanted = self._sizes.share * self._full
        if self._left(layers, {}) <= wanted:
            return
        candidates: list[Mapping[str, int]] = (
            even_widths(layers)
            if self._sizes.evenly
            else [
                dealt.widths
                for dealt in path(foretold_costs(bench.model, layers, features, bench.event.fit), self._count(layers))
            ]
        )
        least = self._left(layers, candidates[-1])
        if least > wanted:
            raise InputError(
                f"Merging neurons cannot leave less than {least / self._full:.3g} of the model's {self._sizes.of}, "
                f"{self._sizes.share:g} is asked for; print(lightning_embed.measure(model, data)) says what holds the "
                "others back."
            )
        narrow(bench, candidates[first(candidates, lambda widths: self._left(layers, widths) <= wanted)])

    def _count(self, layers: Sequence[HiddenLayer]) -> Count:
        """What is counted as a function of the widths; of time the operations tell."""
        model = self._bench.model
        if self._sizes.of == "parameters":
            return Count(model, layers)
        return Count(model, layers, *operations(model, self._tape))

    def _left(self, layers: Sequence[HiddenLayer], widths: Mapping[str, int]) -> float:
        """What is left of the model with these widths."""
        if self._sizes.of == "parameters":
            return self._count(layers)({layer.name: layer.width for layer in layers} | dict(widths))
        with _Narrowed(self._bench, layers, widths):
            return self._measured(self._bench.model)

    def _measured(self, model: nn.Module) -> float:
        if self._sizes.of == "parameters":
            return parameter_count(model)
        if self._whole is None:
            return size_of(model, self._tape, ()).flops
        ratios = [latency(model, self._tape, 1) / latency(self._whole, self._tape, 1) for _ in range(TURNS)]
        return statistics.median(ratios)


def first(candidates: Sequence[Mapping[str, int]], fits: Callable[[Mapping[str, int]], bool]) -> int:
    """The number of the first candidate that fits, where the last one does and all after one that fits do too."""
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(candidates[middle]) else (middle + 1, high)
    return high


class _Narrowed:
    """The shape of a narrower model for the length of a `with`: what it computes is nothing."""

    def __init__(self, bench: Bench, layers: Sequence[HiddenLayer], widths: Mapping[str, int]) -> None:
        self._bench = bench
        self._steps = in_turn(
            [
                _first_neurons(layer, widths[layer.name])
                for layer in layers
                if widths.get(layer.name, layer.width) < layer.width
            ]
        )
        self._done: list[Applied] = []

    def __enter__(self) -> None:
        for step in self._steps:
            self._done.append(step.apply(self._bench.model, self._bench.attachment))

    def __exit__(self, *_: object) -> None:
        for applied in reversed(self._done):
            applied.undo()


def _first_neurons(layer: HiddenLayer, width: int) -> NeuronMerge:
    mix = torch.zeros(layer.width, width, dtype=torch.float64)
    mix[:width] = torch.eye(width, dtype=torch.float64)
    return NeuronMerge(
        layer=layer.name,
        producers=layer.producers,
        reads=layer.reads,
        per_neuron=layer.per_neuron,
        kept=tuple(range(width)),
        fits=(Fit(layer.consumers, mix, torch.zeros(layer.width, dtype=torch.float64)),),
        criterion="size",
    )
