"""Tabular classification: a category and three numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig, TabTransformerConfig

from tests.packages.training import Trained, timed

LINES = """
    model.fit(train=frame, callbacks=[EmbeddingMonitor(), EmbeddingPruner()])

    with le.loading():
        model = TabularModel.load_model(folder)
"""


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3))
    kind = rng.integers(0, 4, rows)
    y = (np.sin(2 * x[:, 0]) + x[:, 1] * (kind - 1.5) + 0.3 * rng.normal(size=rows) > 0).astype(int)
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "kind": kind.astype(str), "y": y})


def train(config: Any, callbacks: list[Any], folder: Path) -> Trained:
    data = DataConfig(target=["y"], continuous_cols=["a", "b", "c"], categorical_cols=["kind"])
    options = TrainerConfig(
        max_epochs=12,
        batch_size=128,
        accelerator="cpu",
        devices=1,
        early_stopping=None,
        checkpoints=None,
        progress_bar="none",
        load_best=False,
        trainer_kwargs={"default_root_dir": str(folder), "enable_model_summary": False},
    )
    model = TabularModel(
        data_config=data,
        model_config=config(),
        optimizer_config=OptimizerConfig(),
        trainer_config=options,
        verbose=False,
    )
    found: dict[str, float] = {}
    with timed(found):
        model.fit(train=table(2048, 0), validation=table(512, 1), callbacks=callbacks, seed=0)
    new = table(1000, 2)
    return Trained(
        model.model,
        model.trainer,
        lambda: model.predict(new).filter(like="probability"),
        lambda: float((model.predict(new)["y_prediction"].to_numpy() == new["y"].to_numpy()).mean()),
        lambda path: model.save_model(str(path / "model")),
        lambda path: TabularModel.load_model(str(path / "model")).predict(new).filter(like="probability"),
        found["cpu"],
    )


MODELS = {
    "MLP": partial(
        train,
        lambda: CategoryEmbeddingModelConfig(
            task="classification", layers="128-64-64", learning_rate=1e-2, dropout=0.0
        ),
    ),
    "MLP, batch norm": partial(
        train,
        lambda: CategoryEmbeddingModelConfig(
            task="classification", layers="128-64-64", learning_rate=1e-2, dropout=0.1, use_batch_norm=True
        ),
    ),
    "TabTransformer": partial(
        train,
        lambda: TabTransformerConfig(
            task="classification", num_heads=2, num_attn_blocks=2, input_embed_dim=16, learning_rate=1e-3
        ),
    ),
}
