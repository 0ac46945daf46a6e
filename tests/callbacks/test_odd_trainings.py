"""Trainings out of the ordinary: the callbacks follow them, or say once why not, and never break them."""

import logging
import subprocess
import sys
import typing

import lightning as L
import pytest
import torch
import torch._dynamo
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner, When
from tests.callbacks.runs import EPOCHS, Planted, loader, trainer

EXACT = {"criteria": le.Criteria(linearization=0.9999, condensation=0.9999, span=None), "when": 2}


class Gan(L.LightningModule):
    """Two networks, two optimizers, manual optimization; the generator's second layer is linear."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.g = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 5), nn.Hardtanh(-50.0, 50.0), nn.Linear(5, 4))
        self.d = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        self.seen = []

    def training_step(self, batch, _):
        g, d = self.optimizers()
        real, z = batch[0], torch.randn(len(batch[0]), 2)
        loss = nn.functional.softplus(-self.d(real)).mean() + nn.functional.softplus(self.d(self.g(z).detach())).mean()
        d.zero_grad()
        self.manual_backward(loss)
        l1 = sum(one.grad.abs().sum() for one in self.d.parameters())
        d.step()
        g.zero_grad()
        self.manual_backward(nn.functional.softplus(-self.d(self.g(z))).mean())
        self.seen.append((l1 + sum(one.grad.abs().sum() for one in self.g.parameters())).item())
        g.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.g.parameters(), 1e-3), torch.optim.SGD(self.d.parameters(), 1e-2, 0.5)], []


def test_every_optimizer_of_manual_optimization_is_sampled(tmp_path):
    run, model = trainer(tmp_path, [EmbeddingMonitor(every_n_steps=5)], max_epochs=1), Gan()
    run.fit(model, loader())
    assert {"grad_norm/d.0", "grad_norm/g.0", "grad_norm/g.4"} <= set(run.callback_metrics)
    # 2 steps a batch: sampled before steps 0, 6, 10, in batches 0, 3, 5
    assert run.callback_metrics["grad_norm/l1"] == pytest.approx(model.seen[5], rel=1e-5)


def test_a_share_of_max_steps_counts_the_steps_of_every_optimizer(tmp_path):
    model, pruner = Gan(), EmbeddingPruner(**{**EXACT, "when": 0.5})
    trainer(tmp_path, [pruner], max_epochs=-1, max_steps=2 * 4 * len(loader())).fit(model, loader())
    assert ("g.2", 2) in {(one.layer, one.epoch) for one in pruner.records if one.done}


def test_of_several_evaluations_in_a_step_the_first_gradient_counts(tmp_path):
    class Closures(Planted):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=5)

    reference, run = Planted(), trainer(tmp_path, [EmbeddingMonitor()], max_epochs=1)
    run.fit(Closures(), loader(batch_size=256))
    x, y = next(iter(loader(batch_size=256)))
    nn.functional.cross_entropy(reference(x), y).backward()
    l1 = sum(one.grad.abs().sum() for one in reference.parameters())
    assert run.callback_metrics["grad_norm/l1"] == pytest.approx(l1.item(), rel=1e-5)


def test_two_overlapping_recordings_restore_the_compilers_stance(tmp_path):
    before = torch._dynamo.eval_frame._stance
    trainer(tmp_path, [EmbeddingMonitor(1), EmbeddingPruner(when=0)], max_epochs=1).fit(Planted(), loader())
    assert torch._dynamo.eval_frame._stance == before


def test_one_pruner_serves_a_second_fit_of_another_model(tmp_path):
    pruner = EmbeddingPruner(**EXACT)
    trainer(tmp_path, [pruner]).fit(Planted(), loader())
    model, run = Planted(), trainer(tmp_path, [pruner], max_epochs=2)
    pruner.when = After(1)
    pruner.criteria = le.Criteria(linearization=None, condensation=None, span=None)
    run.fit(model, loader())
    held = {id(one) for group in run.optimizers[0].param_groups for one in group["params"]}
    assert held == {id(one) for one in model.parameters()}
    assert not pruner.records


def test_an_epoch_that_is_skipped_leaves_no_hook_behind(tmp_path):
    class Skipping(Planted):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    model = Skipping()
    trainer(tmp_path, [EmbeddingMonitor(1), EmbeddingPruner(when=0)], max_epochs=1).fit(model, loader())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.overrides._get_current_function_mode() is None


class Alternating(Planted):
    """Even steps train one network, odd ones the other."""

    def __init__(self):
        super().__init__()
        self.other = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy((self.other if batch_idx % 2 else self.net)(batch[0]), batch[1])


def test_steps_that_alternate_between_networks_are_measured_and_checked(tmp_path):
    bold = le.Criteria(linearization=0.0, condensation=0.3, span=0.5)
    pruner, model = EmbeddingPruner(bold, le.Tolerance(change=0.001), when=2), Alternating()
    run = trainer(tmp_path, [EmbeddingMonitor(1), pruner], max_epochs=3)
    run.fit(model, loader())
    assert {"mpc/net.0", "mpc/other.0"} <= set(run.callback_metrics)
    records = {(one.layer, one.criterion): one for one in pruner.records}
    assert records["net.2", "linearization"].done
    assert not records["net.0", "linearization"].done
    assert not records["other.0", "linearization"].done
    assert all(one.change > 0 for one in pruner.records)


def test_a_layer_that_no_deciding_step_calls_is_left_alone(tmp_path):
    class Rare(Alternating):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, int(batch_idx == 2))

    pruner, model = EmbeddingPruner(le.Criteria(linearization=0.0), le.Tolerance(change=10.0), when=1), Rare()
    trainer(tmp_path, [pruner], max_epochs=2).fit(model, loader())
    assert model.other[0].out_features == 8
    assert not any(one.done for one in pruner.records if one.layer == "other.0")


def test_a_forward_that_logs_is_heard_in_training_alone(tmp_path):
    class Logging(Planted):
        def forward(self, x):
            self.log("forward_mean", x.mean(), on_step=True, on_epoch=True)
            return self.net(x)

    ends = []
    for callbacks in ([], [EmbeddingMonitor(3), EmbeddingPruner(**EXACT)]):
        run, model = trainer(tmp_path, callbacks), Logging()
        run.fit(model, loader())
        ends.append({name: one for name, one in run.callback_metrics.items() if name.startswith("forward")})
        assert "log" not in vars(model)
    assert ends[0] == ends[1]
    assert isinstance(model.net[2], nn.Identity)


@pytest.mark.parametrize("options", [{"batch_size": 256}, {"batch_size": 32}])
def test_one_recorded_step_is_enough_to_merge(tmp_path, options):
    model, pruner = Planted(), EmbeddingPruner(**EXACT, calibration_samples=32)
    trainer(tmp_path, [pruner]).fit(model, loader(**options))
    assert isinstance(model.net[2], nn.Identity)
    assert model.net[0].out_features == 6


@pytest.mark.parametrize(("checkpoint_mib", "epoch"), [(32.0, 4), (0.0, 5)])
def test_after_a_resume_without_calibration_data_a_merging_event_waits_and_is_not_left_out(
    tmp_path, checkpoint_mib, epoch
):
    class Once(When):
        def __call__(self, trainer, pl_module):
            return trainer.current_epoch == 4

    def pruner():
        return EmbeddingPruner(**{**EXACT, "when": Once()}, checkpoint_mib=checkpoint_mib)

    run = trainer(tmp_path, [pruner()], max_epochs=4)
    run.fit(Planted(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    resumed = pruner()
    trainer(tmp_path, [resumed]).fit(Planted(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert {one.epoch for one in resumed.records} == {epoch}


@pytest.mark.parametrize("fault", ["no eval", "nan"])
def test_what_cannot_be_measured_or_merged_is_said_once_and_training_goes_on(tmp_path, fault, caplog):
    class Guarded(nn.Linear):
        def forward(self, x):
            if fault == "no eval" and not self.training:
                raise ValueError("no eval")
            return super().forward(x) * (1.0 if fault == "no eval" else float("nan"))

    class Faulty(Planted):
        def __init__(self):
            super().__init__()
            last = self.net[-1]
            self.net[-1] = Guarded(last.in_features, last.out_features)

    run = trainer(tmp_path, [EmbeddingMonitor(1), EmbeddingPruner(**EXACT)])
    with caplog.at_level(logging.WARNING, "lightning_embed"):
        run.fit(Faulty(), loader())
    assert run.current_epoch == run.max_epochs
    said = [one for one in caplog.messages if "nothing more can be merged" in one]
    assert len(said) == 1
    assert fault in said[0].lower()


@pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")
def test_a_model_that_makes_tensors_in_the_default_dtype_trains_in_bf16(tmp_path):
    class Makes(Planted):
        def forward(self, x):
            return self.net(torch.cat([x[:, :3].to(torch.get_default_dtype()), torch.ones(len(x), 1)], 1))

    pruner = EmbeddingPruner(**{**EXACT, "tolerance": le.Tolerance(0.1)})
    trainer(tmp_path, [EmbeddingMonitor(3), pruner], precision="bf16-true").fit(Makes(), loader())
    assert any(one.done for one in pruner.records)
    assert torch.get_default_dtype() is torch.float32


def test_every_process_of_a_distributed_training_sees_the_same_metrics(tmp_path):
    ignored = [f"-Wignore:{start}" for start in ("The 'train_dataloader'", "`isinstance(treespec")]
    command = [sys.executable, "-Werror::UserWarning", *ignored, "-m", "tests.callbacks.two_processes", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stderr
    assert {"0.pt", "1.pt"} <= {one.name for one in tmp_path.iterdir()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_are_merged(tmp_path, reentrant):
    class Checkpointed(Planted):
        def forward(self, x):
            return checkpoint(self.net, x.clone().requires_grad_(), use_reentrant=reentrant)

    run, model = trainer(tmp_path, [EmbeddingMonitor(3), EmbeddingPruner(**EXACT)]), Checkpointed()
    run.fit(model, loader())
    assert run.current_epoch == run.max_epochs
    assert isinstance(model.net[2], nn.Identity)


def test_a_second_fit_of_the_same_model_keeps_the_records_of_its_merges(tmp_path):
    model, pruner = Planted(), EmbeddingPruner(**EXACT)
    run = trainer(tmp_path, [pruner])
    run.fit(model, loader())
    done = [one.to_dict() for one in pruner.records if one.done]
    run.fit_loop.max_epochs = EPOCHS + 1
    run.fit(model, loader())
    assert [one.to_dict() for one in pruner.records if one.done] == done != []


def test_a_parameter_that_only_the_optimizer_holds_survives_a_resume(tmp_path):
    class Outside(Planted):
        def configure_optimizers(self):
            self.outside = [nn.Parameter(torch.zeros(3))]
            return torch.optim.Adam([*self.net[0].parameters(), *self.outside, *self.net[2:].parameters()], lr=1e-3)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]) + self.outside[0], batch[1])

    run = trainer(tmp_path, [EmbeddingPruner(**EXACT)])
    run.fit(Outside(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    model, run = Outside(), trainer(tmp_path, [EmbeddingPruner(**EXACT)], max_epochs=EPOCHS + 1)
    run.fit(model, loader(), ckpt_path=tmp_path / "a.ckpt")
    held = [id(one) for one in run.optimizers[0].param_groups[0]["params"]]
    assert held == [id(one) for one in (*model.net[0].parameters(), *model.outside, *model.net[4].parameters())]


def test_a_command_line_can_tell_an_epoch_from_a_share():
    hint = typing.get_type_hints(EmbeddingPruner.__init__)["when"]
    assert typing.get_args(hint) == (int, float, When, type(None))
