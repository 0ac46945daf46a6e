"""One training through a package, in the package's own environment: what the callbacks do to it, as numbers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from lightning_embed.callbacks._trainer import Callback

GENEROUS = {
    "criteria": le.Criteria(linearization=0.95, condensation=0.8, span=0.05),
    "tolerance": le.Tolerance(change=0.1),
}


@dataclass
class Trained:
    """What a package has trained.

    Attributes:
        module: the LightningModule.
        trainer: Lightning's Trainer, whose `callbacks` are those that saw the training.
        predict: the package's own prediction on held-out data, as an array.
        score: the package's own metric on them.
        save: writes into a folder the package's own way.
        load: reads it back the package's own way, and predicts.
        cpu: seconds of process time of the training alone.
    """

    module: nn.Module
    trainer: Any
    predict: Callable[[], Any]
    score: Callable[[], float]
    save: Callable[[Path], None]
    load: Callable[[Path], Any]
    cpu: float = field(default=0.0)


KEPT: dict[str, Any] = {}


class Keeper(Callback):
    """Keeps the Trainer, where a package keeps it to itself; the packages copy callbacks, so not on the callback."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        KEPT.update(trainer=trainer, module=pl_module)


Train = Callable[[list[Any], Path], Trained]


@contextlib.contextmanager
def timed(found: dict[str, float]) -> Any:
    """Note the process time of what runs inside."""
    begun = time.process_time()
    yield
    found["cpu"] = time.process_time() - begun


def seed(number: int = 0) -> None:
    """Everything random."""
    import random

    random.seed(number)
    np.random.seed(number)  # packages draw from it
    torch.manual_seed(number)


def array(predictions: Any) -> np.ndarray:
    """Predictions of any kind as one array."""
    if isinstance(predictions, torch.Tensor):
        return predictions.detach().cpu().numpy()
    if hasattr(predictions, "select_dtypes"):
        return predictions.select_dtypes("number").to_numpy()
    if isinstance(predictions, (list, tuple)):
        return np.concatenate([np.ravel(array(one)) for one in predictions])
    return np.asarray(predictions)


def weights(module: nn.Module) -> str:
    """A fingerprint of all parameters and buffers."""
    digest = hashlib.sha256()
    for tensor in (*module.parameters(), *module.buffers()):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def parameters(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def of_kind(trained: Trained, kind: type) -> Any:
    """The callback that saw the training: some packages train with a copy of the one they were given."""
    return next((one for one in trained.trainer.callbacks if isinstance(one, kind)), None)


class Heard(logging.Handler):
    """The warnings of this library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run(name: str, model: str, train: Train) -> dict[str, Any]:
    """All cells of one row."""
    heard = Heard()
    logging.getLogger("lightning_embed").addHandler(heard)
    row: dict[str, Any] = {"package": name, "model": model}

    def once(callbacks: list[Any], what: str) -> Trained | None:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        seed()
        try:
            return train(callbacks, folder)
        except Exception as error:  # noqa: BLE001  # it is the cell
            row[what] = f"fails: {type(error).__name__}: {str(error)[:300]}"
            row.setdefault("tracebacks", []).append(f"{what}\n{traceback.format_exc()[-3000:]}")
            return None

    alone = once([], "without")
    if alone is None:
        return row
    again = once([], "without again")  # warm, and whether the package's own training repeats at all
    if again is None:
        return row
    row |= {
        "parameters": parameters(alone.module),
        "score": float(alone.score()),
        "cpu": again.cpu,
        "repeats": weights(alone.module) == weights(again.module),
    }
    watched = once([EmbeddingMonitor(every_n_steps=20)], "bit-equal")
    if watched is not None:
        row["bit-equal"] = weights(again.module) == weights(watched.module)
        row["monitor cpu"] = watched.cpu / again.cpu
        row |= seen(watched)
        row["monitor saves"] = saved_and_loaded(watched, row, "monitor saves")
    for kind, options in (("defaults", {}), ("generous", {"when": After(0.3, every_n_epochs=3), **GENEROUS})):
        pruned = once([EmbeddingMonitor(every_n_steps=20), EmbeddingPruner(**options)], kind)
        if pruned is None:
            continue
        pruner = of_kind(pruned, EmbeddingPruner)
        row[kind] = {
            "merges": sum(one.done for one in pruner.records),
            "parameters": parameters(pruned.module),
            "score": float(pruned.score()),
            "cpu": pruned.cpu / again.cpu,
            "refused": sorted({str(one.reason).split(" (")[0][:80] for one in pruner.records if not one.done})[:4],
        }
        row[kind]["saves"] = saved_and_loaded(pruned, row, f"{kind} saves")
    row["said"] = sorted(set(heard.said))
    logging.getLogger("lightning_embed").removeHandler(heard)
    return row


def seen(trained: Trained) -> dict[str, Any]:
    """What the monitor could see, and what share of the parameters lies in layers that may merge."""
    monitor = of_kind(trained, EmbeddingMonitor)
    found = monitor.measurement
    if found is None:
        return {"layers": 0, "may merge": 0, "share": 0.0}
    free = [one.layer for one in found.layers if not one.merge_neurons]
    modules = dict(trained.trainer.lightning_module.named_modules())  # the monitor's names are those of what is trained
    held = sum(parameters(modules[name]) for name in free if name in modules)
    return {
        "layers": len(found.layers) + len(found.refused),
        "may merge": len(free),
        "share": held / parameters(trained.module),
        "left alone": {name: str(reason)[:80] for name, reason in found.refused[:12]},
    }


def saved_and_loaded(trained: Trained, row: dict[str, Any], what: str) -> str:
    """The package's own save and load, in the context that the documentation names."""
    folder = Path(tempfile.mkdtemp(prefix="saved-"))
    try:
        before = array(trained.predict())
        trained.save(folder)
        with le.loading():
            after = array(trained.load(folder))
    except Exception as error:  # noqa: BLE001  # it is the cell
        row.setdefault("tracebacks", []).append(f"{what}\n{traceback.format_exc()[-3000:]}")
        return f"fails: {type(error).__name__}: {str(error)[:200]}"
    if before.shape == after.shape and np.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True):
        return "equal"
    return "differs"


def main(name: str, distribution: str, models: list[str]) -> None:
    """Run a package's rows and print each as a line of JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    package = import_module(f"tests.packages.{name}")
    for model, train in package.MODELS.items():
        if models and model not in models:
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            row = run(name, model, train)
        row["version"] = version(distribution)
        row["torch"], row["lightning"] = (
            torch.__version__.partition("+")[0],
            version("lightning") if _has("lightning") else version("pytorch-lightning"),
        )
        print("ROW " + json.dumps(row), flush=True)


def _has(distribution: str) -> bool:
    with contextlib.suppress(Exception):
        version(distribution)
        return True
    return False


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
