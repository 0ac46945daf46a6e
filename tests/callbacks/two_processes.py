"""Run by test_odd_trainings.py in processes of its own: the monitor in a training of two processes."""

import sys

import torch

from lightning_embed.callbacks import EmbeddingMonitor
from tests.callbacks.runs import Planted, loader, trainer

if __name__ == "__main__":
    run = trainer(sys.argv[1], [EmbeddingMonitor(3)], max_epochs=1, devices=2, strategy="ddp")
    run.fit(Planted(), loader())
    metrics = {name: one.item() for name, one in run.callback_metrics.items() if name != "loss"}
    (theirs,) = {str(sorted(run.strategy.broadcast(metrics).items()))}
    assert theirs == str(sorted(metrics.items())), metrics
    assert {"mpc/net.0", "grad_norm/l1", "width/span/net.0", "depth", "width"} <= set(metrics)
    torch.save(metrics, f"{sys.argv[1]}/{run.global_rank}.pt")
