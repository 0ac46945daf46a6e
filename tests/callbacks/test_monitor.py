"""The monitor logs what the statistics say, everywhere, and leaves training as it is."""

import csv
import math

import pytest
import torch
import torch.utils.checkpoint
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lightning_embed as le
from lightning_embed.analysis import splitting_curvature, tangent_rank
from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks.recording import Observed
from lightning_embed.errors import InputError
from lightning_embed.surgery import collect
from lightning_embed.surgery.nominate import features
from lightning_embed.tape import replay
from tests.callbacks.runs import Planted, loader, trainer


def test_metrics_reach_tensorboard_csv_and_other_callbacks(tmp_path):
    monitor = EmbeddingMonitor(every_n_steps=3)
    checkpoint = ModelCheckpoint(tmp_path, monitor="mpc/net.2", mode="max", save_on_train_epoch_end=True)
    stopping = EarlyStopping("width/span/net.0", patience=1, mode="min", min_delta=100.0, check_on_train_epoch_end=True)
    loggers = [TensorBoardLogger(tmp_path, "", "tb"), CSVLogger(tmp_path, "", "csv")]
    run = trainer(tmp_path, [monitor, checkpoint, stopping], logger=loggers, enable_checkpointing=True)
    run.fit(Planted(), loader())
    assert run.current_epoch < run.max_epochs  # stopped: the width fell by no 100 neurons
    assert checkpoint.best_model_score is not None

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"mpc/net.0", "mpc/net.2", "grad_norm/net.0", "grad_norm/l1", "depth", "linear_layers", "width"}
    assert expected | {"width/cosine/net.0", "width/span/net.2"} <= tags
    assert [one.step for one in events.Scalars("grad_norm/l1")][:4] == [0, 3, 6, 9]
    assert events.Scalars("depth")[0].value == 2
    assert events.Scalars("linear_layers")[0].value >= 1
    assert events.Scalars("width/cosine/net.0")[0].value == 6  # every neuron stands there twice
    assert math.isclose(events.Scalars("mpc/net.2")[0].value, 1.0, abs_tol=1e-6)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        assert expected <= set(next(csv.reader(file)))


def test_mpc_is_that_of_the_batch(tmp_path):
    model, reference, monitor = Planted(), Planted(), EmbeddingMonitor(every_n_steps=1)
    run = trainer(tmp_path, [monitor], max_steps=1, max_epochs=-1)
    data = loader(batch_size=64)
    run.fit(model, data)
    x = next(iter(data))[0]
    pre = reference.net[0](x)  # before the step, as the gradient
    expected = le.minimal_pearson_correlation(pre, pre.tanh())
    assert run.callback_metrics["mpc/net.0"] == pytest.approx(expected.item(), abs=1e-6)


def batch_loss(module, batch):
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def test_splitting_curvature_and_tangent_rank_are_measured_where_they_are_asked_for(tmp_path):
    model, plain, data = Planted(), Planted(), loader(batch_size=64)
    asked = EmbeddingMonitor(every_n_steps=1, splitting_loss=batch_loss, tangent_rank=True)
    run = trainer(tmp_path, [asked], max_epochs=1, logger=CSVLogger(tmp_path, "", ""))
    run.fit(model, data)
    trainer(tmp_path, [EmbeddingMonitor(every_n_steps=1)], max_epochs=1).fit(plain, data)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    batch = list(data)[-1]
    for one in splitting_curvature(model, nn.functional.cross_entropy, (batch[0], batch[1])):
        assert run.callback_metrics[f"splitting/{one.layer}"] == pytest.approx(one.least, rel=1e-3, abs=1e-6)
    found = tangent_rank(model, batch[0])
    assert run.callback_metrics["tangent_rank"] == found.rank < found.parameters
    page = le.report(tmp_path).read_text(encoding="utf-8")
    assert f"{found.parameters:,} parameters act as {found.rank:,}: the rank of" in page


def test_a_splitting_loss_that_fails_does_no_harm(tmp_path, caplog):
    def broken(module, batch):
        raise ValueError("no such thing")

    monitor = EmbeddingMonitor(every_n_steps=1, splitting_loss=broken)
    run = trainer(tmp_path, [monitor], max_epochs=1)
    run.fit(Planted(), loader())
    assert "mpc/net.0" in run.callback_metrics
    assert [record.message for record in caplog.records].count(
        "The splitting curvature could not be measured: no such thing"
    ) == 1
    with pytest.raises(InputError, match="splitting_loss=…"):
        EmbeddingMonitor(splitting_loss=3)


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_are_those_of_the_step_before_clipping(tmp_path, clip):
    model, reference = Planted(), Planted()
    run = trainer(tmp_path, [EmbeddingMonitor(every_n_steps=1)], max_steps=1, max_epochs=-1, gradient_clip_val=clip)
    data = loader(batch_size=64)
    run.fit(model, data)
    x, y = next(iter(data))
    torch.nn.functional.cross_entropy(reference(x), y).backward()
    l1 = sum(one.grad.abs().sum() for one in reference.parameters())
    first = torch.cat([reference.net[0].weight.grad.flatten(), reference.net[0].bias.grad]).norm()
    assert run.callback_metrics["grad_norm/l1"] == pytest.approx(l1.item(), rel=1e-5)
    assert run.callback_metrics["grad_norm/net.0"] == pytest.approx(first.item(), rel=1e-5)


class Noisy(Planted):
    """Draws random numbers in training, so that a monitor that touches the random state is found out."""

    def forward(self, x):
        return torch.nn.functional.dropout(self.net(x), 0.2, self.training)


@pytest.mark.parametrize("kind", [Noisy, Planted])
def test_training_with_and_without_the_monitor_ends_bit_equal(tmp_path, kind):
    ends = []
    for callbacks in ([], [EmbeddingMonitor(every_n_steps=2)]):
        model = kind()
        torch.manual_seed(7)
        trainer(tmp_path, callbacks, max_epochs=3).fit(model, loader())
        ends.append([one.detach().clone() for one in model.parameters()])
        assert model.training
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


class Varied(Planted):
    """Whatever may be between layers: in-place functions, a layer called twice, a checkpointed block, pooled maps."""

    def __init__(self, kind: str):
        super().__init__("lbfgs" if kind == "lbfgs" else "adam")
        self.kind = kind
        if kind == "in place":
            self.net[1] = nn.ReLU(inplace=True)
        if kind == "pooled":
            self.maps = nn.Sequential(
                nn.Conv1d(1, 5, 3, padding=1), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(10, 4)
            )
        if kind == "batch norm":
            self.net[1] = nn.Sequential(nn.BatchNorm1d(12), nn.Tanh())
        if kind.startswith("dropout"):
            self.net[1] = nn.Sequential(nn.Tanh(), nn.Dropout(0.3 if kind == "dropout" else 0.0))

    def on_train_epoch_start(self):
        if self.kind == "dropout later" and self.current_epoch == 1:
            self.net[1][1].p = 0.3

    def forward(self, x):
        if self.kind == "twice":
            return self.net(x) + self.net(-x)
        if self.kind == "checkpointed":
            return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)
        if self.kind == "outermost":
            return self.net[4](self.net[2](self.net[0](x).tanh()).clamp(-50.0, 50.0))
        return self.net(self.maps(x[:, None]) if self.kind == "pooled" else x)

    def configure_optimizers(self):
        if self.kind == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        return super().configure_optimizers()


def measured(folder, kind, monkeypatch, **options):
    """All that a run logs, its last weights, and how many steps were replayed."""
    replays = []
    monkeypatch.setattr(collect, "replay", lambda *args, **kwargs: replays.append(replay(*args, **kwargs)))
    logger, model = CSVLogger(folder, "", ""), Varied(kind)
    run = trainer(folder, [EmbeddingMonitor(every_n_steps=2)], max_epochs=2, logger=logger, **options)
    run.fit(model, loader())
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file)), list(model.parameters()), len(replays)


@pytest.mark.filterwarnings("ignore:The correlation")  # bfloat16 is coarse
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("plain", {}),
        ("in place", {}),
        ("twice", {}),
        ("checkpointed", {}),
        ("outermost", {}),
        ("pooled", {}),
        ("lbfgs", {}),
        ("plain", {"accumulate_grad_batches": 2}),
        ("plain", {"precision": "bf16-mixed"}),
    ],
)
def test_the_steps_own_forward_pass_shows_what_a_replay_would(tmp_path, monkeypatch, kind, options):
    shown = measured(tmp_path / "shown", kind, monkeypatch, **options)
    monkeypatch.setattr(Observed, "latest", lambda *_: None)
    replayed = measured(tmp_path / "replayed", kind, monkeypatch, **options)
    assert shown[0] == replayed[0]
    assert all(torch.equal(a, b) for a, b in zip(shown[1], replayed[1], strict=True))
    steps, epochs = (4 if options.get("accumulate_grad_batches") else 8), 2
    assert (shown[2], replayed[2]) == (1 + epochs, steps + epochs)  # the first sample, and the widths of each epoch


@pytest.mark.parametrize(("kind", "replays"), [("batch norm", 8 + 2), ("dropout", 8 + 2), ("dropout later", 1 + 4 + 2)])
def test_a_model_with_two_modes_is_replayed(tmp_path, monkeypatch, kind, replays):
    assert measured(tmp_path, kind, monkeypatch)[2] == replays


def test_looking_on_may_fail_without_harm(tmp_path, monkeypatch):
    expected = measured(tmp_path / "sound", "plain", monkeypatch)
    add = features.MomentCollector._add

    def failing(self, name, post):
        if self._collector._model.training:  # in the training step, where nothing may fail
            raise MemoryError
        add(self, name, post)

    monkeypatch.setattr(features.MomentCollector, "_add", failing)
    found = measured(tmp_path / "failing", "plain", monkeypatch)
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    assert found[2] == 8 + 2


@pytest.mark.parametrize("at", [0, 3])
def test_a_failing_step_leaves_no_hook_behind(tmp_path, at):
    class Failing(Planted):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1 // (at - batch_idx))

    model = Failing()
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [EmbeddingMonitor(every_n_steps=1)]).fit(model, loader())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("value", [0, -1, 2.5, "often"])
def test_every_n_steps_must_be_a_positive_integer(value):
    with pytest.raises(le.InputError, match="every_n_steps"):
        EmbeddingMonitor(every_n_steps=value)


@pytest.mark.parametrize("monitor_first", [True, False])
def test_monitor_and_pruner_share_criteria_and_say_when_they_differ(tmp_path, caplog, monitor_first):
    one, other = le.Criteria(linearization=0.5), le.Criteria(linearization=0.7)

    def after_a_fit(monitor, pruner):
        callbacks = [monitor, pruner] if monitor_first else [pruner, monitor]
        caplog.clear()
        trainer(tmp_path, callbacks, max_epochs=1).fit(Planted(), loader())
        lines = [entry.getMessage() for entry in caplog.records if "criteria" in entry.getMessage().lower()]
        return monitor.criteria, pruner.criteria, len([line for line in lines if " but " in line])

    assert after_a_fit(EmbeddingMonitor(), EmbeddingPruner()) == (le.Criteria(), le.Criteria(), 0)
    assert after_a_fit(EmbeddingMonitor(), EmbeddingPruner(one)) == (one, one, 0)
    assert after_a_fit(EmbeddingMonitor(criteria=one), EmbeddingPruner()) == (one, one, 0)
    assert after_a_fit(EmbeddingMonitor(criteria=one), EmbeddingPruner(other)) == (one, other, 1)
