"""What the figures of both papers share: arguments, data of classes, writing down what was computed.

Every figure is one script: it computes plain data, writes them as JSON, and draws the PNG from those data alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

MOST_DIGITS = 1200  # of the 1797 to train on, so that enough are left to test on


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    full: bool
    seed: int
    data: Path | None


def run(
    name: str,
    doc: str,
    compute: Callable[[Options], dict[str, Any]],
    draw: Callable[[dict[str, Any]], Figure],
    *,
    output: Path,
    digits: int | None = None,
    of_images: bool = False,
) -> None:
    """Compute a figure's data, write `name`.json, draw `name`.png from them, and say what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's size instead of the quick one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="%(default)s")
    parser.set_defaults(data=None)
    if of_images:
        text = "folder of MNIST (downloaded there if absent); without it digits"
        parser.add_argument("--data", type=Path, metavar="DIR", help=text)
    given = parser.parse_args()
    started = time.process_time()
    results = compute(Options(given.full, given.seed, given.data))
    seconds = round(time.process_time() - started, 1)
    results = {"figure": name, "full": given.full, "seed": given.seed, "cpu_seconds": seconds, **results}
    given.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results, digits), indent=1, allow_nan=False)
    (given.output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    draw(json.loads(text)).savefig(given.output / f"{name}.png", dpi=130)
    for key, value in results["found"].items():
        print(f"{key}: {plain(value, digits)}")
    print(f"{seconds} s of CPU; written to {given.output}: {name}.json, {name}.png")


def plain(value: Any, digits: int | None = None) -> Any:
    """Plain data, numbers with so many significant digits; what is not finite becomes None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(one, digits) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, digits) for one in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if digits is None else float(f"{value:.{digits}g}")


@dataclass(frozen=True)
class Classes:
    """Inputs in rows and labels, to train on and to test on."""

    name: str
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @property
    def one_hot(self) -> Tensor:
        """The labels as targets of the mean square error."""
        return nn.functional.one_hot(self.labels).to(self.inputs.dtype)


def split(name: str, inputs: Tensor, labels: Tensor, train: int, seed: int) -> Classes:
    """So many samples to train on, the others to test on."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    first, rest = order[:train], order[train:]
    return Classes(name, inputs[first], labels[first], inputs[rest], labels[rest])


def images(options: Options, train: int) -> Classes:
    """So many images of MNIST, or, without a folder for it, of scikit-learn's digits, which is said aloud."""
    if options.data is None:
        from sklearn.datasets import load_digits

        print(f"No --data DIR for MNIST: scikit-learn's 8 x 8 digits stand in for it (at most {MOST_DIGITS} of 1797).")
        given = load_digits()
        inputs = torch.tensor(given.data, dtype=torch.float32) / 16
        return split("digits", inputs, torch.tensor(given.target), min(train, MOST_DIGITS), options.seed)
    from torchvision.datasets import MNIST

    fit, test = (MNIST(str(options.data), train=part, download=True) for part in (True, False))
    chosen = torch.randperm(len(fit), generator=torch.Generator().manual_seed(options.seed))[:train]
    inputs, test_inputs = (part.data.flatten(1).float() / 255 for part in (fit, test))
    return Classes("MNIST", inputs[chosen], fit.targets[chosen], test_inputs, test.targets)
