"""`lightning.pytorch` and `pytorch_lightning`, Trainer and command line, each in a process of its own."""

import subprocess
import sys

import pytest

TRAINER = """
import torch
import {lightning} as L
from {lightning}.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(-50.0, 50.0), nn.Linear(8, 3))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
pruner = EmbeddingPruner(le.Criteria(0.9999, None, None), when=After(1))
trainer = L.Trainer(
    callbacks=[EmbeddingMonitor(1), pruner, ModelCheckpoint({folder!r}, filename="last")],
    max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
)
model = Net()
trainer.fit(model, data)
assert isinstance(model.net[1], nn.Identity), pruner.records
assert trainer.callback_metrics["depth"] == 0
trainer.fit_loop.max_epochs = 4
trainer.fit(Net(), data, ckpt_path={folder!r} + "/last.ckpt")
"""

COMMAND = """
import sys
import torch
import {lightning} as L
from {lightning}.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(L.LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Hardtanh(-50.0, 50.0), nn.Linear(width, 3))

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def train_dataloader(self):
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

if __name__ == "__main__":
    cli = LightningCLI(Net, save_config_callback=None)
    pruners = [one for one in cli.trainer.callbacks if type(one).__name__ == "EmbeddingPruner"]
    print(type(pruners[0].when).__name__, sorted({{one.epoch for one in pruners[0].records if one.done}}))
"""

CONFIG = """
trainer:
  max_epochs: 4
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_embed.callbacks.EmbeddingMonitor
      init_args:
        every_n_steps: 2
    - class_path: lightning_embed.callbacks.EmbeddingPruner
      init_args:
        criteria:
          class_path: lightning_embed.Criteria
          init_args: {linearization: 0.9999, condensation: null, span: null}
        when: WHEN
"""

NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]


def python(arguments, folder):
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)


def installed(name):
    pytest.importorskip(name.partition(".")[0])
    if name == "pytorch_lightning":
        pytest.importorskip("pytorch_lightning")


@pytest.mark.parametrize("lightning", NAMESPACES)
@pytest.mark.cell("Namespaces", "{lightning}.Trainer")
def test_trainer(tmp_path, lightning):
    installed(lightning)
    done = python(["-c", TRAINER.format(lightning=lightning, folder=str(tmp_path))], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        pytest.param("2", "After [2]", marks=pytest.mark.slow),
        pytest.param("0.5", "After [2]", marks=pytest.mark.slow),
        ("{class_path: lightning_embed.callbacks.NearEnd, init_args: {epochs: 1}}", "NearEnd [3]"),
    ],
    ids=["epoch", "share", "object"],
)
@pytest.mark.parametrize("lightning", NAMESPACES)
@pytest.mark.cell("Namespaces", "{lightning}.cli.LightningCLI, when as {when}")
def test_command_line(tmp_path, lightning, when, said):
    pytest.importorskip("jsonargparse")
    installed(lightning)
    (tmp_path / "train.py").write_text(COMMAND.format(lightning=lightning))
    (tmp_path / "config.yaml").write_text(CONFIG.replace("WHEN", when))
    done = python(["train.py", "fit", "--config", "config.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert said in done.stdout


@pytest.mark.cell("Namespaces", "--print_config documents every option")
def test_print_config_tells_every_option(tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "train.py").write_text(COMMAND.format(lightning="lightning.pytorch"))
    (tmp_path / "config.yaml").write_text(CONFIG.replace("WHEN", "2"))
    done = python(["train.py", "fit", "--config", "config.yaml", "--print_config"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for option in ("every_n_steps: 2", "checkpoint_mib: 32.0", "calibration_samples: 4096", "rate_factor: 1.0"):
        assert option in done.stdout
    helped = python(
        ["train.py", "fit", "--trainer.callbacks.help", "lightning_embed.callbacks.EmbeddingPruner"], tmp_path
    )
    assert "samples recorded per epoch" in " ".join(helped.stdout.split())
