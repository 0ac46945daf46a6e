"""The hidden layers of a model as they are seen in its calls: what feeds what, and what may be done to each."""

from lightning_embed.graph.graph import Graph, HiddenLayer, observe
from lightning_embed.graph.layout import (
    Layer,
    Layout,
    from_input_rows,
    input_layout,
    input_rows,
    is_layer,
    is_sharded,
    output_layout,
    patches,
)
from lightning_embed.graph.reasons import REASONS, Reason, legend

__all__ = [
    "REASONS",
    "Graph",
    "HiddenLayer",
    "Layer",
    "Layout",
    "Reason",
    "from_input_rows",
    "input_layout",
    "input_rows",
    "is_layer",
    "is_sharded",
    "legend",
    "observe",
    "output_layout",
    "patches",
]
