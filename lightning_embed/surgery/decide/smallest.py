"""The path of the tolerance: the smallest network that it allows, as far as we find it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightning_embed.statistics import Span
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.neuron_merge import NeuronMerge
from lightning_embed.surgery.decide.event import Bench
from lightning_embed.surgery.decide.thresholds import merge_constants, merge_layers
from lightning_embed.surgery.nominate.counting import Count
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.dealing import Dealt, foretold_costs, path
from lightning_embed.surgery.nominate.linearization import Linearization
from lightning_embed.surgery.nominate.null import Null
from lightning_embed.surgery.nominate.size import Size

ROUNDS = 3  # at most
WORTH = 0.98  # share of the parameters that a round may leave for another one to be worth its time
NEAR = 0.98  # of two sizes so near to each other the smaller one is not looked for


def merge_within_tolerance(bench: Bench) -> None:
    """Merge all that the tolerance allows: constant neurons, layers by the change that they make, then neurons.

    Everything is nominated; the measured change alone decides. Once the outputs have been matched more is allowed than
    before, and it is tried again until little is gained.
    """
    for _ in range(ROUNDS):
        before = parameter_count(bench.model)
        merge_constants(bench, [Null()])
        merge_layers(bench, [Linearization(0.0)])
        _narrow(bench)
        if not bench.match() or parameter_count(bench.model) > WORTH * before:
            break
    bench.forget_refusals_but_the_last()


def _narrow(bench: Bench) -> None:
    """Find, by bisection on sizes dealt out over the layers, the smallest that is allowed, and merge to it."""
    features, model = bench.features(), bench.model
    layers = [layer for layer in bench.graph.layers if layer.merge_neurons is None and layer.name in features]
    if not layers:
        return
    sizes = list(path(foretold_costs(model, layers, features, bench.event.fit), Count(model, layers)))
    cuts = [_Cut(bench.view(layer, features[layer.name])) for layer in layers]

    def steps(place: int) -> list[NeuronMerge]:
        return [step for cut in cuts for step in cut.to(sizes[place].widths)]

    allowed = _largest_allowed(sizes, bench.allowed, lambda place: bench.would_be_allowed(steps(place)))
    if allowed:
        bench.together(steps(allowed))


class _Cut:
    """Merges of one layer's neurons to any width; the order in which they go is found once."""

    def __init__(self, view: LayerView) -> None:
        self._view = view
        self._order: Span | None = None

    def to(self, widths: Mapping[str, int]) -> Sequence[NeuronMerge]:
        """The merge that leaves the layer's width; none where that is all."""
        width = widths[self._view.layer.name]
        if width == self._view.layer.width:
            return []
        if self._order is None:
            self._order = self._view.order(0.0)
        return Size(width, "span", self._order).nominate(self._view)


def _largest_allowed(sizes: Sequence[Dealt], allowed: float, is_allowed: Callable[[int], bool]) -> int:
    """The number of the smallest size that is allowed, 0 for none; the sizes fall, and what is larger is allowed too.

    The first look is where the foretold change is what is allowed.
    """
    low, high = 0, len(sizes)
    place = next((number for number, size in enumerate(sizes) if size.change > allowed), high - 1)
    while high - low > 1 and (high == len(sizes) or sizes[high].count < NEAR * sizes[low].count):
        place = min(max(place, low + 1), high - 1)
        if is_allowed(place):
            low = place
        else:
            high = place
        place = 2 * low if high == len(sizes) else (low + high) // 2
    return low
