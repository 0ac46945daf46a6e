"""A variational autoencoder of counts of cells."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scvi as package

from tests.packages.training import Trained, timed

LINES = """
    model.train(callbacks=[EmbeddingMonitor(), EmbeddingPruner()])

    with le.loading():
        model = scvi.model.SCVI.load(folder, adata)
"""


def cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    kinds = rng.gamma(1.0, 1.0, size=(4, 100))
    counts = rng.poisson(kinds[rng.integers(0, 4, 800)] * rng.gamma(5.0, 0.2, size=(800, 1)))
    return anndata.AnnData(counts.astype("float32"))


def train(options: dict[str, Any], callbacks: list[Any], folder: Path) -> Trained:
    data = cells()
    package.settings.seed = 0
    package.model.SCVI.setup_anndata(data)
    model = package.model.SCVI(data, n_latent=6, n_hidden=64, n_layers=2, **options)
    found: dict[str, float] = {}
    with timed(found):
        model.train(
            max_epochs=12,
            accelerator="cpu",
            batch_size=64,
            train_size=0.9,
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(folder),
            logger=False,
        )
    return Trained(
        model.module,
        model.trainer,
        lambda: model.get_latent_representation(data),
        lambda: -float(model.get_elbo(data)),
        lambda path: model.save(str(path / "model"), save_anndata=False),
        lambda path: package.model.SCVI.load(
            str(path / "model"), adata=data, accelerator="cpu"
        ).get_latent_representation(data),
        found["cpu"],
    )


MODELS = {
    "SCVI": partial(train, {}),
    "SCVI without batch norm": partial(train, {"use_batch_norm": "none", "use_layer_norm": "none"}),
}
