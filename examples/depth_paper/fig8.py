"""Fig. 8: the linearized layers of a deep classifier are merged; it classifies as before and trains on.

    python examples/depth_paper/fig8.py [--data DIR]

Ten hidden tanh layers of width 50. The printed setting (variance 0.05, SGD at 0.001, 100 epochs) has no linearized
layer; ours is a standard deviation of 0.05 and Adam at 0.001. Quick: 1200 images, batches of 100, 1000 steps. The
layers whose MPC is above 0.99 are merged at the end of the training, without a check, as in the paper; `le.prune` would
check each. How many there are depends on the seed and on when one looks: one run is an illustration, and the table of
the documentation gives five.
"""

from copy import deepcopy
from typing import Any

import torch
from experiment import (
    LINEAR,
    LINES,
    History,
    Options,
    accuracy,
    draw_curves,
    draw_mpc,
    images,
    mpc,
    network,
    panels,
    run,
    train,
)
from matplotlib.figure import Figure
from torch import nn

import lightning_embed as le

HIDDEN = 10


def compute(options: Options) -> dict[str, Any]:
    count, batch, steps = (60_000, 1000, 6000) if options.full else (1200, 100, 1000)
    classes = images(options, count)
    data, test = (classes.inputs, classes.labels), (classes.test_inputs, classes.test_labels)
    loss, few = nn.functional.cross_entropy, classes.inputs[:2000]
    net = network([data[0].shape[1], *[50] * HIDDEN, 10], nn.Tanh, 0.05, options.seed).float()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    training = train(net, loss, data, adam, steps, batch=batch, records=50, watch=lambda one: mpc(one, few))

    criteria = le.Criteria(linearization=LINEAR, condensation=None, span=None)
    plan = le.propose(net, few, criteria=criteria)
    reduced = deepcopy(net)
    le.apply(reduced, plan)
    merged = deepcopy(reduced)
    tenth = torch.optim.Adam(reduced.parameters(), lr=1e-4)
    after = train(reduced, loss, data, tenth, steps // 10, batch=batch, records=50)

    with torch.no_grad():
        classes_of = {name: one(test[0]).argmax(1) for name, one in (("original", net), ("reduced", reduced))}
        agreement = (merged(test[0]).argmax(1) == classes_of["original"]).double().mean().item()
    pairs = torch.zeros(10, 10, dtype=torch.float64)
    pairs.index_put_(
        (classes_of["reduced"], classes_of["original"]), torch.ones((), dtype=torch.float64), accumulate=True
    )
    return {
        "settings": {
            "data": classes.name,
            "samples": len(data[0]),
            "batch": batch,
            "steps": steps,
            "rate": 1e-3,
            "std": 0.05,
        },
        "training": training.curve(),
        "mpc": training.watched,
        "after": after.curve(),
        "shares": pairs / pairs.sum(0).clamp(min=1),
        "found": {
            "hidden layers before and after": [HIDDEN, HIDDEN - sum(step.kind == "layer" for step in plan)],
            "most layers above 0.99 once half of the loss is gone": most_linear(training),
            "MPC by layer": training.watched[-1],
            "loss before merging, right after, at the end": [training.losses[-1], after.losses[0], after.losses[-1]],
            "test accuracy before merging, right after, at the end": [
                accuracy(one, *test) for one in (net, merged, reduced)
            ],
            "agreement right after merging": agreement,
            "agreement at the end": pairs.trace().div(pairs.sum()).item(),
        },
    }


def most_linear(training: History) -> int:
    """The largest number of linearized layers at any record after the start, where every layer is linear."""
    learned = [
        watched
        for loss, watched in zip(training.losses, training.watched, strict=True)
        if loss < training.losses[0] / 2
    ]
    return max((sum(value >= LINEAR for value in one) for one in learned), default=0)


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels(
        f"Merging the linearized layers of a classifier, {data['settings']['data']} (000, Fig. 8)", 2, 2
    )
    draw_curves(axes[0], {"ten hidden layers": data["training"]}, "loss", "training loss (cross entropy)", log=True)
    axes[0].plot(data["training"]["step"][-1], data["training"]["loss"][-1], "ko", markersize=5)
    draw_mpc(axes[1], data["training"]["step"], data["mpc"])
    axes[1].legend(fontsize=6, ncols=2)
    left = data["found"]["hidden layers before and after"][1]
    draw_curves(axes[2], {f"{left} hidden layers": data["after"]}, "loss", "training loss (cross entropy)")
    axes[2].axhline(data["training"]["loss"][-1], color="0.5", linestyle=LINES[1], label="before merging")
    axes[2].set_xlabel("training step after merging")
    axes[2].legend(fontsize=8)
    shown = axes[3].imshow(data["shares"], cmap="Greys", vmin=0, vmax=1)
    axes[3].set(
        xlabel="class by the original", ylabel="class by the reduced network", xticks=range(10), yticks=range(10)
    )
    figure.colorbar(shown, ax=axes[3], label="share of the original's class")
    return figure


if __name__ == "__main__":
    run("fig8", __doc__, compute, draw, of_images=True)
