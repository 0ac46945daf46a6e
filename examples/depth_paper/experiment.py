"""What the depth paper's figures share: arguments, networks, data, training, measuring, the look of a figure.

Every figure is one script: it computes plain data, writes them as JSON, and draws the PNG from those data alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.statistics import amplitudes, augmented_weights

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # told apart without colours
SHADE = {"color": "0.85", "zorder": 0}
LINEAR = 0.99  # the MPC from which the paper calls a layer effectively linear (Fig. 8)


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
    of_images: bool = False,
) -> None:
    """Compute a figure's data, write `name`.json, draw `name`.png from them, and say what was found."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's size instead of the quick one")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/depth_paper"), metavar="DIR", help="%(default)s")
    parser.set_defaults(data=None)
    if of_images:
        text = "folder of MNIST (downloaded there if absent); without it digits"
        parser.add_argument("--data", type=Path, metavar="DIR", help=text)
    given = parser.parse_args()
    started = time.perf_counter()
    results = compute(Options(given.full, given.seed, given.data))
    seconds = round(time.perf_counter() - started, 1)
    results = {"figure": name, "full": given.full, "seed": given.seed, "seconds": seconds, **results}
    given.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(results), indent=1, allow_nan=False)
    (given.output / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    draw(json.loads(text)).savefig(given.output / f"{name}.png", dpi=130)
    for key, value in results["found"].items():
        print(f"{key}: {rounded(value)}")
    print(f"{seconds} s; written to {given.output}: {name}.json, {name}.png")


def rounded(value: Any) -> Any:
    """Plain data with numbers of seven significant digits; NaN becomes None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


# Data


def steps_curve(count: int = 70, half_width: float = 2.0) -> tuple[Tensor, Tensor]:
    """The 1-D data of Fig. 3(b), two smooth steps: the paper gives no formula; tanh(4(x - 1)) + tanh(4(x + 1))."""
    x = torch.linspace(-half_width, half_width, count, dtype=torch.float64)[:, None]
    return x, torch.tanh(4 * (x - 1)) + torch.tanh(4 * (x + 1))


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


def iris(seed: int) -> Classes:
    """The Iris data, standardised; 120 flowers to train on and 30 to test on."""
    from sklearn.datasets import load_iris

    given = load_iris()
    inputs = torch.tensor(given.data, dtype=torch.float64)
    return _split("Iris", (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(given.target), 120, seed)


def images(options: Options, train: int) -> Classes:
    """So many images of MNIST, or, without a folder for it, of scikit-learn's digits, which is said aloud."""
    if options.data is None:
        from sklearn.datasets import load_digits

        print(
            "No --data DIR for MNIST: scikit-learn's 8 x 8 digits stand in for it (at most 1200 of 1797 to train on)."
        )
        given = load_digits()
        inputs = torch.tensor(given.data, dtype=torch.float32) / 16
        return _split("digits", inputs, torch.tensor(given.target), min(train, 1200), options.seed)
    from torchvision.datasets import MNIST

    parts = [MNIST(str(options.data), train=part, download=True) for part in (True, False)]
    inputs, labels = (
        torch.cat([part.data.flatten(1).float() / 255 for part in parts]),
        torch.cat([part.targets for part in parts]),
    )
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(options.seed))[:train]
    return Classes("MNIST", inputs[order], labels[order], inputs[60_000:], labels[60_000:])


def _split(name: str, inputs: Tensor, labels: Tensor, train: int, seed: int) -> Classes:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    first, rest = order[:train], order[train:]
    return Classes(name, inputs[first], labels[first], inputs[rest], labels[rest])


# Networks


class Skip(nn.Module):
    """A hidden layer with a skip connection, σ(W h + b) + h."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(width, width), nn.Tanh()

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(self.linear(h)) + h


def network(widths: Sequence[int], activation: type[nn.Module], std: float, seed: int) -> nn.Sequential:
    """A fully-connected network of Gaussian weights and biases, as all of the paper's; float64."""
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        modules += [nn.Linear(fan_in, fan_out), activation()]
    return gaussian(nn.Sequential(*modules[:-1]), std, seed)


def gaussian(net: nn.Sequential, std: float, seed: int) -> nn.Sequential:
    """Draw the weights and biases of all Linears, in float64."""
    generator = torch.Generator().manual_seed(seed)
    net.double()
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std, generator=generator)
            nn.init.normal_(module.bias, std=std, generator=generator)
    return net


def mpc(net: nn.Module, inputs: Tensor, least_amplitude: float = 0.0) -> list[float]:
    """Minimal Pearson correlation of every hidden layer, in float64 and in the mode in which the network is.

    Batch norm before the activation changes nothing, as it is an affine map of every neuron.
    Neurons whose amplitude is below this share of their layer's largest are left out: the paper removes such
    "zero-neurons" of ReLU networks before measuring (App. C).
    """
    net = deepcopy(net).double()
    seen: list[tuple[Tensor, Tensor]] = []
    for module in net.modules():
        if isinstance(module, (nn.Tanh, nn.ReLU)):
            module.register_forward_hook(lambda _, given, post: seen.append((given[0], post)))
    with torch.no_grad():
        net(inputs.double())
    if least_amplitude:
        linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
        sizes = [amplitudes(augmented_weights(one.weight, one.bias), after.weight) for one, after in pairwise(linears)]
        kept = [size >= least_amplitude * size.max() for size in sizes]
        seen = [(pre[:, these], post[:, these]) for (pre, post), these in zip(seen, kept, strict=True)]
    return [le.minimal_pearson_correlation(pre, post).item() for pre, post in seen]


def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of the samples that are classified rightly."""
    with torch.no_grad():
        return (net(inputs).argmax(1) == labels).double().mean().item()


# Training


@dataclass
class History:
    """A training as it went: at every recorded step the loss, what else was watched, and a copy of the network."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    watched: list[Any] = field(default_factory=list)
    nets: list[nn.Module] = field(default_factory=list)

    def curve(self) -> dict[str, list[float]]:
        """Steps and losses as plain data."""
        return {"step": self.steps, "loss": self.losses}


def train(
    net: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    batch: int | None = None,
    records: int = 100,
    watch: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
) -> History:
    """Train in place, on all data at once or in batches, and record so many times at equal distances."""
    inputs, targets = data
    generator = torch.Generator().manual_seed(seed)
    history, every, order = History(), max(1, steps // records), torch.empty(0, dtype=torch.long)
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                history.losses.append(loss(net(inputs), targets).item())
            history.steps.append(step)
            history.watched.append(watch(net) if watch else None)
            history.nets.append(deepcopy(net))
        if batch is None:
            value = loss(net(inputs), targets)
        else:
            if len(order) < batch:
                order = torch.randperm(len(inputs), generator=generator)
            value, order = loss(net(inputs[order[:batch]]), targets[order[:batch]]), order[batch:]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return history


def descend(
    net: nn.Module,
    data: tuple[Tensor, Tensor],
    rate: float,
    steps: int,
    watch: Callable[[nn.Module], Any] | None = None,
) -> History:
    """Full-batch gradient descent on the mean square error, as in all of the paper's small experiments."""
    return train(
        net, nn.functional.mse_loss, data, torch.optim.SGD(net.parameters(), lr=rate, fused=True), steps, watch=watch
    )


@dataclass(frozen=True)
class Plateau:
    """Where a training stagnates: from and to which record, at what loss; `best` is the record of the least slope."""

    first: int
    last: int
    best: int
    loss: float
    steps: tuple[int, int]


def plateau(history: History, spread: float = 0.05, below: float = 0.8, above: float = 0.02) -> Plateau | None:
    """The longest run of records whose losses lie within a share of each other.

    Only losses between two shares of the first one count: neither the start, where nothing is learned yet, nor the end.
    """
    losses, start = history.losses, history.losses[0]
    best = (0, 0)
    for first, value in enumerate(losses):
        last = first
        while last + 1 < len(losses) and abs(losses[last + 1] / value - 1) <= spread:
            last += 1
        if above * start <= losses[last] and value <= below * start and last - first > best[1] - best[0]:
            best = (first, last)
    first, last = best
    if last - first < 3:
        return None
    flattest = min(range(first + 1, last), key=lambda one: abs(losses[one + 1] - losses[one - 1]))
    return Plateau(first, last, flattest, losses[flattest], (history.steps[first], history.steps[last]))


# Figures


def panels(title: str, columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure with lettered panels."""
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for letter, one in zip("abcdefgh", axes, strict=False):
        one.set_title(f"({letter})", loc="left", fontsize=10)
    return figure, axes


def draw_curves(axes: Axes, curves: dict[str, dict[str, Any]], key: str, label: str, *, log: bool = False) -> None:
    """One line a network against the training step."""
    for style, (name, curve) in zip(LINES, curves.items(), strict=False):
        axes.plot(curve["step"], curve[key], linestyle=style, label=name)
    axes.set(xlabel="training step", ylabel=label, yscale="log" if log else "linear")
    axes.legend(fontsize=8)


def draw_mpc(axes: Axes, steps: Sequence[int], by_step: Sequence[Sequence[float]]) -> None:
    """The MPC of every hidden layer against the training step, as far as it is defined."""
    for number, values in enumerate(zip(*by_step, strict=True), start=1):
        known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        look = {"linestyle": LINES[(number - 1) % len(LINES)], "linewidth": 1.8 if number <= len(LINES) else 0.8}
        axes.plot(*zip(*known, strict=True), **look, label=f"hidden layer {number}")
    axes.axhline(LINEAR, color="0.5", linewidth=0.8)
    axes.annotate(f"{LINEAR}", (0, LINEAR), fontsize=7, va="top")
    axes.set(xlabel="training step", ylabel="MPC")
    axes.legend(fontsize=8)
