"""What is read off a Trainer and done to a module, piece by piece."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks._trainer import (
    averaged_copies,
    check_optimizers,
    check_supported,
    log_directory,
    planned_epochs,
    unlogged,
)
from tests.callbacks.runs import Planted, loader, trainer

BOLD = le.Criteria(linearization=0.0, condensation=None, span=None)


@pytest.mark.parametrize(
    ("options", "planned"),
    [
        ({"max_epochs": 7}, 7),
        ({"max_steps": 40}, 4),
        ({"max_steps": 40, "accumulate_grad_batches": 2}, 8),
        ({"max_steps": 40, "accumulate_grad_batches": 4}, 40 / 3),  # the last two batches of ten step too
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
    told = [json.loads(line) for line in (tmp_path / "merges.jsonl").read_text().splitlines()]
    assert sorted({one["epoch"] for one in told}) == [3]  # it was in vain, so the next waits twice as long
    assert [one["step"] for one in told] == [one["epoch"] * len(loader()) for one in told]
    # of what was refused a run keeps the latest: it may be long
    assert [one.to_dict() for one in pruner.records] == [one for one in told if one["done"] or one["epoch"] == 3]
    assert not any(one.done for one in pruner.records)


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


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("strategies.ddp.DDPStrategy", ["configure_ddp", "broadcast", "launcher"]),
        ("callbacks.weight_averaging.WeightAveraging", ["setup"]),
        ("trainer.trainer.Trainer", ["progress_bar_callback", "num_training_batches", "lr_scheduler_configs"]),
        ("strategies.launchers.multiprocessing._MultiProcessingLauncher", ["launch"]),
        ("callbacks.pruning.ModelPruning", ["setup"]),
        ("callbacks.finetuning.BaseFinetuning", ["setup"]),
    ],
)
def test_what_is_relied_on_by_name_is_there(where, names):
    module, _, kind = f"lightning.pytorch.{where}".rpartition(".")
    found = getattr(pytest.importorskip(module, reason="not in this version of Lightning"), kind)
    assert all(hasattr(found, name) for name in names)


def test_private_attributes_that_are_read_or_set_are_there(tmp_path):
    from lightning.pytorch.strategies import DDPStrategy

    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with Lightning 2.6")
    strategy = DDPStrategy()
    assert strategy._pl_static_graph_delay_done is False
    assert strategy._ddp_comm_state is None
    run, (swa, ema) = None, (StochasticWeightAveraging(1e-2), averaging.WeightAveraging())
    for average in (swa, ema):
        run = trainer(tmp_path, [average, EmbeddingPruner(when=0)], max_epochs=1)
        run.fit(Planted(), loader())
        assert isinstance(average._average_model, nn.Module)
        (copy,) = averaged_copies(run)
        assert isinstance(copy, Planted)
    assert run.fit_loop.epoch_loop._batches_that_stepped == len(loader())
    assert isinstance(swa.state_dict(), dict)


def test_what_a_callback_adds_to_its_state_is_what_it_gets_back(tmp_path):
    run = trainer(tmp_path, [EmbeddingPruner(when=1)], max_epochs=2)
    run.fit(Planted(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    states = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert len(states[run.callbacks[0].state_key]["tapes"][0]) == len(run.callbacks[0]._tapes) > 0


@pytest.mark.parametrize(("state", "message"), [(object(), "communication hook"), (None, "spreads over processes")])
def test_states_spread_over_processes_are_refused(state, message):
    from torch.optim import SGD

    class ZeroRedundancyOptimizer(SGD):
        pass

    run = SimpleNamespace(
        world_size=1,
        callbacks=[],
        strategy=type("DDPStrategy", (), {"_ddp_comm_state": state, "launcher": None})(),
        optimizers=[ZeroRedundancyOptimizer([nn.Parameter(torch.zeros(1))])],
    )
    with pytest.raises(MisconfigurationException, match=message):  # noqa: PT012  # the first raises where it should
        check_supported(run, attached=True)
        check_optimizers(run)
