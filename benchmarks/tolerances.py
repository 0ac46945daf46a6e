"""What thresholds and tolerances do, on data that nothing has seen: `python -m benchmarks.tolerances`.

Classification: the demonstration's network (64-5×128-10, tanh) on scikit-learn's digits; one half trains and
calibrates, the other one tests. Regression: a curve in one dimension with noise, learned by a 1-3×50-1 tanh network.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_embed as le
from lightning_embed import demo

CHANGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SPANS = (0.001, 0.003, 0.01, 0.03, 0.1)
MPCS = (0.9, 0.95, 0.99, 0.999)
SAMPLES = (32, 64, 128, 256, 512, 898)
NOISE, POINTS = 0.1, 400


# ---- digits ----


def classifiers(seeds: Iterable[int]) -> list[tuple[nn.Module, TensorDataset, TensorDataset, int]]:
    """Trained networks with their training and test data."""
    return [
        (demo.train(seed, demo.EPOCHS, [], None, quiet=True).lightning_module.net, *demo.digits(seed), seed)
        for seed in seeds
    ]


def pruned(
    net: nn.Module,
    train: TensorDataset,
    test: TensorDataset,
    seed: int,
    criteria: le.Criteria | None = None,
    change: float = 0.05,
    samples: int | None = None,
) -> dict[str, float]:
    """Prune a network; what is left of it, and what became of its outputs on the test images."""
    calibration = train.tensors[0][:samples]
    tolerance = le.Tolerance(change=change)
    result = le.prune(net, calibration, criteria=criteria, tolerance=tolerance, seed=seed)
    old, new = demo.logits(net, test), demo.logits(result.model, test)
    done = [one for one in result.records if one.done]
    return {
        "parameters": result.size[1].parameters / result.size[0].parameters,
        "hidden layers": result.size[1].hidden_layers,
        "change, calibration": done[-1].change if done else 0.0,
        "change, test": changed(old, new),
        "agreement": (old.argmax(1) == new.argmax(1)).double().mean().item(),
        "accuracy before": demo.accuracy(net, test),
        "accuracy": demo.accuracy(result.model, test),
    }


def changed(old: Tensor, new: Tensor) -> float:
    """The change as `Tolerance` defines it."""
    return ((new - old).norm() / (old - old.mean(0)).norm()).item()


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean over seeds of every figure."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def sweeps(seeds: int) -> dict[str, list[dict[str, Any]]]:
    """A table for everything that can be chosen, the rest being the defaults."""
    networks = classifiers(range(seeds))
    only = {"condensation": None, "span": None}
    return {
        "Tolerance(change=…)": [
            {"change=": value, **mean([pruned(*one, change=value) for one in networks])} for value in CHANGES
        ],
        "Criteria(span=…)": [
            {"span=": value, **mean([pruned(*one, le.Criteria(span=value)) for one in networks])} for value in SPANS
        ],
        "Criteria(linearization=…), layers alone, no tolerance": [
            {
                "linearization=": value,
                **mean([pruned(*one, le.Criteria(linearization=value, **only), change=1e6) for one in networks]),
            }
            for value in MPCS
        ],
        "calibration samples": [
            {"samples": value, **mean([pruned(*one, samples=value) for one in networks])} for value in SAMPLES
        ],
    }


# ---- a regression ----


def curve(seed: int, noise: float) -> tuple[Tensor, Tensor]:
    """Points of a smooth curve in one dimension."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(POINTS, 1, generator=generator) - 2
    y = torch.tanh(4 * (x - 1)) + torch.tanh(4 * (x + 1)) + 0.3 * torch.sin(5 * x)
    return x, y + noise * torch.randn(y.shape, generator=generator)


def regressor(seed: int) -> nn.Sequential:
    """A network trained on the noisy curve."""
    torch.manual_seed(seed)
    sizes = [1, 50, 50, 50]
    hidden = [one for i in range(3) for one in (nn.Linear(sizes[i], sizes[i + 1]), nn.Tanh())]
    net = nn.Sequential(*hidden, nn.Linear(50, 1))
    x, y = curve(seed, NOISE)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(1500):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return net


def regressions(seeds: int) -> list[dict[str, Any]]:
    """The error on new points before and after pruning, for every tolerance."""
    networks = [(regressor(seed), seed) for seed in range(seeds)]
    return [{"change=": value, **mean([_regression(net, seed, value) for net, seed in networks])} for value in CHANGES]


def _regression(net: nn.Module, seed: int, change: float) -> dict[str, float]:
    x, y = curve(1000 + seed, 0.0)
    tolerance = le.Tolerance(change=change)
    result = le.prune(net, curve(seed, NOISE)[0], tolerance=tolerance, seed=seed)
    with torch.no_grad():
        old, new = net(x), result.model(x)
    spread = (y - y.mean()).norm()
    return {
        "parameters": result.size[1].parameters / result.size[0].parameters,
        "change, test": changed(old, new),
        "error before": ((old - y).norm() / spread).item(),
        "error": ((new - y).norm() / spread).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")  # Lightning's use of torch
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tables = sweeps(options.seeds) | {"regression, Tolerance(change=…)": regressions(options.seeds)}
    for title, rows in tables.items():
        print(f"\n== {title}: means of {options.seeds} seeds\n")
        print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".4g"))
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
