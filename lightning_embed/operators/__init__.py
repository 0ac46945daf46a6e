"""Embeddings and reductions as pure tensor functions, each operator beside its inverse.

A hidden layer is given by `w_in` (width, fan_in), `b_in` (width,) or None, `w_out` (fan_out, width) and
`b_out` (fan_out,) or None, as `torch.nn.Linear` stores them. Every function gives new tensors of the types
and on the device of those they replace, computes in float64, and leaves its arguments as they were.

A whole fully-connected network is given by its parameters θ, a plain tuple of pairs (weight, bias); see `theta`.
"""

from lightning_embed.operators.channels import merge_channels, split_channel
from lightning_embed.operators.compatible import (
    NULL,
    AffineForm,
    Embedding,
    check_compatible,
    compatible_embedding,
    compose,
    membership,
)
from lightning_embed.operators.embeddings import (
    family_member,
    global_null,
    global_splitting,
    measured_dimension,
    null_embedding,
    predicted_dimension,
    random_embedding,
    splitting_embedding,
)
from lightning_embed.operators.lifted import lift, lifted_from
from lightning_embed.operators.lifting import lift_layer, merge_layers
from lightning_embed.operators.null import add_null_neurons, drop_null_neurons
from lightning_embed.operators.segments import Segment, affine_segments, tangent_segment
from lightning_embed.operators.splitting import group_mix, merge_neurons, split_neuron, split_neurons
from lightning_embed.operators.symmetry import permute_neurons, rescale_neuron
from lightning_embed.operators.theta import (
    Theta,
    features,
    from_vector,
    network,
    parameter_count,
    to_vector,
    widths_of,
)

__all__ = [
    "NULL",
    "AffineForm",
    "Embedding",
    "Segment",
    "Theta",
    "add_null_neurons",
    "affine_segments",
    "check_compatible",
    "compatible_embedding",
    "compose",
    "drop_null_neurons",
    "family_member",
    "features",
    "from_vector",
    "global_null",
    "global_splitting",
    "group_mix",
    "lift",
    "lift_layer",
    "lifted_from",
    "measured_dimension",
    "membership",
    "merge_channels",
    "merge_layers",
    "merge_neurons",
    "network",
    "null_embedding",
    "parameter_count",
    "permute_neurons",
    "predicted_dimension",
    "random_embedding",
    "rescale_neuron",
    "split_channel",
    "split_neuron",
    "split_neurons",
    "splitting_embedding",
    "tangent_segment",
    "to_vector",
    "widths_of",
]
