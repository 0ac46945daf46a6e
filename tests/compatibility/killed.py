"""A training that saves every 5 steps, and is killed in a process of its own (test_resume.py): `FOLDER STEP MODE`."""

import os
import signal
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from tests.compatibility.training import Batches, Lines, Net, ours, trainer


class Kill(Callback):
    """The power fails."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def saving(folder, mode, ckpt=None, seed=0, kill_at=0):
    """Train with or without our callbacks, from a checkpoint or from the beginning."""
    saver = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=5, save_top_k=-1, auto_insert_metric_name=False
    )
    callbacks = [*(ours() if mode == "ours" else ()), saver, Kill(kill_at)]
    model, logger = Net("adam", "cosine", seed=seed), Lines()
    run = trainer(folder, callbacks, logger=logger, enable_checkpointing=True)
    run.fit(model, Batches(), ckpt_path=ckpt)
    return run, model, logger.lines


if __name__ == "__main__":
    saving(Path(sys.argv[1]), sys.argv[3], kill_at=int(sys.argv[2]))
