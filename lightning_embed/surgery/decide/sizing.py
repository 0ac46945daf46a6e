"""The path of the sizes: so many neurons in each layer, as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_embed.graph import Reason
from lightning_embed.surgery.decide.event import Bench
from lightning_embed.surgery.decide.thresholds import merge_layers
from lightning_embed.surgery.nominate.linearization import Linearization
from lightning_embed.surgery.nominate.size import Size


def merge_to_sizes(bench: Bench, sizes: Mapping[str, int]) -> None:
    """Leave the wanted number of neurons in each layer; those that are to go altogether first, whatever their MPC."""
    gone = {name for name, width in sizes.items() if width == 0}
    if gone:
        merge_layers(bench, [Linearization(0.0)], gone)
    wanted = [(layer.name, bench.identity(layer)) for layer in bench.graph.layers if sizes.get(layer.name)]
    for name, identity in wanted:
        layer = bench.layer_now(identity)
        if layer is None or layer.merge_neurons is not None:  # a merge before has changed what lies behind it
            why = str(bench.graph.refused.get(name)) if layer is None else str(layer.merge_neurons)
            bench.refuse(layer or name, "size", f"after the merges before it: {why}")
        elif bench.usable(layer) and sizes[name] < layer.width:
            nominated = Size(sizes[name]).nominate(bench.view(layer, bench.features([layer])[layer.name]))
            if isinstance(nominated, Reason):
                bench.refuse(layer, "size", str(nominated))
            else:
                bench.attempt(nominated)
