"""Dropout drives condensation (Zhang, Xu: Implicit regularization of dropout, arXiv 2207.05952), seen by the monitor.

    python examples/method_papers/dropout.py

A tanh network of ordinary initial weights learns 80 values of two tanh neurons in five dimensions, with and without
dropout. Nothing is merged: the monitor alone counts, at the end of every epoch, how many neurons the cosine criterion
would keep. Our own task, smaller than the paper's.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingMonitor

WIDTH, INPUTS, EPOCHS, STEPS = 50, 5, 10, 500
RATES = (0.0, 0.1, 0.5)


def taught(seed: int) -> tuple[Tensor, Tensor]:
    """80 random points, and what two tanh neurons of normal weights say of them."""
    generator = torch.Generator().manual_seed(seed)
    x, w, b, a = (torch.randn(*shape, generator=generator) for shape in ((80, INPUTS), (INPUTS, 2), (2,), (2, 1)))
    return x, torch.tanh(x @ w + b) @ a


class Network(L.LightningModule):
    """One hidden layer with dropout behind it, trained by Adam on all points at once."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Dropout(rate), nn.Linear(WIDTH, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def widths(rate: float, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """Train with that dropout; the neurons that the criteria would keep before and after, and the error."""
    torch.manual_seed(seed)
    model, monitor = Network(rate), EmbeddingMonitor(every_n_steps=STEPS)
    data = taught(seed)
    before = le.measure(model.net.eval(), data[0]).layers[0]
    model.train()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor], default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(model, DataLoader([data] * STEPS, batch_size=None))
    metrics = trainer.callback_metrics
    with torch.no_grad():
        error = nn.functional.mse_loss(model.net.eval()(data[0]), data[1]) / data[1].var()
    return {
        "cosine at the start": before.width_cosine,
        "cosine at the end": int(metrics["width/cosine/net.0"]),
        "error": round(error.item(), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds from 0 on; default: %(default)s")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, metavar="N", help=f"of {STEPS} steps; default: %(default)s"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the results as JSON")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = []
    for rate in RATES:
        for seed in range(given.seeds):
            one = {"dropout": rate, "seed": seed, **widths(rate, seed, given.epochs)}
            found.append(one)
            print(", ".join(f"{name} {value}" for name, value in one.items()))
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
