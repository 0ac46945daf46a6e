"""What the depth paper's figures share: networks, data, training, measuring, the look of a figure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.statistics import amplitudes, augmented_weights

sys.path.append(str(Path(__file__).parents[1]))  # a figure is run as a script, which sees its own folder only
from papers import figure  # not found before

Classes, Options, images = figure.Classes, figure.Options, figure.images  # the figures take them from here
run = partial(figure.run, output=Path("runs/depth_paper"), digits=7)

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # told apart without colours
SHADE = {"color": "0.85", "zorder": 0}
LINEAR = 0.99  # the MPC from which the paper calls a layer effectively linear (Fig. 8)


# Data


def steps_curve(count: int = 70, half_width: float = 2.0) -> tuple[Tensor, Tensor]:
    """The 1-D data of Fig. 3(b), two smooth steps: the paper gives no formula; tanh(4(x - 1)) + tanh(4(x + 1))."""
    x = torch.linspace(-half_width, half_width, count, dtype=torch.float64)[:, None]
    return x, torch.tanh(4 * (x - 1)) + torch.tanh(4 * (x + 1))


def iris(seed: int) -> Classes:
    """The Iris data, standardised; 120 flowers to train on and 30 to test on."""
    from sklearn.datasets import load_iris

    given = load_iris()
    inputs = torch.tensor(given.data, dtype=torch.float64)
    return figure.split("Iris", (inputs - inputs.mean(0)) / inputs.std(0), torch.tensor(given.target), 120, seed)


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


def bent(net: nn.Sequential, inputs: Tensor) -> list[float]:
    """For every hidden layer the share of what it passes on that is not affine in its input.

    What the next Linear makes of the layer is regressed on the layer's input (ridge), on every second sample; the share
    is that of the residual on the others, ‖y - ŷ‖ / ‖y - mean y‖. MPC asks every neuron to be affine, also those that
    cancel or that nobody reads; this asks what arrives.
    """
    net = deepcopy(net).double()
    given: list[Tensor] = []
    passed: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, x: given.append(x[0]))
            module.register_forward_hook(lambda _, x, y: passed.append(y))
    with torch.no_grad():
        net(inputs.double())
    shares = []
    for x, y in zip(given, passed[1:], strict=False):
        fit, held = slice(0, None, 2), slice(1, None, 2)
        mean_x, mean_y = x[fit].mean(0), y[fit].mean(0)
        centred = x[fit] - mean_x
        gram = centred.T @ centred
        ridge = 1e-8 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        slope = torch.linalg.solve(gram + ridge, centred.T @ (y[fit] - mean_y))
        error = y[held] - mean_y - (x[held] - mean_x) @ slope
        shares.append((error.norm() / (y[held] - y[held].mean(0)).norm()).item())
    return shares


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
