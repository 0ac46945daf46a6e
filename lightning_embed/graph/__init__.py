"""The hidden layers of a model as they are seen in its calls: what feeds what, and what may be done to each."""

from lightning_embed.graph.graph import Graph, HiddenLayer, observe, rows_text
from lightning_embed.graph.kinds import Kind, Layer, counts, kind_of, output_weight, register_layer, stored_weight
from lightning_embed.graph.layout import (
    Layout,
    columns_of,
    from_input_rows,
    input_dim,
    input_layout,
    input_rows,
    is_layer,
    is_sharded,
    output_layout,
    pads_zeros,
    patches,
)
from lightning_embed.graph.reasons import REASONS, Reason, legend
from lightning_embed.graph.selection import Names, excluded, restricted

__all__ = [
    "REASONS",
    "Graph",
    "HiddenLayer",
    "Kind",
    "Layer",
    "Layout",
    "Names",
    "Reason",
    "columns_of",
    "counts",
    "excluded",
    "from_input_rows",
    "input_dim",
    "input_layout",
    "input_rows",
    "is_layer",
    "is_sharded",
    "kind_of",
    "legend",
    "observe",
    "output_layout",
    "output_weight",
    "pads_zeros",
    "patches",
    "register_layer",
    "restricted",
    "rows_text",
    "stored_weight",
]
