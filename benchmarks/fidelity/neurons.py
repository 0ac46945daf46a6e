"""two-layer ReLU, width 400, 1000 images (width paper, Fig. 5): condensed neurons merged, no retraining"""

import copy

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.mnist import Mnist
from lightning_embed.statistics import amplitudes, augmented_weights, cosine_groups, representatives

WIDTH, IMAGES, RATE, GROUPS, COSINE = 400, 1000, 3e-5, 60, 0.9
MOST_STEPS = 2000


def run(data: Mnist, seed: int) -> list[dict]:
    images, labels = data.images[:IMAGES], data.labels[:IMAGES]
    net, step, groups = _condensed(images, labels, seed)
    result = le.prune(net, images, widths={"0": GROUPS}, seed=seed)
    return [
        {
            "seed": seed,
            "step": step,
            "groups": len(groups),
            "neurons": result.model[0].out_features,
            "ours": data.agreement(net, result.model),
            "paper's formula": data.agreement(net, _published(net, groups)),
            "accuracy before": data.accuracy(net),
            "accuracy": data.accuracy(result.model),
        }
    ]


def show(found: list[dict]) -> None:
    print("The width paper: 98.5 % agreement at 58 neurons, after retraining.")
    print(tabulate(found, headers="keys", floatfmt=".4f"))


def _condensed(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[nn.Sequential, int, list[list[int]]]:
    """Train on all images at once: neurons fall into one group, which then parts; stop at about as many as wanted."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=WIDTH**-3.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    condensed, best = False, None
    for step in range(1, MOST_STEPS + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        groups = cosine_groups(augmented_weights(net[0].weight, net[0].bias), COSINE) if step % 3 == 0 else []
        condensed |= 0 < len(groups) <= GROUPS // 2
        if condensed and groups:
            if best is None or abs(len(groups) - GROUPS) < abs(len(best[2]) - GROUPS):
                best = copy.deepcopy(net), step, groups
            if len(groups) > GROUPS:
                break
    assert best is not None, "the neurons did not condense"
    return best


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
