"""Whether the first steps after a merge overshoot: `python -m benchmarks.overshoot`.

A tanh MLP is trained on scikit-learn's digits by Adam or by SGD with momentum; at one step it is merged. Compared over
the next steps: the optimizer's state carried over (ours), the state of the touched parameters dropped, an optimizer
made anew, and the same network not merged at all. Printed is the training loss at the merge, and the highest and the
last loss after it, each as a ratio to the loss of the unmerged network at the same step.
"""

import argparse
import copy
import logging
import warnings

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from lightning_embed import demo

EPOCHS, BATCH, STEPS = 30, 64, 60
OPTIMIZERS = {
    "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
    "SGD, momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
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


def started(make, seed, images, labels):
    """A network and its optimizer in mid-training."""
    torch.manual_seed(seed)
    net = demo.DigitsClassifier(std=0.12).net
    optimizer = make(net)
    train(net, optimizer, images, labels, EPOCHS * len(images) // BATCH, torch.Generator().manual_seed(seed))
    return net, optimizer


def merged(net, optimizer, plan, how, make):
    """A copy of both after the merge, with the optimizer treated in one of the ways."""
    net, optimizer = copy.deepcopy((net, optimizer))
    before = {id(one) for one in net.parameters()}
    if how == "not merged":
        return net, optimizer
    le.apply(net, plan, optimizers=optimizer)
    if how == "touched dropped":
        for one in net.parameters():
            if id(one) not in before:
                optimizer.state.pop(one, None)
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
            losses = {}
            for how in ("not merged", "ours", "touched dropped", "made anew"):
                model, its = merged(net, optimizer, plan, how, make)
                with torch.no_grad():
                    at = nn.functional.cross_entropy(model(images), labels).item()
                losses[how] = [at, *train(model, its, images, labels, STEPS, torch.Generator().manual_seed(99))]
            plain = losses.pop("not merged")
            for how, found in losses.items():
                ratios = [mine / other for mine, other in zip(found, plain, strict=True)]
                yield [name, what, len(plan.steps), seed, how, plain[0], ratios[0], max(ratios[1:]), ratios[-1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    heads = ["optimizer", "merge", "steps", "seed", "state", "loss", "at the merge", "highest after", "last"]
    found = [row for seed in range(options.seeds) for row in rows(seed)]
    print(tabulate(found, headers=heads, floatfmt=(*[""] * 5, ".4f", ".2f", ".2f", ".2f")))


if __name__ == "__main__":
    main()
