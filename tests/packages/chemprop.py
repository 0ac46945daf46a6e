"""Message passing on molecules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from chemprop import data, models, nn

from tests.packages.training import Trained, timed

LINES = """
    trainer = L.Trainer(callbacks=[EmbeddingMonitor(), EmbeddingPruner()])
    trainer.fit(mpnn, loader)

    with le.loading():
        mpnn = MPNN.load_from_file(path)
"""


def molecules() -> tuple[list[str], np.ndarray]:
    """Chains of carbon, nitrogen and oxygen, and a number that depends on what they hold."""
    rng, smiles = np.random.default_rng(0), []
    while len(smiles) < 400:
        chain = "".join(rng.choice(["C", "C", "N", "O", "C(C)", "c1ccccc1", "C(=O)"], rng.integers(2, 8)))
        if "OO" not in chain and "NO" not in chain:
            smiles.append(chain)
    target = [0.5 * one.count("C") - one.count("O") + 0.3 * one.count("N") * one.count("c1") for one in smiles]
    return smiles, np.array(target)[:, None]


def train(batch_norm: bool, callbacks: list[Any], folder: Path) -> Trained:
    smiles, target = molecules()
    points = [data.MoleculeDatapoint.from_smi(one, y) for one, y in zip(smiles, target, strict=True)]
    past, held = data.MoleculeDataset(points[:320]), data.MoleculeDataset(points[320:])
    scaler = past.normalize_targets()
    loader = data.build_dataloader(past, batch_size=32, num_workers=0, seed=0)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=64),
        nn.MeanAggregation(),
        nn.RegressionFFN(
            input_dim=64, hidden_dim=64, output_transform=nn.UnscaleTransform.from_standard_scaler(scaler)
        ),
        batch_norm=batch_norm,
    )
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=12, callbacks=callbacks, default_root_dir=folder, **quiet)
    found: dict[str, float] = {}
    with timed(found):
        trainer.fit(model, loader)
    new = data.build_dataloader(held, batch_size=32, shuffle=False, num_workers=0)

    def predict(one: Any) -> torch.Tensor:
        return torch.cat(L.Trainer(**quiet).predict(one, new))

    return Trained(
        model,
        trainer,
        lambda: predict(model),
        lambda: float((predict(model).numpy() - target[320:]).__abs__().mean()),
        lambda path: models.save_model(path / "model.pt", model),
        lambda path: predict(models.MPNN.load_from_file(path / "model.pt")),
        found["cpu"],
    )


MODELS = {"MPNN": partial(train, True), "MPNN without batch norm": partial(train, False)}
