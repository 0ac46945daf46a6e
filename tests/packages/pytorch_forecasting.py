"""Forecasts of many short series."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
from pytorch_forecasting import NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import QuantileLoss

from tests.packages.training import Trained, timed

LINES = """
    trainer = L.Trainer(callbacks=[EmbeddingMonitor(), EmbeddingPruner()])
    trainer.fit(model, loader)

    model = le.load_from_checkpoint(TemporalFusionTransformer, path)
"""


def series(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    time, frames = np.arange(80), []
    for number in range(24):
        value = np.sin(time / (3 + number % 4)) * (1 + number / 24) + 0.1 * rng.normal(size=80)
        frames.append(pd.DataFrame({"series": str(number), "time": time, "value": value.astype("float32")}))
    return pd.concat(frames, ignore_index=True)


def train(kind: type, options: dict[str, Any], callbacks: list[Any], folder: Path) -> Trained:
    frame = series()
    if kind is NBeats:
        window: dict[str, Any] = {"time_varying_unknown_reals": ["value"]}
    else:
        window = {
            "time_varying_unknown_reals": ["value"],
            "time_varying_known_reals": ["time"],
            "static_categoricals": ["series"],
            "add_relative_time_idx": True,
        }
    data = TimeSeriesDataSet(
        frame[frame.time < 68],
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=20,
        min_encoder_length=20,
        max_prediction_length=6,
        min_prediction_length=6,
        **window,
    )
    held = TimeSeriesDataSet.from_dataset(data, frame, min_prediction_idx=68, stop_randomization=True)
    model = kind.from_dataset(data, log_interval=-1, **options)
    trainer = L.Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        gradient_clip_val=0.1,
    )
    found: dict[str, float] = {}
    with timed(found):
        trainer.fit(model, data.to_dataloader(train=True, batch_size=64, num_workers=0))
    loader = held.to_dataloader(train=False, batch_size=64, num_workers=0)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}

    def predict(one: Any) -> Any:
        return one.predict(loader, trainer_kwargs=quiet, return_y=True).output

    def score() -> float:
        answer = model.predict(loader, trainer_kwargs=quiet, return_y=True)
        return float((answer.output - answer.y[0]).abs().mean())

    return Trained(
        model,
        trainer,
        lambda: predict(model),
        score,
        lambda path: trainer.save_checkpoint(path / "model.ckpt"),
        lambda path: predict(kind.load_from_checkpoint(path / "model.ckpt", weights_only=False)),
        found["cpu"],
    )


MODELS = {
    "NBeats": partial(train, NBeats, {"widths": [32, 64], "backcast_loss_ratio": 0.1, "learning_rate": 1e-3}),
    "TFT": partial(
        train,
        TemporalFusionTransformer,
        {
            "hidden_size": 12,
            "attention_head_size": 2,
            "hidden_continuous_size": 8,
            "loss": QuantileLoss(),
            "learning_rate": 1e-2,
            "dropout": 0.1,
        },
    ),
}
