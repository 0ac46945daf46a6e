"""Run by test_distributed.py, one process a rank: `FOLDER JSON` with options; writes what came of it, by rank."""

import json
import os
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset

import lightning_embed as le
from lightning_embed.callbacks import together
from tests.compatibility.training import Net, merges, ours, outcome, trainer


class ByRank(Dataset):
    """Images that differ by rank: Lightning's distributed sampler deals them out in turn."""

    def __len__(self):
        return 256

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(4, generator=generator)
        return x + 0.3 * (index % 2), int((x[:3] + x[1:]).argmax())


class Half(Net):
    """A second network whose hidden layer acts linearly on the data of the first rank, and only there."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
        with torch.no_grad():
            self.gate[0].weight.copy_(torch.eye(2, 4))
            self.gate[0].bias.zero_()

    def training_step(self, batch, batch_idx):
        sign = 1.0 if self.global_rank == 0 else -1.0
        return super().training_step(batch, batch_idx) + self.gate(sign * batch[0].abs()).square().mean()

    def configure_optimizers(self):
        still = {"params": self.gate.parameters(), "lr": 0.0}  # the gate stays as it is
        return torch.optim.Adam([{"params": self.net.parameters()}, still], lr=1e-3)


class Unused(Net):
    """Some parameters get no gradient in some steps."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + self.other(batch[0]).square().mean() if batch_idx % 2 else loss


class Manual(Net):
    """Manual optimization with an accumulation of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class Fail(Callback):
    """One rank cannot follow a merge: it raises, or it is gone."""

    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    def on_train_start(self, trainer, pl_module):
        if trainer.global_rank != self.rank:
            return
        name = "_lead" if self.rank == 0 else "_follow"

        def fail(*_):
            if self.how == "dies":
                os._exit(3)
            raise RuntimeError("as planned")

        setattr(together, name, fail)


MODELS = {one.__name__: one for one in (Net, Half, Unused, Manual)}


def main(folder, options):
    strategy = DDPStrategy(
        start_method=options.get("start", "popen"), process_group_backend="gloo", **options.get("ddp", {})
    )
    model = MODELS[options.get("model", "Net")]()
    model.optimizer = options.get("optimizer", "adam")
    if options.get("attach"):
        le.attach(model)
    every = options.get("every_n_train_steps")
    saver = ModelCheckpoint(
        folder, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False, every_n_train_steps=every
    )
    pruner = options.get("pruner", {})
    if pruner:
        pruner = {
            "tolerance": le.Tolerance(pruner["tolerance"]),
            "criteria": le.Criteria(pruner["criteria"], pruner["criteria"], None),
        }
    callbacks = [*ours(**pruner), saver]
    if options.get("average"):
        from lightning.pytorch.callbacks import EMAWeightAveraging  # came with Lightning 2.6

        callbacks.append(EMAWeightAveraging(decay=0.9))
    if "fail" in options:
        callbacks.insert(0, Fail(*options["fail"]))
    run = trainer(
        folder,
        callbacks,
        devices=options.get("devices", 2),
        num_nodes=options.get("nodes", 1),
        strategy=strategy,
        accumulate_grad_batches=options.get("accumulate", 1),
        max_epochs=options.get("epochs", 5),
        enable_checkpointing=True,
        logger=CSVLogger(folder, "", ""),  # where logs go is asked of all ranks
    )
    run.fit(model, DataLoader(ByRank(), batch_size=16), ckpt_path=options.get("ckpt"))
    found = {"parameters": {name: one.detach().clone() for name, one in model.named_parameters()}}
    found["history"] = le.attach(model).history
    if run.optimizers:  # not in the process that only started others
        found |= {"outcome": outcome(run, model), "merges": merges(run)}
        found["records"] = [one.to_dict() for one in run.callbacks[2 + ("fail" in options)].records]
    torch.save(found, folder / f"{run.global_rank if run.optimizers else 'main'}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
