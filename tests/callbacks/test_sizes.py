"""A size in training: cut once, early, to what was asked for, and trained on."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingPruner, NearEnd, Once
from tests.callbacks.runs import Planted, loader, trainer


def parameters(module):
    return sum(one.numel() for one in module.parameters())


def finished(folder, pruner, *, epochs=10, ckpt=None, extra=(), model=None):
    model = model or Planted()
    run = trainer(folder, [pruner, *extra], max_epochs=epochs)
    run.fit(model, loader(), ckpt_path=ckpt)
    return run, model


@pytest.mark.parametrize("of", ["parameters", "flops"])
@pytest.mark.parametrize("budget", [0.6, 0.3])
def test_a_budget_is_reached_once_and_early(tmp_path, budget, of):
    pruner = EmbeddingPruner(budget=budget, of=of)
    whole = parameters(Planted())
    run, model = finished(tmp_path, pruner)
    if of == "parameters":
        assert 0.5 * budget * whole <= parameters(model) <= budget * whole
    else:
        multiplied = sum(one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear))
        assert multiplied <= budget * (4 * 12 + 12 * 8 + 8 * 3)
    assert {one.epoch for one in pruner.records} == {1}
    assert all(one.done for one in pruner.records if one.criterion == "size")
    held = [one for group in run.optimizers[0].param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in model.parameters()}
    assert all(run.optimizers[0].state[one]["exp_avg"].shape == one.shape for one in held)


def test_widths_are_reached_at_the_time_asked_for(tmp_path):
    pruner = EmbeddingPruner(widths={"net.0": 5}, when=NearEnd(3))
    _, model = finished(tmp_path, pruner)
    assert model.net[0].out_features == 5
    assert model.net[2].out_features == 8
    assert {one.epoch for one in pruner.records} == {7}


def test_the_state_of_what_was_changed_begins_anew_and_the_rest_is_carried(tmp_path):
    class Watch(EmbeddingPruner):
        def on_train_epoch_start(self, trainer, pl_module):
            before = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
            super().on_train_epoch_start(trainer, pl_module)
            if trainer.current_epoch == 1:
                self.states = before, copy.deepcopy(trainer.optimizers[0].state_dict()["state"])

    pruner = Watch(widths={"net.2": 4}, when=1)
    finished(tmp_path, pruner, epochs=3)
    before, after = pruner.states
    changed = {number for number in before if number not in after}
    assert {2, 4} <= changed  # the weights of the layer that was cut and of the one that reads it
    for number in after:
        torch.testing.assert_close(after[number], before[number], rtol=0, atol=0)


def test_no_bound_stands_in_the_way_unless_it_is_given(tmp_path):
    bold = EmbeddingPruner(widths={"net.0": 2, "net.2": 1})
    _, model = finished(tmp_path, bold, epochs=4)
    assert (model.net[0].out_features, model.net[2].out_features) == (2, 1)
    assert max(one.change for one in bold.records) > 0.05
    bound = EmbeddingPruner(widths={"net.0": 2, "net.2": 1}, tolerance=le.Tolerance(change=1e-6))
    _, model = finished(tmp_path, bound, epochs=4)
    assert (model.net[0].out_features, model.net[2].out_features) == (12, 8)
    assert all("change" in one.reason for one in bound.records if one.criterion == "size")


def test_what_cannot_be_reached_is_told_and_training_goes_on(tmp_path, caplog):
    _, model = finished(tmp_path, EmbeddingPruner(budget=0.01), epochs=3)
    assert parameters(model) == parameters(Planted())
    assert "cannot leave less than" in caplog.text
    _, model = finished(tmp_path, EmbeddingPruner(widths={"net.7": 2}), epochs=3)
    assert "no hidden layer of the model" in caplog.text


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_resumed_is_uninterrupted(tmp_path, stop):
    """The checkpoint lies before the cut, at it, and after it."""
    _, whole = finished(tmp_path / "whole", EmbeddingPruner(budget=0.4, when=0.2), epochs=10)
    saving = ModelCheckpoint(tmp_path, filename="at", every_n_epochs=stop, save_top_k=-1)
    saving_run = trainer(
        tmp_path / "part", [EmbeddingPruner(budget=0.4, when=0.2), saving], max_epochs=10, enable_checkpointing=True
    )
    saving_run.fit(Planted(), loader())
    first = tmp_path / "at.ckpt"
    _, resumed = finished(tmp_path / "rest", EmbeddingPruner(budget=0.4, when=0.2), epochs=10, ckpt=first)
    assert parameters(whole) < parameters(Planted())
    torch.testing.assert_close(dict(resumed.named_parameters()), dict(whole.named_parameters()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.5, "widths": {"net.0": 3}}, "give one of them"),
        ({"budget": 0.5, "criteria": le.Criteria()}, "give one of the two"),
        ({"budget": 2.0}, "share of the parameters"),
        ({"budget": 0.5, "of": "bytes"}, "of must be one of"),
        ({"widths": {"net.0": -1}}, "whole number"),
    ],
)
def test_sizes_that_mean_nothing_are_refused_at_once(options, message):
    with pytest.raises(le.InputError, match=message):
        EmbeddingPruner(**options)


def test_once_is_early_at_least_the_second_epoch_and_needs_two(tmp_path):
    for epochs, expected in ((2, 1), (6, 1), (30, 3)):
        when = Once()
        when.start(trainer(tmp_path, max_epochs=epochs), Planted())
        assert when._epoch == expected
    with pytest.raises(le.InputError, match=r"plans a single epoch; cut the network before"):
        finished(tmp_path, EmbeddingPruner(budget=0.5), epochs=1)
    with pytest.raises(le.InputError, match=r"Once\(start=0\.1\) is a share"):
        finished(tmp_path, EmbeddingPruner(budget=0.5), epochs=-1)
    assert EmbeddingPruner().when.first == 0.5
