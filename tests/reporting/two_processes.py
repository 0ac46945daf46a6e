"""Run by test_history.py in processes of its own: the history of a training of two processes."""

import sys

from lightning.pytorch.loggers import CSVLogger

from lightning_embed.callbacks import EmbeddingMonitor
from tests.callbacks.runs import Planted, loader, trainer

if __name__ == "__main__":
    folder = sys.argv[1]
    monitor = EmbeddingMonitor(3, figures_every_n_epochs=1)
    options = {"max_epochs": 1, "devices": 2, "strategy": "ddp", "logger": CSVLogger(folder, "", "")}
    trainer(folder, [monitor], **options).fit(Planted(), loader())
