"""Corrections towards the original network: what is corrected, what is left alone, and that all can be taken back."""

import copy

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery.decide.original import Original
from lightning_embed.tape import record
from tests.surgery.steps import layer_merge, mlp, neuron_merge


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def original(model, x=None):
    tapes = record(model, (data() if x is None else x).split(100))
    return Original(model, observe(model, tapes), tapes)


def change(model, x, wanted):
    return ((model(x) - wanted).norm() / (wanted - wanted.mean(dim=0)).norm()).item()


def test_nothing_differs_and_nothing_is_done():
    model = mlp(3, 6, 6, 2)
    assert original(model).reconstruct(model, le.attach(model), {}) is None


@torch.no_grad()
def test_a_disturbed_linear_is_brought_back_and_undone_bit_for_bit():
    model = mlp(3, 6, 6, 2)
    before, towards = model(data()), original(model)
    model[2].weight += 0.1
    disturbed = copy.deepcopy(dict(model.named_parameters()))
    applied, step = towards.reconstruct(model, le.attach(model), {})
    assert step.layers == ("2", "4")
    assert change(model, data(), before) < 0.02
    torch.testing.assert_close(model[2].weight, disturbed["2.weight"] + step.weights[0])
    torch.testing.assert_close(model[4].bias, disturbed["4.bias"] + step.biases[1])
    applied.undo()
    torch.testing.assert_close(dict(model.named_parameters()), disturbed, rtol=0, atol=0)


@torch.no_grad()
def test_behind_merged_neurons_the_kept_ones_are_brought_back():
    model = mlp(3, 6, 6, 2)
    before, towards = model(data()), original(model)
    neuron_merge(model, [[4, 1], [2, 3]], layer="2", consumer="4").apply(model, le.attach(model))
    neuron_merge(model, [[0, 1]], layer="0", consumer="2").apply(model, le.attach(model))
    cut = change(model, data(), before)
    assert towards.reconstruct(model, le.attach(model), {"2": torch.tensor([0, 2, 4, 5])}) is not None
    assert change(model, data(), before) < cut / 2


@torch.no_grad()
def test_what_is_merged_away_or_reads_nothing_merged_is_left_alone():
    model = mlp(3, 6, 6, 2)
    towards = original(model)
    layer_merge(model, "2", "3", "4").apply(model, le.attach(model))
    _, step = towards.reconstruct(model, le.attach(model), {})
    assert step.layers == ("4",)


def test_frozen_linears_among_trained_ones_are_left_alone_and_a_frozen_model_is_corrected():
    for frozen, corrected in (([2], ("4",)), ([0, 2, 4], ("2", "4"))):
        model = mlp(3, 6, 6, 2)
        for number in frozen:
            model[number].requires_grad_(False)
        towards = original(model)
        model[2].weight.data += 0.1
        _, step = towards.reconstruct(model, le.attach(model), {})
        assert step.layers == corrected


def test_too_few_rows_or_too_much_work_correct_nothing(monkeypatch):
    model = mlp(3, 6, 6, 2)
    tapes = record(model, [data(7)])
    towards = Original(model, observe(model, tapes), tapes)
    enough = original(model)
    model[2].weight.data += 0.1
    assert towards.reconstruct(model, le.attach(model), {}) is None
    monkeypatch.setattr("lightning_embed.surgery.decide.original.OPERATIONS", 10)
    assert enough.reconstruct(model, le.attach(model), {}) is None


def test_linears_without_a_bias_get_none():
    model = mlp(3, 6, 6, 2, bias=False)
    towards = original(model)
    model[2].weight.data += 0.1
    _, step = towards.reconstruct(model, le.attach(model), {})
    assert not any(one.any() for one in step.biases)
    assert model[2].bias is None


def test_a_correction_is_on_record_in_the_plan_and_lowers_the_change():
    model, x = mlp(3, 24, 24, 2), data()
    result = le.prune(model, x, criteria=le.Criteria(None, None, 0.2), tolerance=le.Tolerance(change=0.4))
    done = [one for one in result.records if one.done]
    last = next(one for one in reversed(done) if one.kind == "reconstruction")
    assert last.change < last.evidence["change before"]
    again = copy.deepcopy(model)
    le.apply(again, le.Plan.from_dict(result.plan.to_dict()))
    torch.testing.assert_close(again(x), result.model(x))
    held = change(result.model, x[200:], model(x[200:]))
    assert held == pytest.approx(done[-1].change, rel=1e-6)


@torch.no_grad()
def test_a_correction_that_its_dtype_cannot_hold_is_left_out():
    model = mlp(3, 6, 6, 2, activation=nn.Identity, dtype=torch.float16)
    model[0].weight *= 1e-3
    model[0].bias *= 1e-3
    model[2].weight.copy_(torch.sign(model[2].weight) * 60_000)
    model[4].weight *= 1e-2
    x = data().half()
    before, towards = model(x), original(model, x)
    model[0].weight *= 0.5
    model[0].bias *= 0.5
    _, step = towards.reconstruct(model, le.attach(model), {})  # twice 60 000 is too large, what follows takes its part
    assert step.layers == ("4",)
    assert change(model, x, before) < 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e36])
def test_outputs_of_any_scale(scale):
    reference, model = (mlp(3, 12, 12, 2, dtype=torch.float32) for _ in range(2))
    for parameter in model[4].parameters():
        parameter.data *= scale
    options = {"criteria": le.Criteria(None, None, 0.2), "tolerance": le.Tolerance(change=0.4)}
    results = [le.prune(one, data().float(), match=False, **options) for one in (reference, model)]
    kinds = [[(one.kind, one.layer, one.done, one.width) for one in result.records] for result in results]
    assert kinds[0] == kinds[1]
    assert "reconstruction" in {one[0] for one in kinds[0]}
