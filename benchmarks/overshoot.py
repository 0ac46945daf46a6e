"""Whether the first steps after a merge overshoot: `python -m benchmarks.overshoot`.

A tanh MLP is trained on scikit-learn's digits by Adam or by SGD with momentum; at one step it is merged. Compared over
the next steps: the optimizer's state carried over (ours), the same at a quarter of the rate, an optimizer made anew,
and the same network not merged at all. Printed is the training loss at the merge, and the highest and the last loss
after it, each as a ratio to the loss of the unmerged network at the same step; and the sharpness (largest eigenvalue of
the Hessian of the training loss), as a ratio to that of the unmerged network.
"""

import argparse
import copy
import logging
import warnings

import torch
from scipy.sparse.linalg import eigsh
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from lightning_embed import analysis, demo

EPOCHS, BATCH, STEPS = 30, 64, 60
OPTIMIZERS = {
    "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
    "SGD, rate 0.005": lambda net: torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9),
    "SGD, rate 0.02": lambda net: torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9),
    "SGD, rate 0.05": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
}
MERGES = {
    "layers": le.Criteria(linearization=0.99, condensation=None, span=None),
    "neurons": le.Criteria(linearization=None, condensation=0.9, span=0.01),
}


def train(net, optimizer, images, labels, steps, generator):
    """Losses on all images after every step."""
    losses = []
    for _ in range(steps):
        batch = torch.randint(0, len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(nn.functional.cross_entropy(net(images), labels).item())
    return losses


def sharpness(net, images, labels):
    """The largest eigenvalue of the Hessian of the training loss."""
    operator = analysis.hessian_operator(net, nn.CrossEntropyLoss(), (images, labels))
    return eigsh(operator, k=1, which="LA", tol=0.01, return_eigenvectors=False).item()


def started(make, seed, images, labels):
    """A network and its optimizer in mid-training."""
    torch.manual_seed(seed)
    net = demo.DigitsClassifier(std=0.05).net
    optimizer = make(net)
    train(net, optimizer, images, labels, EPOCHS * len(images) // BATCH, torch.Generator().manual_seed(seed))
    return net, optimizer


def merged(net, optimizer, plan, how, make):
    """A copy of both after the merge, with the optimizer edited or a new one."""
    net, optimizer = copy.deepcopy((net, optimizer))
    if how == "not merged":
        return net, optimizer
    le.apply(net, plan, optimizers=optimizer)
    if how == "ours, rate / 4":
        for group in optimizer.param_groups:
            group["lr"] /= 4
    return net, make(net) if how == "made anew" else optimizer


def rows(seed):
    data, _ = demo.digits(seed)
    images, labels = data.tensors
    for name, make in OPTIMIZERS.items():
        net, optimizer = started(make, seed, images, labels)
        for what, criteria in MERGES.items():
            plan = le.propose(net, images, criteria=criteria)
            if not plan.steps:
                continue
            losses, sharp = {}, {}
            for how in ("not merged", "ours", "ours, rate / 4", "made anew"):
                model, its = merged(net, optimizer, plan, how, make)
                if how in ("not merged", "ours"):
                    sharp[how] = sharpness(model, images, labels)
                with torch.no_grad():
                    at = nn.functional.cross_entropy(model(images), labels).item()
                losses[how] = [at, *train(model, its, images, labels, STEPS, torch.Generator().manual_seed(99))]
            plain = losses.pop("not merged")
            for how, found in losses.items():
                ratios = [mine / other for mine, other in zip(found, plain, strict=True)]
                shown = [plain[0], sharp["ours"] / sharp["not merged"], ratios[0], max(ratios[1:]), ratios[-1]]
                yield [name, what, len(plan.steps), seed, how, *shown]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    heads = ["optimizer", "merge", "steps", "seed", "state", "loss", "sharpness", "at merge", "highest after", "last"]
    found = [row for seed in range(options.seeds) for row in rows(seed)]
    print(tabulate(found, headers=heads, floatfmt=(*[""] * 5, ".4f", *[".2f"] * 4)))


if __name__ == "__main__":
    main()
