"""Histories made by hand and by a real training."""

import math
import random

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from lightning_embed.reporting.history import HistoryFile
from tests.callbacks.runs import Planted, loader, trainer

EXACT = {"criteria": le.Criteria(linearization=0.9999, condensation=0.9999, span=None), "when": 2}
NASTY = "</script><img src=x onerror=alert(1)> & \"q\" 's' {{ 7*7 }} <b>ß"


def fitted(folder, loggers, *callbacks, **options):
    """A short training in which a layer and half of another's neurons are merged."""
    every = {"max_epochs": 6, "logger": loggers, **options}
    both = callbacks or (EmbeddingMonitor(every_n_steps=2), EmbeddingPruner(**EXACT))
    run = trainer(folder, list(both), **every)
    run.fit(Planted(), loader())
    return run


def start(file, step=0, epoch=0, **settings):
    file.add(
        "start",
        step=step,
        epoch=epoch,
        time="2026-01-31T12:00:00+00:00",
        model=NASTY,
        environment={"Python": NASTY},
        settings=settings or {"criteria": {"linearization": 0.99}},
    )


def write_long(path, steps, layers, seed=0):
    """A long history of many layers, its MPC with one dip that must survive."""
    noise, file = random.Random(seed), HistoryFile(path)
    start(file)
    names = [f"encoder.layers.{number}.linear1" for number in range(layers)]
    for step in range(steps):
        fall = math.exp(-4.0 * step / steps)
        values = {
            f"mpc/{name}": 1.0 - (at + 1) / layers * 0.2 * (1 - fall) * noise.random() for at, name in enumerate(names)
        }
        values |= {f"grad_norm/{name}": fall * noise.random() for name in names}
        values |= {"grad_norm/l1": fall * noise.random() + 1e-3, "loss": fall + 0.01 * noise.random()}
        if step == steps // 3:
            values[f"mpc/{names[0]}"] = 0.123
        file.add(
            "sample", step=step, epoch=step // 1000, values={key: float(f"{one:.7g}") for key, one in values.items()}
        )
    file.flush()
    return path
