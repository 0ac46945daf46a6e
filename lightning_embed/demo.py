"""The demonstration behind `lightning-embed demo`: one training with the callbacks, the same one without, a reload."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from lightning_embed.graph import observe
from lightning_embed.reporting import report
from lightning_embed.surgery import Measurement, Record, Size, load_from_checkpoint, records_table
from lightning_embed.surgery.prune import look
from lightning_embed.tape import record

EPOCHS = 60
HIDDEN_LAYERS, WIDTH = 5, 128
OUTPUT_FILES = (
    "summary.json",
    "model.ckpt",
    "merges.jsonl",
    "history.jsonl",
    "report.html",
    "metrics.csv",
    "hparams.yaml",
)


class DigitsClassifier(L.LightningModule):
    """A tanh MLP with small Gaussian initialisation, as ordinary as a LightningModule can be.

    Args:
        std: standard deviation of the initial weights.
        learning_rate: of Adam.
    """

    def __init__(self, std: float = 0.05, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        sizes = [64, *[WIDTH] * HIDDEN_LAYERS, 10]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=std)
        self.learning_rate = learning_rate

    def forward(self, images: Tensor) -> Tensor:
        """Logits (samples, 10) of images (samples, 64)."""
        return self.net(images)  # type: ignore[no-any-return]  # a module call is untyped

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy of a batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Accuracy on held-out images."""
        self.log("test_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1797 handwritten digits, one half to train on and the other to test on."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16.0
    labels = torch.tensor(data.target, dtype=torch.long)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


class WatchedPruner(EmbeddingPruner):
    """The pruner, with a look at the model right before and right after every merging event.

    Attributes:
        events: of every epoch that merged something, the number of merges and the test accuracy before and after.
        looks: measurement and size before the first merge and after the latest.
    """

    def __init__(self, train: TensorDataset, test: TensorDataset, **options: Any) -> None:
        super().__init__(**options)
        self.train_images, self.test = train.tensors[0], test
        self.events: list[dict[str, Any]] = []
        self.looks: list[tuple[Measurement, Size]] = []

    def look(self, model: nn.Module) -> tuple[Measurement, Size]:
        """Measurement and size of a model on the training images."""
        tapes = record(model, self.train_images.split(64))
        measured, shot = look(model, observe(model, tapes), tapes, self.criteria)
        return measured, shot.size

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Merge as the pruner does, between two looks."""
        done = sum(one.done for one in self.records)
        before, look_before = accuracy(pl_module, self.test), None
        if not done and self.when(trainer, pl_module):
            look_before = self.look(pl_module)
        super().on_train_epoch_start(trainer, pl_module)
        merges = sum(one.done for one in self.records) - done
        if merges:
            after = accuracy(pl_module, self.test)
            self.events.append({"epoch": trainer.current_epoch, "merges": merges, "before": before, "after": after})
            self.looks = [self.looks[0] if look_before is None else look_before, self.look(pl_module)]


def logits(model: nn.Module, data: TensorDataset) -> Tensor:
    """What a model puts out for all images of a data set, in eval mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        output: Tensor = model(data.tensors[0])
    model.train(training)
    return output


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of images whose arg-max is right, rounded to a hundredth of a percent."""
    return round((logits(model, data).argmax(1) == data.tensors[1]).double().mean().item(), 4)


def train(seed: int, epochs: int, callbacks: Sequence[Callback], output: Path | None, *, quiet: bool) -> L.Trainer:
    """One ordinary training; the callbacks are the only difference between the two that are compared."""
    L.seed_everything(seed, verbose=False)
    data, test = digits(seed)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        logger=[] if output is None else [TensorBoardLogger(output, "", ""), CSVLogger(output, "", "")],
        log_every_n_steps=10,
        check_val_every_n_epoch=5,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not quiet,
    )
    loader = DataLoader(data, batch_size=64, shuffle=True)
    trainer.fit(DigitsClassifier(), loader, DataLoader(test, batch_size=len(test)))
    return trainer


def run(output: Path, *, seed: int = 0, epochs: int = EPOCHS, quiet: bool = False) -> dict[str, Any]:
    """The whole demonstration; prints tables and writes its files to `output`.

    Returns:
        What is written to `summary.json`.
    """
    _be_quiet(quiet)
    output.mkdir(parents=True, exist_ok=True)
    for old in [*(output / name for name in OUTPUT_FILES), *output.glob("events.out.tfevents.*")]:
        old.unlink(missing_ok=True)
    _, test = digits(seed)

    print("Training without merging …", flush=True)
    plain = train(seed, epochs, [], None, quiet=quiet).lightning_module
    print("The same training with EmbeddingMonitor and EmbeddingPruner …", flush=True)
    monitor, pruner = (
        EmbeddingMonitor(every_n_steps=10),
        WatchedPruner(*digits(seed), when=After(0.5, every_n_epochs=10)),
    )
    trainer = train(seed, epochs, [monitor, pruner], output, quiet=quiet)
    model = trainer.lightning_module

    checkpoint = output / "model.ckpt"
    trainer.save_checkpoint(checkpoint, weights_only=False)
    reloaded, identical = _reload(checkpoint, output, logits(model, test), seed)
    if not pruner.events:
        pruner.looks = [pruner.look(model)] * 2
        pruner.events = [{"epoch": None, "merges": 0, "before": accuracy(model, test), "after": accuracy(model, test)}]
    (before, large), (after, small) = pruner.looks
    summary = {
        "seed": seed,
        "epochs": epochs,
        **{name: {"before": vars(large)[name], "after": vars(small)[name]} for name in asdict(large)},
        "test_accuracy": {
            "unpruned_run": accuracy(plain, test),
            "before_merge": pruner.events[0]["before"],
            "after_merge": pruner.events[-1]["after"],
            "final": accuracy(model, test),
            "reloaded": reloaded,
        },
        "reloaded_identical": identical,
        "events": pruner.events,
        "merges": [one.to_dict() for one in pruner.records],
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    _show(summary, before, after, pruner.records)
    print(
        f"\nWritten to {output}: summary.json, model.ckpt, {{merges,history}}.jsonl, metrics.csv, TensorBoard events.\n"
        f"Look at the curves with: tensorboard --logdir {output}\n"
        f"The whole story on one page: {report(output)}"
    )
    return summary


def _be_quiet(quiet: bool) -> None:
    """Leave out what Lightning says about matters that the demonstration has decided."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR if quiet else logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch


def _reload(checkpoint: Path, output: Path, expected: Tensor, seed: int) -> tuple[float, bool]:
    """Load the checkpoint in a new process into a model of the original size; its accuracy, and whether equal."""
    file = output / "reloaded-logits.pt"
    command = [sys.executable, "-m", "lightning_embed.demo", str(checkpoint), str(file), str(seed)]
    subprocess.run(command, check=True)  # noqa: S603  # our own module
    actual = torch.load(file, weights_only=True)
    file.unlink()
    _, test = digits(seed)
    reached = round((actual.argmax(1) == test.tensors[1]).double().mean().item(), 4)
    return reached, bool(torch.equal(actual, expected))


def reload(checkpoint: Path, file: Path, seed: int) -> None:
    """What the new process does: build at the original size, load, compute the test logits."""
    _be_quiet(quiet=True)
    model = load_from_checkpoint(DigitsClassifier, checkpoint)
    torch.save(logits(model, digits(seed)[1]), file)


def _show(summary: dict[str, Any], before: Measurement, after: Measurement, records: Sequence[Record]) -> None:
    """The tables on the screen."""
    print("\nHidden layers before the first merge")
    print(before)
    print("\nHidden layers after the last merge")
    print(after)
    print("\nMerges")
    done = [one for one in records if one.done]
    print(records_table(done) if done else "none")
    refused = {(one.layer, one.criterion): one for one in records if not one.done}
    print("\nNominated and refused (the latest of each)")
    print(records_table(list(refused.values())) if refused else "none")
    print("\nTest accuracy around each merging event")
    print(tabulate(summary["events"], headers="keys", tablefmt="simple", disable_numparse=True))
    sizes = [
        [name.replace("_", " "), f"{summary[name]['before']:,}", f"{summary[name]['after']:,}"]
        for name in ("parameters", "hidden_layers", "neurons", "flops")
    ]
    print()
    print(tabulate(sizes, headers=["", "before", "after"], tablefmt="simple", disable_numparse=True, stralign="right"))
    reached = summary["test_accuracy"]
    rows = [
        ["right before the first merge", reached["before_merge"]],
        ["right after the last merge", reached["after_merge"]],
        ["at the end of training", reached["final"]],
        ["reloaded in a new process", reached["reloaded"]],
        ["same training without merging", reached["unpruned_run"]],
    ]
    print()
    print(tabulate(rows, headers=["test accuracy", ""], tablefmt="simple", floatfmt=".4f"))
    same = "bit for bit equal" if summary["reloaded_identical"] else "DIFFERENT"
    print(f"\nLogits of the reloaded model: {same}.")


if __name__ == "__main__":
    reload(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
