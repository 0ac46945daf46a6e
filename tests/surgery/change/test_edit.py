"""Replacements are taken back in the reverse order, to the very same objects."""

import torch
from torch import nn

from lightning_embed.surgery.change.edit import Edits


def test_undo_takes_back_what_was_replaced_twice():
    model, edits = nn.Sequential(nn.Linear(3, 6), nn.Tanh()), Edits()
    weight, module = model[0].weight, model[1]
    for width in (5, 4):
        edits.set_tensor(model[0], "weight", torch.zeros(width, 3))
        edits.sync_counts(model[0])
        edits.set_slot(model, "1", nn.Identity())
    assert model[0].out_features == 4
    edits.undo()
    assert model[0].weight is weight
    assert model[1] is module
    assert model[0].out_features == 6
