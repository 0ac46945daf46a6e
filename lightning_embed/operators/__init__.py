"""Embeddings and reductions as pure tensor functions, each operator beside its inverse.

A hidden layer is given by `w_in` (width, fan_in), `b_in` (width,) or None, `w_out` (fan_out, width) and
`b_out` (fan_out,) or None, as `torch.nn.Linear` stores them. Every function gives new tensors of the types
and on the device of those they replace, computes in float64, and leaves its arguments as they were.
"""

from lightning_embed.operators.lifting import lift_layer, merge_layers
from lightning_embed.operators.null import add_null_neurons, drop_null_neurons
from lightning_embed.operators.splitting import group_mix, merge_neurons, split_neuron

__all__ = [
    "add_null_neurons",
    "drop_null_neurons",
    "group_mix",
    "lift_layer",
    "merge_layers",
    "merge_neurons",
    "split_neuron",
]
