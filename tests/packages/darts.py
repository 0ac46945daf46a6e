"""Forecasts of one series with covariates made of time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from darts import TimeSeries
from darts.metrics import mae
from darts.models import NBEATSModel, TiDEModel

from tests.packages.training import Trained, timed

LINES = """
    model = TiDEModel(24, 12, pl_trainer_kwargs={"callbacks": [EmbeddingMonitor(), EmbeddingPruner()]})

    with le.loading():
        model = TiDEModel.load(path)
"""


def train(kind: type, options: dict[str, Any], callbacks: list[Any], folder: Path) -> Trained:
    rng, time = np.random.default_rng(0), np.arange(400)
    values = np.sin(time / 6) + 0.5 * np.sin(time / 2.3) + 0.1 * rng.normal(size=400)
    whole = TimeSeries.from_values(values.astype("float32"))
    past = whole[:376]
    model = kind(
        24,
        12,
        n_epochs=10,
        batch_size=32,
        random_state=0,
        work_dir=str(folder),
        pl_trainer_kwargs={
            "accelerator": "cpu",
            "callbacks": callbacks,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
        },
        **options,
    )
    found: dict[str, float] = {}
    with timed(found):
        model.fit(past)
    return Trained(
        model.model,
        model.trainer,
        lambda: model.predict(24, series=past).values(),
        lambda: float(mae(whole[376:], model.predict(24, series=past))),
        lambda path: model.save(str(path / "model.pt")),
        lambda path: kind.load(str(path / "model.pt")).predict(24, series=past).values(),
        found["cpu"],
    )


MODELS = {
    "NBEATS": partial(train, NBEATSModel, {"num_stacks": 4, "num_layers": 3, "layer_widths": 48}),
    "TiDE": partial(train, TiDEModel, {"hidden_size": 64, "temporal_width_past": 4, "temporal_width_future": 4}),
}
