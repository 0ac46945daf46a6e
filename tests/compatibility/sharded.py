"""Run by test_neighbours.py: `FOLDER with|without|pruner`, two processes that share the parameters (FSDP2, gloo)."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from tests.compatibility.ranks import ByRank
from tests.compatibility.training import Net, trainer


class Sharded(Net):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for at in (0, 2, 4):
            fully_shard(self.net[at], mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def main(folder, what):
    callbacks = {"with": [EmbeddingMonitor(3)], "without": [], "pruner": [EmbeddingPruner()]}[what]
    run = trainer(
        folder,
        callbacks,
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=2,
        logger=CSVLogger(folder, "", ""),  # the history of the run looks at the model, in the first process alone
    )
    model = Sharded()
    run.fit(model, DataLoader(ByRank(), batch_size=16))
    weights = [one.full_tensor().flatten().tolist() for one in model.parameters()]
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    text = json.dumps({"weights": weights, "metrics": metrics})
    (folder / f"{run.global_rank}.json").write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
