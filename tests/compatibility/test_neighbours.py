"""Beside the callbacks, loaders and limits that a training has already."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks._trainer import averaged_copies, check_supported
from tests.compatibility.training import EXACT, Batches, Lines, Net, merges, ours, outcome, trainer

EVENTS = [2, 2, 4]


def events(run):
    return [epoch for _, _, epoch in merges(run)]


def saver(folder, **options):
    return ModelCheckpoint(
        folder, **{"filename": "{epoch}", "save_top_k": -1, "auto_insert_metric_name": False, **options}
    )


@pytest.mark.cell("Neighbours", "EarlyStopping on one of our metrics")
def test_early_stopping(tmp_path):
    run = trainer(tmp_path, [*ours(), EarlyStopping("width", mode="min", patience=3)], max_epochs=20)
    run.fit(Net(), Batches())
    assert run.current_epoch == 8  # the width falls for the last time in epoch 4
    assert events(run) == EVENTS


@pytest.mark.cell("Neighbours", "ModelCheckpoint, top-k files of several sizes")
def test_top_k_mixes_sizes(tmp_path):
    best = saver(tmp_path, monitor="val_loss", save_top_k=3, filename="{epoch}-{val_loss:.3f}")
    run, model = trainer(tmp_path, [*ours(), best], enable_checkpointing=True), Net()
    run.fit(model, Batches(), Batches(seed=1))
    assert len(best.best_k_models) == 3
    run.test(model, Batches(seed=1), ckpt_path="best", verbose=False)
    for path in best.best_k_models:
        run.test(model, Batches(seed=1), ckpt_path=path, verbose=False)


@pytest.mark.cell("Neighbours", "LearningRateMonitor")
def test_learning_rate_monitor(tmp_path):
    run = trainer(tmp_path, [*ours(), LearningRateMonitor()], logger=(logger := Lines()))
    run.fit(Net("adam", "onecycle"), Batches())
    assert events(run) == EVENTS
    assert any("lr-Adam" in line for _, line in logger.lines)


def averages(kind):
    if kind == "StochasticWeightAveraging":
        return StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)
    module = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with Lightning 2.6")
    return module.WeightAveraging() if kind == "WeightAveraging" else module.EMAWeightAveraging(decay=0.9)


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False], ids=["before us", "after us"])
@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"])
@pytest.mark.cell("Neighbours", "{kind} (averaged weights follow), resumed = uninterrupted, placed first: {first}")
def test_averaged_copies_follow_and_resume(tmp_path, kind, first):
    ends = []
    for folder, ckpt in (("whole", None), ("resumed", tmp_path / "whole/3.ckpt")):
        other = averages(kind)
        callbacks = [other, *ours()] if first else [*ours(), other]
        run = trainer(tmp_path, [*callbacks, saver(tmp_path / folder)], enable_checkpointing=True)
        model, logger = Net(seed=0 if ckpt is None else 4), Lines()
        run.loggers = [logger]
        run.fit(model, Batches(), Batches(seed=1), ckpt_path=ckpt)
        assert events(run) == EVENTS
        assert [one.shape for one in averaged_copies(run)[0].parameters()] == [one.shape for one in model.parameters()]
        ends.append((outcome(run, model), logger.lines))
    assert ends[0][0]["parameters"] == ends[1][0]["parameters"]
    assert ends[0][1][-len(ends[1][1]) :][-20:] == ends[1][1][-20:]


@pytest.mark.cell("Neighbours", "the averaged copy computes what it did before a merge")
def test_the_average_keeps_its_function(tmp_path):
    change = []
    x = torch.randn(64, 4)

    class Watch(EmbeddingPruner):
        def on_train_epoch_start(self, trainer, pl_module):
            (copy,) = averaged_copies(trainer)
            before, width = copy.net(x), copy.net[0].out_features
            super().on_train_epoch_start(trainer, pl_module)
            if copy.net[0].out_features < width:
                change.append(((copy.net(x) - before).norm() / before.norm()).item())

    run = trainer(tmp_path, [averages("EMAWeightAveraging"), Watch(EXACT, when=2)])
    run.fit(Net(), Batches())
    assert len(change) == 1
    assert change[0] < 1e-5


@pytest.mark.cell("Neighbours", "GradientAccumulationScheduler")
def test_accumulation_scheduler(tmp_path):
    run = trainer(tmp_path, [*ours(), GradientAccumulationScheduler({0: 1, 3: 2})])
    run.fit(Net(), Batches())
    assert events(run) == EVENTS


class Sized(Net):
    """Batch size and learning rate are attributes that the tuners set."""

    def __init__(self):
        super().__init__()
        self.batch_size, self.lr = 4, 1e-3

    def train_dataloader(self):
        batches = Batches().batches
        x, y = (torch.cat(one) for one in zip(*batches, strict=True))
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@pytest.mark.parametrize(
    "finder",
    [
        lambda: BatchSizeFinder(max_trials=2, steps_per_trial=2),
        lambda: LearningRateFinder(num_training_steps=60, update_attr=True),
    ],
    ids=["BatchSizeFinder", "LearningRateFinder"],
)
@pytest.mark.cell("Neighbours", "BatchSizeFinder and LearningRateFinder: trial batches leave no trace")
def test_tuners_leave_no_trace(tmp_path, finder, monkeypatch):
    taken = []
    monkeypatch.setattr(EmbeddingPruner, "on_train_batch_end", _spy(taken, EmbeddingPruner.on_train_batch_end))
    run, logger = trainer(tmp_path, [finder(), *ours()]), Lines()
    run.loggers = [logger]
    model = Sized()
    run.fit(model)
    assert events(run) == EVENTS
    assert len(taken) == run.global_step  # no trial batch was seen
    steps = [step for step, line in logger.lines if "mpc/net.0" in line]
    assert steps == sorted(set(steps))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _spy(taken, method):
    def spied(self, *args):
        taken.append(1)
        return method(self, *args)

    return spied


@pytest.mark.cell("Neighbours", "RichProgressBar, ModelSummary")
def test_bars_and_summaries(tmp_path, capsys):
    pytest.importorskip("rich")
    run = trainer(
        tmp_path, [*ours(), RichProgressBar(), ModelSummary(2)], enable_progress_bar=True, enable_model_summary=True
    )
    run.fit(Net(), Batches())
    assert events(run) == EVENTS
    assert "merged net.2 (linearization) 8 → 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("overfit_batches", {"overfit_batches": 3}),
        ("limit_train_batches, limit_val_batches", {"limit_train_batches": 0.5, "limit_val_batches": 1}),
        ("val_check_interval", {"val_check_interval": 0.25}),
        ("check_val_every_n_epoch", {"check_val_every_n_epoch": 3}),
        ("max_time", {"max_time": {"minutes": 5}}),
        ("num_sanity_val_steps=0", {"num_sanity_val_steps": 0}),
        ("reload_dataloaders_every_n_epochs", {"reload_dataloaders_every_n_epochs": 1}),
        ("detect_anomaly", {"detect_anomaly": True}),
        ("deterministic", {"deterministic": True}),
        ("inference_mode=False", {"inference_mode": False}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*overfit.*")
@pytest.mark.cell("Neighbours", "Trainer({name})")
def test_limits(tmp_path, name, options):
    run = trainer(tmp_path, ours(), **options)
    loader = DataLoader(TensorDataset(*(torch.cat(one) for one in zip(*Batches().batches, strict=True))), batch_size=16)
    run.fit(Net(), loader, loader)
    torch.use_deterministic_algorithms(False)
    assert events(run) == EVENTS


@pytest.mark.cell("Neighbours", "Trainer(max_epochs=-1), stopped by max_steps")
def test_no_planned_end(tmp_path):
    run = trainer(tmp_path, ours(), max_epochs=-1, max_steps=6 * len(Batches()))
    run.fit(Net(), Batches())
    assert events(run) == EVENTS


@pytest.mark.cell("Neighbours", "Trainer(fast_dev_run=True): nothing is due, nothing breaks")
def test_fast_dev_run(tmp_path):
    run = trainer(tmp_path, [EmbeddingMonitor(1), EmbeddingPruner()], fast_dev_run=True)
    run.fit(Net(), Batches(), Batches(seed=1))
    assert events(run) == []


class Endless(IterableDataset):
    """Batches without a length."""

    def __iter__(self):
        return iter(Batches().batches)


@pytest.mark.cell("Neighbours", "IterableDataset without a length")
def test_iterable_dataset(tmp_path):
    run = trainer(tmp_path, ours())
    run.fit(Net(), DataLoader(Endless(), batch_size=None))
    assert events(run) == EVENTS


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
@pytest.mark.cell("Neighbours", "CombinedLoader, {mode}")
def test_combined_loader(tmp_path, mode):
    class Two(Net):
        def training_step(self, batch, batch_idx):
            given = [one for one in batch.values() if one is not None]
            return sum(nn.functional.cross_entropy(self(x), y) for x, y in given)

    run = trainer(tmp_path, ours())
    run.fit(Two(), CombinedLoader({"a": Batches(), "b": Batches(seed=2, samples=64)}, mode))
    assert events(run) == EVENTS


@pytest.mark.parametrize(
    "other", [ModelPruning("l1_unstructured", amount=0.5), BackboneFinetuning()], ids=lambda one: type(one).__name__
)
@pytest.mark.cell("Neighbours", "{other}: the monitor works, merging is refused at setup")
def test_callbacks_that_cannot_follow(tmp_path, other):
    with pytest.raises(MisconfigurationException, match=f"{type(other).__name__}.*lightning_embed.prune"):
        trainer(tmp_path, [EmbeddingPruner(), other]).fit(Net(), Batches())
    if isinstance(other, ModelPruning):
        run = trainer(tmp_path, [EmbeddingMonitor(1), other], max_epochs=2)
        run.fit(Net(), Batches())
        assert "depth" in run.callback_metrics


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAStrategy"])
@pytest.mark.cell("Neighbours", "{name}: merging is refused at setup, naming the way out (strategy simulated)")
def test_sharding_strategies_are_refused(name):
    class Trainer:
        world_size, callbacks = 1, ()
        strategy = type(name, (), {"launcher": None})()

    with pytest.raises(MisconfigurationException, match=f"{name} shards.*lightning_embed.prune"):
        check_supported(Trainer, attached=True)


@pytest.mark.cell("Neighbours", "the monitor leaves weights bit-equal to a run without it")
def test_the_monitor_leaves_no_trace_in_the_weights(tmp_path):
    class Dropping(Net):
        def forward(self, x):
            return nn.functional.dropout(self.net(x), 0.1, self.training)

    ends = []
    for callbacks in ([], [EmbeddingMonitor(1)]):
        L.seed_everything(0, verbose=False)
        model, run = Dropping(), trainer(tmp_path, callbacks)
        run.fit(model, Batches())
        ends.append(outcome(run, model))
    assert ends[0] == ends[1]
