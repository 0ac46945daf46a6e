"""Condensation reduction (Chen, Xu, arXiv 2405.01041) beside ours: `python -m benchmarks.condensation_reduction`.

Their tasks are combustion (its data are not public) and CIFAR-10 (not at hand where this ran). The stand-in is the
smallest of the first kind: a fully connected network learns one step of stiff reaction kinetics (Robertson's three
species). As there, neurons whose input weights [w, b] have a cosine of at least a threshold become one, layer after
layer from the first, and the small network is trained on briefly. Their group's neuron takes the output weights
Σ a_k ‖w_k‖ / ‖w_j‖ (004, Sec. 5; the sign of the cosine, as tanh is odd). Ours: `prune` at the same widths.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.operators import group_mix, merge_neurons
from lightning_embed.statistics import amplitudes, augmented_weights, cosine_groups, representatives
from lightning_embed.surgery import mlp, theta_of

WIDTH, HIDDEN, STD, RATE, BATCH = 64, 2, 0.03, 1e-3, 256
THRESHOLDS = (0.95, 0.9, 0.8)
RATES = (0.04, 3e7, 1e4)  # of Robertson's reactions


def kinetics(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """States of three species with the logarithm of a time step, and by how much each changes, both standardised.

    One implicit Euler step, solved by Newton's method; the third species is what the sum leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(samples, 3, generator=generator, dtype=torch.float64)
    first, second, step = drawn[:, 0], 10 ** (-6 + 2 * drawn[:, 1]), 10 ** (-2 + 3 * drawn[:, 2])
    start = torch.stack([first, second], 1)
    slow, fast, back = RATES
    state = start.clone()
    for _ in range(50):
        a, b = state.T
        c = 1 - a - b
        flow = torch.stack([-slow * a + back * b * c, slow * a - back * b * c - fast * b * b], 1)
        by_a = torch.stack([-slow - back * b, slow + back * b], 1)
        by_b = torch.stack([back * (c - b), -back * (c - b) - 2 * fast * b], 1)
        jacobian = torch.eye(2, dtype=state.dtype) - step[:, None, None] * torch.stack([by_a, by_b], 2)
        state = state - torch.linalg.solve(jacobian, state - start - step[:, None] * flow)
    inputs = torch.stack([first, second.log10(), step.log10()], 1)
    targets = torch.stack([state[:, 0] - first, state[:, 1].clamp_min(1e-12).log10() - second.log10()], 1)
    return tuple(((part - part.mean(0)) / part.std(0)).float() for part in (inputs, targets))  # type: ignore[return-value]


def trained(net: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float, seed: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(0, len(data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(data[0][chosen]), data[1][chosen]).backward()
        optimizer.step()
    return net


def error(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Root mean square error on standardised targets."""
    with torch.no_grad():
        return nn.functional.mse_loss(net(data[0]), data[1]).sqrt().item()


def theirs(net: nn.Sequential, threshold: float) -> nn.Sequential:
    """One neuron a group in every hidden layer, from the first on."""
    theta = list(theta_of(net))
    for layer in range(len(theta) - 1):
        (w_in, b_in), (w_out, b_out) = theta[layer], theta[layer + 1]
        vectors = augmented_weights(w_in, b_in)
        groups = cosine_groups(vectors, threshold, absolute=True)
        chosen = representatives(groups, amplitudes(vectors, w_out))
        ordered = [
            [one, *(other for other in group if other != one)] for one, group in zip(chosen, groups, strict=True)
        ]
        norms = vectors.norm(dim=1).double()
        ratio = torch.ones_like(norms)
        for one, *rest in ordered:
            for other in rest:
                ratio[other] = norms[other] / norms[one] * torch.sign(vectors[other] @ vectors[one])
        kept, mix = group_mix(ordered, len(w_in), ratio)
        w_in, b_in, w_out, b_out = merge_neurons(w_in, b_in, w_out, b_out, kept, mix, torch.zeros(len(mix)))
        theta[layer], theta[layer + 1] = (w_in, b_in), (w_out, b_out)
    return mlp(tuple(theta), nn.Tanh())


def compare(seed: int, steps: int, more: int) -> list[dict[str, Any]]:
    train, test = kinetics(4000, 2 * seed), kinetics(2000, 2 * seed + 1)
    torch.manual_seed(seed)
    modules: list[nn.Module] = [nn.Linear(3, WIDTH), nn.Tanh()]
    for _ in range(HIDDEN - 1):
        modules += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    net = nn.Sequential(*modules, nn.Linear(WIDTH, 2))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=STD)
    trained(net, train, steps, RATE, seed)
    whole, size = error(net, test), sum(one.numel() for one in net.parameters())
    rows = []
    for threshold in THRESHOLDS:
        small = theirs(net, threshold)
        linears = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        widths = {name: len(weight) for name, (weight, _) in zip(linears[:-1], theta_of(small)[:-1], strict=True)}
        ours = le.prune(net, train[0], widths=widths, seed=seed).model
        row: dict[str, Any] = {"seed": seed, "threshold": threshold, "widths": list(widths.values())}
        row["share"] = sum(one.numel() for one in small.parameters()) / size
        row["error before"] = whole
        for name, model in (("theirs", small), ("ours", ours)):
            row[name] = error(model, test)
            row[f"{name}, trained on"] = error(trained(copy.deepcopy(model), train, more, RATE / 3, seed), test)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=3000, metavar="N", help="of the training; default: %(default)s")
    parser.add_argument("--more", type=int, default=500, metavar="N", help="after merging; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/condensation_reduction.json"), metavar="FILE")
    given = parser.parse_args()
    rows = [row for seed in range(given.seeds) for row in compare(seed, given.steps, given.more)]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(tabulate(rows, headers="keys", floatfmt=".4f"))


if __name__ == "__main__":
    main()
