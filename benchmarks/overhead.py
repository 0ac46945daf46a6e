"""What the callbacks add to a training step, beside delve and torchmetrics: `python -m benchmarks.overhead`.

A multilayer perceptron with four hidden layers of 1024 neurons is trained by Lightning at batch 256, once without and
once with each of the watchers, in turn, several rounds; an epoch has as many steps as one of MNIST. Compared is the CPU
time of the process, as a ratio to the run without; on one thread, for a second one burns time while it waits.
`pip install delve==0.1.50` for the row of delve.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import statistics
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path

import lightning as L
import torch
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import PearsonCorrCoef

from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner, When

WIDTH, LAYERS, BATCH = 1024, 4, 256


class Mlp(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [784, *[WIDTH] * LAYERS]
        hidden = [one for a, b in pairwise(sizes) for one in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(WIDTH, 10))

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Never(When):
    """Data are wanted in every epoch, and nothing is ever merged."""

    def __call__(self, trainer, pl_module):
        return False


class Clock(L.Callback):
    """CPU seconds of the training loop, epochs' ends included; the first steps, which warm up, are left out."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            self.start = time.process_time()

    def on_train_end(self, trainer, pl_module):
        self.seconds = time.process_time() - self.start


class Delve(L.Callback):
    """delve's saturation of every Linear, every step."""

    def on_train_start(self, trainer, pl_module):
        from delve import SaturationTracker

        folder = tempfile.mkdtemp()
        self.tracker = SaturationTracker(
            folder, save_to="csv", modules=pl_module.net, stats=["lsat"], log_interval=1, device="cpu"
        )

    def on_train_epoch_end(self, trainer, pl_module):
        self.tracker.add_saturations()

    def on_train_end(self, trainer, pl_module):
        self.tracker.close()


class Pearson(L.Callback):
    """torchmetrics' Pearson correlation of every neuron's pre- and post-activation, every step."""

    def on_train_start(self, trainer, pl_module):
        self.metrics = [PearsonCorrCoef(num_outputs=WIDTH) for _ in range(LAYERS)]
        self.handles = [
            relu.register_forward_hook(lambda _, args, out, one=one: one.update(args[0].detach(), out.detach()))
            for relu, one in zip(pl_module.net[1::2], self.metrics, strict=False)
        ]

    def on_train_epoch_end(self, trainer, pl_module):
        for one in self.metrics:
            one.compute().abs().min().item()
            one.reset()

    def on_train_end(self, trainer, pl_module):
        for handle in self.handles:
            handle.remove()


VARIANTS = {
    "nothing": list,
    "monitor, defaults": lambda: [EmbeddingMonitor()],
    "monitor and pruner, defaults, recording": lambda: [EmbeddingMonitor(), EmbeddingPruner(when=Never())],
    "monitor, every 10 steps": lambda: [EmbeddingMonitor(10)],
    "monitor, every step": lambda: [EmbeddingMonitor(1)],
    "delve 0.1.50, every step": lambda: [Delve()],
    "torchmetrics PearsonCorrCoef, every step": lambda: [Pearson()],
}


def cpu_seconds(variant: str, steps: int) -> float:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(BATCH, 784, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator))
        for _ in range(16)
    ]
    loader = DataLoader([batches[at % len(batches)] for at in range(steps)], batch_size=None)
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=1,
        callbacks=[clock, *VARIANTS[variant]()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Mlp(), loader)
    gc.collect()
    return clock.seconds


def growth(steps: int) -> list[float]:
    """MiB that the process has held at most, after each of four runs with the monitor at every step."""
    found = []
    for _ in range(4):
        cpu_seconds("monitor, every step", steps)
        found.append(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=234, help="of an epoch; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    variants = list(VARIANTS)
    try:
        import delve  # noqa: F401
    except ImportError:
        print("delve is not installed, its row is left out: pip install delve==0.1.50")
        variants.remove("delve 0.1.50, every step")
    times: dict[str, list[float]] = {name: [] for name in variants}
    cpu_seconds("nothing", 10)
    for _ in range(options.rounds):
        for name in variants:
            times[name].append(cpu_seconds(name, options.steps))
    rows = []
    for name in variants:
        ratios = [mine / plain for mine, plain in zip(times[name], times["nothing"], strict=True)]
        step = 1e3 * statistics.median(times[name]) / (options.steps - 3)
        rows.append([name, step, statistics.median(ratios), min(ratios), max(ratios)])
    print(f"{LAYERS} hidden layers of {WIDTH}, batch {BATCH}, {options.steps} steps an epoch, {options.rounds} rounds")
    print(
        tabulate(
            rows, headers=["", "CPU ms a step", "ratio", "least", "most"], floatfmt=("", ".1f", ".3f", ".3f", ".3f")
        )
    )
    held = growth(30)
    print("most memory held after 1, 2, 3, 4 runs at every step, MiB: " + ", ".join(f"{one:.0f}" for one in held))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "MiB": held}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
