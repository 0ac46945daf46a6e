"""two-layer ReLU, width 400, 1000 images (width paper, Fig. 5): condensed neurons merged, no retraining"""

import copy

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.mnist import Mnist
from lightning_embed.statistics import amplitudes, augmented_weights, cosine_groups, representatives

WIDTH, IMAGES, RATE, GROUPS, COSINE, NEGLIGIBLE = 400, 1000, 3e-5, 60, 0.9, 0.1
STEPS, EVERY = 1600, 25


def run(data: Mnist, seed: int) -> list[dict]:
    images, labels = data.images[:IMAGES], data.labels[:IMAGES]
    net, step, groups = _condensed(images, labels, seed)
    ours = {width: le.prune(net, images, widths={"0": width}, seed=seed).model for width in (GROUPS, len(groups))}
    assert ours[GROUPS][0].out_features <= GROUPS
    return [
        {
            "seed": seed,
            "step": step,
            "groups": len(groups),
            f"ours at {GROUPS}": data.agreement(net, ours[GROUPS]),
            "ours, one a group": data.agreement(net, ours[len(groups)]),
            "paper's formula": data.agreement(net, _published(net, groups)),
            "accuracy before": data.accuracy(net),
            f"accuracy at {GROUPS}": data.accuracy(ours[GROUPS]),
        }
    ]


def show(found: list[dict]) -> None:
    print("The width paper: 98.5 % agreement at 58 neurons, after retraining.")
    print(tabulate(found, headers="keys", floatfmt=".4f"))


def _condensed(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[nn.Sequential, int, list[list[int]]]:
    """Train on all images at once: neurons fall into few groups, which then part; stop at about as many as wanted."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=WIDTH**-3.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    best: tuple[nn.Sequential, int, list[list[int]]] | None = None
    fewest = WIDTH
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        if step % EVERY:
            continue
        groups = _groups(net)
        if len(groups) < fewest:  # still falling together
            fewest, best = len(groups), None
        if best is None or abs(len(groups) - GROUPS) < abs(len(best[2]) - GROUPS):
            best = copy.deepcopy(net), step, groups
        if len(groups) >= GROUPS > fewest:
            break
    assert best is not None
    return best


def _groups(net: nn.Sequential) -> list[list[int]]:
    """Groups of the neurons that are not negligible, as the paper counts them."""
    vectors = augmented_weights(net[0].weight, net[0].bias)
    amplitude = amplitudes(vectors, net[2].weight)
    counted = torch.nonzero(amplitude >= NEGLIGIBLE * amplitude.max()).flatten()
    return [[int(counted[one]) for one in group] for group in cosine_groups(vectors[counted], COSINE)]


def _published(net: nn.Sequential, groups: list[list[int]]) -> nn.Sequential:
    """The width paper's merge: a group's strongest member, output weights added in proportion to the input weights."""
    vectors = augmented_weights(net[0].weight, net[0].bias)
    kept = representatives(groups, amplitudes(vectors, net[2].weight))
    narrow = nn.Sequential(nn.Linear(784, len(kept)), nn.ReLU(), nn.Linear(len(kept), 10))
    norms = vectors.norm(dim=1)
    with torch.no_grad():
        narrow[0].weight.copy_(net[0].weight[kept])
        narrow[0].bias.copy_(net[0].bias[kept])
        narrow[2].bias.copy_(net[2].bias)
        for column, (group, member) in enumerate(zip(groups, kept, strict=True)):
            narrow[2].weight[:, column] = (net[2].weight[:, group] * norms[group] / norms[member]).sum(1)
    return narrow
