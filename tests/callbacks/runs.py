"""A tiny ordinary LightningModule with planted redundancy, and a Trainer to run it."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6


class Planted(L.LightningModule):
    """A classifier whose second hidden layer acts linearly and whose first holds every neuron twice."""

    def __init__(self, optimizer: str = "adam", seed: int = 0):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8), nn.Hardtanh(-50.0, 50.0), nn.Linear(8, 3)
        )
        with torch.no_grad():
            first, second = self.net[0], self.net[2]
            first.weight[6:], first.bias[6:] = first.weight[:6], first.bias[:6]
            second.weight[:, 6:] = second.weight[:, :6]
        self.optimizer = optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)]
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def loader(samples=256, batch_size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, :3] + x[:, 1:]).argmax(1)), batch_size=batch_size)


def trainer(folder, callbacks=(), **options):
    options = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        **options,
    }
    return L.Trainer(callbacks=list(callbacks), **options)
