"""Plans made by hand, for tests that need a merge but no measurement."""

from itertools import pairwise

import torch
from torch import nn

from lightning_embed.graph import Layout
from lightning_embed.operators import group_mix
from lightning_embed.surgery import LayerMerge, NeuronMerge, Plan
from lightning_embed.surgery.change.neuron_merge import one_fit


def mlp(*sizes, activation=nn.Tanh, bias=True, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def layer_merge(model, layer="0", activation="1", consumer="2"):
    """Merge a layer as if its activation were the identity."""
    linear = model.get_submodule(layer)
    width, fan_in = linear.weight.shape
    return LayerMerge(
        layer=layer,
        consumers=(consumer,),
        region_modules=(activation,),
        slope=torch.ones(width, dtype=torch.float64),
        intercept=torch.zeros(width, dtype=torch.float64),
        input_power=torch.ones(fan_in, dtype=torch.float64),
        feature_power=1.0,
        evidence={"mpc": 1.0},
    )


def neuron_merge(model, groups, layer="0", consumer="2", per_neuron=(), criterion="condensation"):
    """Merge groups of equal neurons."""
    width = model.get_submodule(layer).out_features
    kept, mix = group_mix(groups, width)
    return NeuronMerge(
        layer=layer,
        producers={layer: Layout.blocks(-1, width)},
        reads={consumer: None},
        per_neuron=tuple((name, Layout.blocks(dim, width)) for name, dim in per_neuron),
        kept=tuple(kept),
        fits=one_fit([consumer], mix, torch.zeros(width)),
        criterion=criterion,
        evidence={"cosine": 1.0},
    )


def plan(*steps):
    return Plan(tuple(steps))
