"""Probabilistic forecasts of many series."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import ListDataset
from gluonts.model.predictor import Predictor
from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator

from tests.packages.training import KEPT, Keeper, Trained, seed, timed

LINES = """
    estimator = SimpleFeedForwardEstimator(12, trainer_kwargs={"callbacks": [EmbeddingMonitor(), EmbeddingPruner()]})
    predictor = estimator.train(data)

    with le.loading():
        predictor = Predictor.deserialize(folder)
"""


def train(kind: type, options: dict[str, Any], callbacks: list[Any], folder: Path) -> Trained:
    rng, time = np.random.default_rng(0), np.arange(150)
    values = [10 + 5 * np.sin(time / (3 + one % 5)) + 0.3 * rng.normal(size=150) for one in range(20)]
    start = pd.Period("2020-01-01", freq="D")
    past = ListDataset([{"start": start, "target": one[:138]} for one in values], freq="D")
    estimator = kind(
        prediction_length=12,
        context_length=24,
        batch_size=32,
        num_batches_per_epoch=25,
        trainer_kwargs={
            "max_epochs": 8,
            "accelerator": "cpu",
            "callbacks": [*callbacks, Keeper()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "default_root_dir": str(folder),
        },
        **options,
    )
    found: dict[str, float] = {}
    with timed(found):
        predictor = estimator.train(past)

    def forecast(one: Any) -> np.ndarray:
        seed(1)
        with torch.no_grad():
            return np.stack([told.mean for told in one.predict(past, num_samples=100)])

    truth = np.stack([one[138:] for one in values])

    def save(path: Path) -> None:
        (path / "model").mkdir()
        predictor.serialize(path / "model")

    return Trained(
        KEPT["module"],
        KEPT["trainer"],
        lambda: forecast(predictor),
        lambda: float(np.abs(forecast(predictor) - truth).mean()),
        save,
        lambda path: forecast(Predictor.deserialize(path / "model")),
        found["cpu"],
    )


MODELS = {
    "SimpleFeedForward": partial(train, SimpleFeedForwardEstimator, {"hidden_dimensions": [64, 64]}),
    "DeepAR": partial(train, DeepAREstimator, {"freq": "D", "hidden_size": 24, "num_layers": 2}),
}
