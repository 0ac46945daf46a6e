"""Recording and replaying: what is kept, what is dropped, and that nothing else changes."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.tape import Recorder, deal, record, replay
from lightning_embed.tape.tree import tensors_of
from tests.tape.modules import Noisy, Parts, clean, mlp, names, taped
from tests.zoo import IN, OUT, WIDTH, ZOO

RANDOM = {"RandomInEval", "Autoencoder", "Adversarial"}  # the eval forward itself draws numbers


# ---- record, then replay ----


@pytest.mark.parametrize("name", sorted(set(ZOO) - RANDOM))
def test_replay_equals_the_eval_forward_bit_for_bit(name: str) -> None:
    case = ZOO[name]
    torch.manual_seed(0)
    model, batch = case.make().train(), case.batch()
    tapes = record(model, [batch], call=lambda batch: case.call(model, batch))
    assert clean(model)
    assert model.training
    twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(tapes))
    model.eval()
    with torch.no_grad():
        expected = tensors_of(case.call(model, batch))
    for outputs in (replay(model, tapes[0]), replay(twin, again[0])):
        assert len(outputs) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_two_replays_agree(name: str) -> None:
    case = ZOO[name]
    model = case.make()
    [tape] = record(model, [case.batch()], call=lambda batch: case.call(model, batch))
    torch.manual_seed(1)
    first = replay(model, tape)
    torch.manual_seed(2)
    assert all(torch.equal(one, other) for one, other in zip(first, replay(model, tape), strict=True))
    with_graph = replay(model, tape, grad=True)
    for one, other in zip(first, with_graph, strict=True):
        torch.testing.assert_close(one, other.detach())  # transformers take another path when gradients are asked for
    assert any(output.requires_grad for output in with_graph)


def test_a_changed_copy_is_replayed_with_its_own_parameters() -> None:
    model = mlp()
    [tape] = record(model, [torch.randn(4, IN)])
    changed = copy.deepcopy(model)
    changed[0] = nn.Linear(IN, 2)
    changed[3] = nn.Linear(2, OUT)
    assert replay(changed, tape)[0].shape == (4, OUT)
    assert not torch.equal(replay(changed, tape)[0], replay(model, tape)[0])


def test_a_tape_that_does_not_fit_names_the_step_and_the_cause() -> None:
    model = Parts()
    with Recorder(model) as recorder:
        model.fc2(F.relu(model.fc1(torch.randn(4, IN))))
    model.fc2 = nn.Linear(WIDTH + 1, OUT)
    with pytest.raises(ReplayError, match="Step 3 of the tape \\(module 'fc2'\\) failed") as caught:
        replay(model, taped(recorder))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert clean(model)
    del model.fc1
    with pytest.raises(ReplayError, match="fc1"):
        replay(model, taped(recorder))


@pytest.mark.parametrize("fails", [False, True])
def test_replay_leaves_no_trace(fails: bool) -> None:
    model = Noisy()
    [tape] = record(model, [torch.randn(4, IN)])
    model.fails = fails
    model.train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    if fails:
        with pytest.raises(ReplayError, match="on purpose"):
            replay(model, tape)
    else:
        replay(model, tape)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.norm.training
    assert not hasattr(model, "seen")
    assert clean(model)


def test_replay_does_not_change_the_tape() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(IN, OUT))
    [tape] = record(model, [-torch.ones(4, IN)])
    replay(model, tape)
    assert torch.equal(tensors_of(tape.steps[0].args)[0], -torch.ones(4, IN))


# ---- offline ----


def test_default_calls() -> None:
    model, x = mlp().eval(), torch.randn(4, IN)
    for batch in (x, (x, "target"), [x, 1]):
        [tape] = record(model, [batch])
        assert torch.equal(replay(model, tape)[0], model(x))

    class Calibrated(Parts):
        def calibration_step(self, batch: dict[str, Tensor]) -> Tensor:
            return self.fc1(batch["x"]).relu()

    parts = Calibrated()
    tapes = record(parts, [{"x": x}, {"x": x}])
    assert names(tapes[0]) == ["module 'fc1'", "function relu"]
    assert sum(tape.samples for tape in tapes) == 8


def test_output_selects() -> None:
    model, x = ZOO["Heads"].make(), torch.randn(4, IN)
    [tape] = record(model, [x], output=lambda returned: returned[1])
    assert [tuple(one.shape) for one in replay(model, tape)] == [(4, 1)]


def test_batches_that_cannot_be_recorded() -> None:
    model = mlp()
    with pytest.raises(InputError, match="batches is empty"):
        record(model, [])
    with pytest.raises(InputError, match=r"Batch 0 of type dict .*Pass call="):
        record(model, [{"x": torch.randn(4, IN)}])
    with pytest.raises(InputError, match="no floating-point tensor"):
        record(model, [torch.randn(4, IN)], call=lambda batch: model(batch).argmax(-1))
    with pytest.raises(InputError, match="cannot be traced to the model"):
        record(model, [torch.randn(4, IN)], call=lambda batch: batch)
    with pytest.raises(KeyError):  # the user's own call fails as it is
        record(model, [{}], call=lambda batch: model(batch["x"]))
    assert clean(model)
    assert model.training


def test_sequences_are_walked() -> None:
    model = nn.LSTM(IN, WIDTH)
    packed = pack_sequence([torch.randn(3, IN), torch.randn(2, IN)])
    with Recorder(model) as recorder:
        expected, _ = model(packed)
    tape = pickle.loads(pickle.dumps(taped(recorder)))
    assert isinstance(tape.steps[0].args[0], PackedSequence)
    assert torch.equal(replay(model, tape)[0], expected.data)


def test_dealing_makes_halves_of_as_many_samples_with_every_kind_of_step_in_both():
    narrow, wide = nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 1))
    tapes = record(narrow, [torch.ones(samples, 2) for samples in (1, 59, 1, 100, 40, 79)])
    halves = deal(tapes)
    assert [[tape.samples for tape in half] for half in halves] == [[1, 1, 100], [59, 40, 79]]
    equal = record(narrow, [torch.ones(10, 2)] * 5)
    assert deal(equal) == (equal[::2], equal[1::2])
    kinds = [equal[0], *record(wide, [torch.ones(90, 2)] * 2, call=lambda x: wide[0](x) + wide(x)), equal[1]]
    for half in deal(kinds):
        assert sorted(len(tape.steps) for tape in half) == [1, 3]
    alone = [equal[0], kinds[1]]
    assert deal(alone) == (alone[:1], alone[1:])
