"""Tapes as plain data: a round trip through a file that torch reads with `weights_only=True`, and what is refused."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from lightning_embed.errors import CheckpointError, InputError
from lightning_embed.tape import from_plain, record, replay, to_plain
from tests.tape.modules import mlp
from tests.zoo import IN, ZOO

CPU = torch.device("cpu")


def through_a_file(data):
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def written(name):
    case = ZOO[name]
    torch.manual_seed(0)
    model, batch = case.make(), case.batch()
    (tape,) = record(model, [batch], call=lambda batch: case.call(model, batch))
    return model, tape


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_tape_comes_back_as_it_was(name):
    model, tape = written(name)
    try:
        plain = through_a_file(to_plain(tape))
    except InputError:
        plain = to_plain(tape, strict=False)
    again = from_plain(plain, CPU)
    assert (again.structure, again.samples, again.nbytes) == (tape.structure, tape.samples, tape.nbytes)
    for ours, theirs in zip(replay(model, again), replay(model, tape), strict=True):
        assert torch.equal(ours, theirs)


def test_most_models_have_plain_tapes():
    refused = []
    for name in ZOO:
        try:
            to_plain(written(name)[1])
        except InputError:
            refused.append(name)
    assert len(refused) <= len(ZOO) // 10, refused


@pytest.mark.parametrize(
    "function",
    [
        ["torch", "", "load"],
        ["torch", "", "save"],
        ["torch", "hub", "load"],
        ["torch", "serialization", "load"],
        ["torch", "ops.aten.__class__", "mro"],
        ["torch", "_C._VariableFunctions", "from_file"],
        ["torch", "ops.aten", "from_file"],
        ["torch", "ops.aten.from_file", "default"],
        ["torch", "ops", "load_library"],
        ["attribute", "__class__"],
        ["attribute", "data.__class__"],
        ["torch", "Tensor", "nothing"],
    ],
    ids=str,
)
def test_a_file_cannot_name_anything_but_functions_of_tensors(function):
    net = mlp()
    (tape,) = record(net, [torch.randn(4, IN)], call=lambda x: net[2](torch.tanh(net[0](x))))
    plain = to_plain(tape)
    assert plain["steps"][1]["function"] == ["torch", "_C._VariableFunctions", "tanh"]
    plain["steps"][1]["function"] = function
    with pytest.raises(CheckpointError):
        from_plain(plain, CPU)


@pytest.mark.parametrize("damage", [lambda d: d.pop("samples"), lambda d: d["steps"][0].pop("args")])
def test_damage_is_told(damage):
    net = mlp()
    (tape,) = record(net, [torch.randn(4, IN)])
    plain = to_plain(tape)
    damage(plain)
    with pytest.raises(CheckpointError, match="damaged"):
        from_plain(plain, CPU)


def test_objects_of_the_users_own_are_named():
    class Options:
        pass

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, options):
            return self.net(x)

    model = Takes()
    (tape,) = record(model, [torch.randn(4, IN)], call=lambda x: model(x, Options()))
    with pytest.raises(InputError, match="Options"):
        to_plain(tape)
    kept = from_plain(to_plain(tape, strict=False), CPU)
    assert torch.equal(replay(model, kept)[0], replay(model, tape)[0])
