"""What the width paper's figures share: arguments, data, networks, training.

Every figure is one script: it computes plain data, writes them as JSON, and draws the PNG from those data alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.surgery import mlp


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    full: bool
    seed: int
    data: Path | None


def run(
    name: str, doc: str, compute: Callable[[Options], dict[str, Any]], draw: Callable[[dict[str, Any]], Figure]
) -> None:
    """Compute a figure's data, write `name`.json, draw `name`.png from them, and say what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's size instead of the quick one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/width_paper"), metavar="DIR", help="%(default)s")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of MNIST (downloaded there if absent); without it digits"
    )
    given = parser.parse_args()
    started = time.process_time()
    results = compute(Options(given.full, given.seed, given.data))
    seconds = round(time.process_time() - started, 1)
    results = {"figure": name, "full": given.full, "seed": given.seed, "cpu_seconds": seconds, **results}
    given.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), allow_nan=False)
    (given.output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    draw(json.loads(text)).savefig(given.output / f"{name}.png", dpi=130)
    for key, value in results["found"].items():
        print(f"{key}: {plain(value)}")
    print(f"{seconds} s of CPU; written to {given.output}: {name}.json, {name}.png")


def plain(value: Any) -> Any:
    """Plain data; what is not finite becomes None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def exact() -> nn.Sequential:
    """The width-3 tanh network that computes the curve; loss 0."""
    values = (([[4.0], [4.0], [4.0]], [4.0, -2.0, -6.0]), ([[1.0, 0.9, -0.3]], [0.0]))
    theta = tuple(tuple(torch.tensor(part, dtype=torch.float64) for part in layer) for layer in values)
    return mlp(theta, nn.Tanh())


def curve() -> tuple[Tensor, Tensor]:
    """50 points of a sum of three tanh steps.

    The 1-D data of Figs. 1, 3(a) and 4 are only drawn in the paper. These have a finite best fit for one neuron, as
    those in the paper; for many other curves its parameters grow into the hundreds, towards a straight line.
    """
    x = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    return x, exact()(x).detach()


@dataclass(frozen=True)
class Images:
    """Images as rows of numbers in 0..1 and their classes, to train on and to test on."""

    name: str
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def images(options: Options, count: int) -> Images:
    """So many training images of MNIST, or, without a folder for it, of scikit-learn's digits, which is said aloud."""
    order = torch.Generator().manual_seed(options.seed)
    if options.data is None:
        from sklearn.datasets import load_digits

        print("No --data DIR for MNIST: scikit-learn's 1797 digits of 8 x 8 pixels stand in for it.")
        digits = load_digits()
        rows = torch.randperm(len(digits.target), generator=order)
        inputs, labels = torch.tensor(digits.data, dtype=torch.float32)[rows] / 16, torch.tensor(digits.target)[rows]
        return Images("digits", inputs[:count], labels[:count], inputs[count:], labels[count:])
    from torchvision.datasets import MNIST

    fit, test = (MNIST(str(options.data), train=part, download=True) for part in (True, False))
    rows = torch.randperm(len(fit), generator=order)[:count]
    inputs, test_inputs = (part.data.flatten(1).float() / 255 for part in (fit, test))
    return Images("MNIST", inputs[rows], fit.targets[rows], test_inputs, test.targets)


def gaussian(widths: tuple[int, ...], activation: nn.Module, std: float, seed: int) -> nn.Sequential:
    """A fully-connected network of normal weights and biases, as all of the paper's; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return std * torch.randn(*shape, dtype=torch.float64, generator=generator)

    return mlp(tuple((normal(after, before), normal(after)) for before, after in pairwise(widths)), activation)


def train(
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    watch: Callable[[int, float], None],
) -> None:
    """Full-batch training in place on the mean squared error; `watch` sees the step and the loss before every step."""
    inputs, targets = data
    for step in range(steps + 1):
        loss = nn.functional.mse_loss(net(inputs), targets)
        watch(step, loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
