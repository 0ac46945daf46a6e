"""What the width paper's figures share: data, networks, training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_embed.surgery import mlp

sys.path.append(str(Path(__file__).parents[1]))  # a figure is run as a script, which sees its own folder only
from papers import figure  # not found before

Classes, Options, images = figure.Classes, figure.Options, figure.images  # the figures take them from here
run = partial(figure.run, output=Path("runs/width_paper"))


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
