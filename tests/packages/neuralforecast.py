"""Forecasts in full batches, as neuralforecast trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import MLP, NHITS

from tests.packages.training import KEPT, Keeper, Trained, timed

LINES = """
    model = NHITS(h=12, input_size=24, callbacks=[EmbeddingMonitor(), EmbeddingPruner()])
    forecast = NeuralForecast([model], freq=1)
    forecast.fit(frame)

    with le.loading():
        forecast = NeuralForecast.load(folder)
"""


def frame() -> pd.DataFrame:
    rng, time = np.random.default_rng(0), np.arange(120)
    return pd.concat(
        pd.DataFrame({"unique_id": str(one), "ds": time, "y": np.sin(time / (4 + one)) + 0.1 * rng.normal(size=120)})
        for one in range(8)
    )


def train(kind: type, options: dict[str, Any], callbacks: list[Any], folder: Path) -> Trained:
    data = frame()
    model = kind(
        h=12,
        input_size=24,
        max_steps=200,
        val_check_steps=100,
        random_seed=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
        callbacks=[*callbacks, Keeper()],
        **options,
    )
    forecast = NeuralForecast([model], freq=1)
    found: dict[str, float] = {}
    past = data[data.ds < 108]
    with timed(found):
        forecast.fit(past)
    fitted = forecast.models[0]
    name = kind.__name__

    def score() -> float:
        told = forecast.predict().merge(data, on=["unique_id", "ds"])
        return float((told[name] - told["y"]).abs().mean())

    return Trained(
        fitted,
        KEPT["trainer"],
        lambda: forecast.predict()[[name]],
        score,
        lambda path: forecast.save(str(path / "model"), overwrite=True),
        lambda path: NeuralForecast.load(str(path / "model")).predict()[[name]],
        found["cpu"],
    )


MODELS = {
    "MLP": partial(train, MLP, {"hidden_size": 128, "num_layers": 2}),
    "NHITS": partial(train, NHITS, {"mlp_units": 3 * [[64, 64]]}),
}
