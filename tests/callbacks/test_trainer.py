"""What is read off a Trainer and done to a module, piece by piece."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks._trainer import log_directory, planned_epochs, unlogged
from tests.callbacks.runs import Planted, loader, trainer

BOLD = le.Criteria(linearization=0.0, condensation=None, span=None)


@pytest.mark.parametrize(
    ("options", "planned"),
    [
        ({"max_epochs": 7}, 7),
        ({"max_steps": 40}, 4),
        ({"max_steps": 40, "accumulate_grad_batches": 2}, 8),
        ({"max_epochs": 7, "max_steps": 40}, 4),
        ({"max_epochs": 3, "max_steps": 40}, 3),
        ({"max_steps": 40, "num_training_batches": float("inf")}, None),
        ({}, None),
    ],
)
def test_the_planned_end_is_whichever_comes_first(options, planned):
    without = {"max_epochs": -1, "max_steps": -1, "num_training_batches": 10, "accumulate_grad_batches": 1}
    run = SimpleNamespace(**{**without, **options}, optimizers=[None])
    assert planned_epochs(run, SimpleNamespace(automatic_optimization=True)) == planned


def test_logs_go_to_the_loggers_folder_or_the_default_one_or_nowhere():
    run = SimpleNamespace(loggers=[None], log_dir="a", default_root_dir="b")
    assert str(log_directory(run)) == "a"
    run.log_dir = None
    assert str(log_directory(run)) == "b"
    run.loggers = []
    assert log_directory(run) is None


def test_a_log_method_of_the_users_own_comes_back():
    model, said = Planted(), []
    model.log = said.append
    with unlogged(model):
        model.log("a")
        model.log_dict({})
    model.log("b")
    assert said == ["b"]
    assert "log_dict" not in vars(model)


def test_kinds_of_callbacks_that_cannot_follow_are_refused_too(tmp_path):
    class Mine(ModelPruning):
        pass

    with pytest.raises(MisconfigurationException, match="Mine"):
        trainer(tmp_path, [EmbeddingPruner(), Mine("l1_unstructured", amount=0.5)]).fit(Planted(), loader())


def test_merging_events_are_counted_from_the_start_and_every_one_is_written(tmp_path):
    pruner = EmbeddingPruner(BOLD, le.Tolerance(change=0.0), when=After(3, every_n_epochs=2))
    run = trainer(tmp_path, [pruner], logger=CSVLogger(tmp_path, "", ""))
    model = Planted()
    nn.init.normal_(model.net[0].weight)
    run.fit(model, loader())
    assert sorted({one.epoch for one in pruner.records}) == [3, 5]
    assert [one.step for one in pruner.records] == [one.epoch * len(loader()) for one in pruner.records]
    lines = (tmp_path / "merges.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [one.to_dict() for one in pruner.records]


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"calibration_samples": 64}, [1, 1, 1, 1, 2, 2, 2, 2] * 2),
        ({"calibration_samples": 32}, [1] * 16),
        ({"calibration_mib": 1e-6}, [1] * 16),
        ({"calibration_samples": 64, "when": 2}, [0] * 8 + [1, 1, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_recorded_steps_are_spread_over_the_epochs_before_a_merge_within_bounds(tmp_path, options, held):
    seen = []

    class Watch(EmbeddingPruner):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append(len(self._tapes))

    trainer(tmp_path, [Watch(**{"when": 1, **options})], max_epochs=3).fit(Planted(), loader())
    assert seen[:16] == held


class Apart(L.LightningModule):
    """Two networks called with a backward pass between; weights and biases have an optimizer each."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.a, self.b = (nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(-50.0, 50.0), nn.Linear(6, 1)) for _ in "ab")

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        for net in (self.a, self.b):
            self.manual_backward(net(batch[0]).square().mean())
        self.norm = sum(float(one.grad.square().sum()) for one in self.b[0].parameters()) ** 0.5
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        named = list(self.named_parameters())
        return [
            torch.optim.SGD([one for name, one in named if name.endswith(kind)], lr=1e-3) for kind in ("weight", "bias")
        ], []


def test_of_manual_optimization_the_whole_step_is_recorded_and_gradients_of_all_optimizers_add_up(tmp_path):
    model, pruner = Apart(), EmbeddingPruner(BOLD, le.Tolerance(change=0.1), when=1)
    run = trainer(tmp_path, [EmbeddingMonitor(16)], max_epochs=1)
    run.fit(model, loader(batch_size=256))
    assert {"mpc/a.0", "mpc/b.0"} <= set(run.callback_metrics)
    assert run.callback_metrics["grad_norm/b.0"] == pytest.approx(model.norm, rel=1e-5)
    trainer(tmp_path, [pruner], max_epochs=2).fit(model, loader())
    assert {one.layer for one in pruner.records if one.done} == {"a.0", "b.0"}
