"""Run by test_resume.py in processes of its own: `FOLDER STEP MODE[:CHECKPOINT]`, killed after STEP if it is not 0."""

import os
import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.compatibility.training import Batches, Lines, Net, merges, ours, outcome, trainer


class Kill(Callback):
    """The power fails."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, step, (mode, _, checkpoint) = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].partition(":")
    saver = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=5, save_top_k=-1, auto_insert_metric_name=False
    )
    callbacks = [*(ours() if mode == "ours" else ()), saver, Kill(step)]
    model, logger = Net("adam", "cosine", seed=bool(checkpoint)), Lines()
    run = trainer(folder, callbacks, logger=logger, enable_checkpointing=True)
    run.fit(model, Batches(), ckpt_path=checkpoint or None)
    found = {"outcome": outcome(run, model), "lines": logger.lines, "merges": merges(run) if mode == "ours" else []}
    torch.save(found, folder / "outcome.pt")
