"""Merging inside a real fit: what is merged, that training goes on, that checkpoints load."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint, ModelPruning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner, When
from lightning_embed.graph import Graph
from lightning_embed.surgery.decide.merging import Merged
from tests.callbacks.runs import EPOCHS, Planted, loader, trainer

EXACT = {"criteria": le.Criteria(linearization=0.9999, condensation=0.9999, span=None), "when": 2}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_planted_redundancy_is_merged_and_training_goes_on(tmp_path, optimizer):
    model, pruner = Planted(optimizer), EmbeddingPruner(**EXACT)
    run = trainer(tmp_path, [EmbeddingMonitor(every_n_steps=4), pruner], logger=CSVLogger(tmp_path, "", ""))
    seen = {}

    class Watch(EmbeddingPruner):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.setdefault(trainer.current_epoch, (trainer.optimizers[0], pl_module.net[0].out_features))

    run.callbacks.append(Watch(when=0))
    run.fit(model, loader())
    assert model.net[0].out_features == 6
    assert isinstance(model.net[2], nn.Identity)
    assert isinstance(model.net[3], nn.Identity)
    assert seen[1][1] == 12
    assert seen[2][1] == 6  # at the start of epoch 2, not before
    assert len({id(one) for one, _ in seen.values()}) == 1
    held = [one for group in run.optimizers[0].param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in model.parameters()}
    assert all(run.optimizers[0].state[one] for one in held)
    done = [record for record in pruner.records if record.done]
    assert [(one.layer, one.criterion, one.epoch) for one in done] == [
        ("net.2", "linearization", 2),
        ("net.0", "condensation", 2),
    ]
    assert all(one.change < 1e-5 for one in done)
    lines = [json.loads(line) for line in (tmp_path / "merges.jsonl").read_text().splitlines()]
    assert lines == [one.to_dict() for one in pruner.records]
    assert run.callback_metrics["depth"] == 1
    assert run.callback_metrics["width"] == 6


def test_a_merge_that_changes_too_much_is_refused_and_nothing_differs(tmp_path):
    ends = []
    criteria = le.Criteria(linearization=0.0, condensation=0.0, span=1.0)
    for callbacks in ([], [EmbeddingPruner(criteria, le.Tolerance(change=0.0), when=1)]):
        torch.manual_seed(3)
        model = Planted(seed=3)
        nn.init.normal_(model.net[0].weight)
        trainer(tmp_path, callbacks).fit(model, loader())
        ends.append([one.detach().clone() for one in model.parameters()])
    refused = callbacks[0].records
    assert refused
    assert not any(one.done for one in refused)
    assert all(one.reason for one in refused)
    assert [one.shape for one in ends[0]] == [one.shape for one in ends[1]]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resumed_is_uninterrupted(tmp_path, optimizer):
    def parts():
        pruner = EmbeddingPruner(**{**EXACT, "when": After(2, every_n_epochs=100)})
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        return pruner, trainer(tmp_path, [pruner, saver], enable_checkpointing=True)

    whole, (_, run) = Planted(optimizer), parts()
    run.fit(whole, loader())
    torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)  # plain data throughout
    resumed = Planted(optimizer, seed=5)
    pruner, run = parts()
    run.fit(resumed, loader(), ckpt_path=tmp_path / "epoch=3.ckpt")
    assert run.current_epoch == EPOCHS
    assert resumed.net[0].out_features == 6
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [one.criterion for one in pruner.records if one.done] == ["linearization", "condensation"]


def test_an_older_and_larger_best_checkpoint_grows_the_model_back(tmp_path):
    pruner = EmbeddingPruner(**EXACT)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run, model = trainer(tmp_path, [pruner, saver], enable_checkpointing=True), Planted()
    run.fit(model, loader())
    assert model.net[0].out_features == 6
    run.test(model, loader(), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert model.net[0].out_features == 12
    run.test(model, loader(), ckpt_path=tmp_path / f"epoch={EPOCHS - 1}.ckpt", verbose=False)
    assert model.net[0].out_features == 6
    loaded = le.load_from_checkpoint(Planted, tmp_path / f"epoch={EPOCHS - 1}.ckpt")
    x = torch.randn(5, 4)
    assert torch.equal(loaded(x), model(x))


def test_a_user_decides_when(tmp_path):
    class Only(When):
        def __call__(self, trainer, pl_module):
            return trainer.current_epoch == 4

    pruner = EmbeddingPruner(**{**EXACT, "when": Only()})
    trainer(tmp_path, [pruner]).fit(Planted(), loader())
    assert {one.epoch for one in pruner.records} == {4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": 1.0}, "start"),
        ({"when": -1}, "start"),
        ({"when": "half"}, "start"),
        ({"calibration_samples": 0}, "calibration_samples"),
        ({"calibration_mib": 0.0}, "calibration_mib"),
        ({"checkpoint_mib": -1.0}, "checkpoint_mib"),
        ({"rate_factor": 0.0}, "rate_factor"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(le.InputError, match=message):
        EmbeddingPruner(**options)


def test_start_past_the_end_or_without_an_end_is_refused(tmp_path):
    with pytest.raises(le.InputError, match="past the end"):
        trainer(tmp_path, [EmbeddingPruner(when=EPOCHS)]).fit(Planted(), loader())
    with pytest.raises(le.InputError, match="no planned end"):
        trainer(tmp_path, [EmbeddingPruner(when=0.5)], max_epochs=-1).fit(Planted(), loader())
    steps = 3 * len(loader())
    pruner = EmbeddingPruner(**{**EXACT, "when": 0.5})
    trainer(tmp_path, [pruner], max_epochs=-1, max_steps=steps).fit(Planted(), loader())
    assert {one.epoch for one in pruner.records} == {2}


@pytest.mark.parametrize("other", [ModelPruning("l1_unstructured", amount=0.5), BackboneFinetuning()])
def test_callbacks_that_cannot_follow_are_named(tmp_path, other):
    with pytest.raises(MisconfigurationException, match=f"{type(other).__name__}.*lightning_embed.prune"):
        trainer(tmp_path, [EmbeddingPruner(), other]).fit(Planted(), loader())


def test_an_event_that_comes_again_after_a_resume_is_written_once(tmp_path):
    def run(**options):
        pruner = EmbeddingPruner(**EXACT)
        saving = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
        fitted = trainer(tmp_path, [pruner, saving], logger=CSVLogger(tmp_path, "", ""), enable_checkpointing=True)
        fitted.fit(Planted(), loader(), **options)
        return (tmp_path / "merges.jsonl").read_text()

    told = run()
    first = json.loads(told.splitlines()[0])["epoch"]
    assert run(ckpt_path=tmp_path / f"epoch={first - 1}.ckpt") == told


def test_private_data_stay_out_of_checkpoints(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1)
    callbacks = [EmbeddingPruner(**EXACT, checkpoint_mib=0), EmbeddingMonitor(checkpoint_mib=0), saving]
    trainer(tmp_path, callbacks, enable_checkpointing=True, max_epochs=3).fit(Planted(), loader())
    for file in tmp_path.glob("*.ckpt"):
        saved = torch.load(file, weights_only=True)["callbacks"]
        assert saved["EmbeddingPruner"]["tapes"] == []
        assert saved["EmbeddingMonitor"]["tape"] is None


def test_what_was_merged_before_an_error_is_kept_on_record(tmp_path, monkeypatch):
    def fail(bench, criteria):
        raise le.ReplayError("as planned")

    monkeypatch.setattr("lightning_embed.surgery.decide.merging.merge_neurons", fail)
    pruner, model = EmbeddingPruner(**EXACT), Planted()
    run = trainer(tmp_path, [pruner], logger=CSVLogger(tmp_path, "", ""))
    run.fit(model, loader())
    assert [(one.layer, one.criterion) for one in pruner.records] == [("net.2", "linearization")]
    assert len((tmp_path / "merges.jsonl").read_text().splitlines()) == 1
    held = [name for groups in pruner.state_dict()["groups"] for group in groups for name in group]
    assert held == [name for name, _ in model.named_parameters()]


def test_one_half_of_the_tapes_fits_and_the_other_decides(tmp_path, monkeypatch):
    seen = []

    def spy(module, fit, decide, **options):
        seen.append((list(fit), list(decide), options))
        return Merged(le.Plan(), [], Graph((), {}))

    monkeypatch.setattr("lightning_embed.callbacks.pruner.merge", spy)
    run = trainer(tmp_path, [EmbeddingPruner(when=1, seed=2)], max_epochs=4)
    run.fit(Planted(), loader())
    assert [options["step"] for _, _, options in seen] == [8, 24]  # after one in vain the next waits twice as long
    assert len({options["seed"] for _, _, options in seen}) == 2
    for fit, decide, options in seen:
        assert len(fit) == len(decide) == 4
        assert not {id(tape) for tape in fit} & {id(tape) for tape in decide}
        assert options["optimizers"] == run.optimizers
