"""Fig. 1: the training of networks of different depths rests at nearly the same losses and accuracies.

    python examples/depth_paper/fig1.py [--data DIR]

ReLU networks of width 50 on Iris and on 500 images, mean square error, full-batch gradient descent. For Iris the paper
prints a variance of 0.07 and 100 000 steps at 0.001. At a standard deviation of 0.07 we saw no common plateau; ours is
the smaller the fewer layers there are, and the networks of all depths rest. Quick: larger rates for about as much time
(step times rate), for the images for less.
"""

from typing import Any

from experiment import (
    SHADE,
    Options,
    accuracy,
    descend,
    draw_curves,
    images,
    iris,
    network,
    panels,
    plateau,
    run,
)
from matplotlib.figure import Figure
from torch import nn

STDS = {1: 0.001, 2: 0.02, 3: 0.05}  # of the weights, by the number of hidden layers
LIMITS = {"Iris": (0.8, 0.5), "images": (0.95, 0.5)}  # shares of the first loss between which a plateau is looked for


def compute(options: Options) -> dict[str, Any]:
    settings = {
        "Iris": {"rate": 0.001, "steps": 100_000} if options.full else {"rate": 0.1, "steps": 700},
        "images": {"rate": 0.01, "steps": 10_000} if options.full else {"rate": 0.05, "steps": 600},
    }
    panels_of, found = {}, {}
    for key, classes in (("Iris", iris(options.seed)), ("images", images(options, 500))):
        inputs, labels = classes.inputs.double(), classes.labels
        targets = classes.one_hot.double()
        curves, rests = {}, {}
        for depth, std in STDS.items():
            name = f"{depth} hidden"
            net = network([inputs.shape[1], *[50] * depth, targets.shape[1]], nn.ReLU, std, options.seed)
            history = descend(
                net, (inputs, targets), **settings[key], watch=lambda one, x=inputs, y=labels: accuracy(one, x, y)
            )
            curves[name] = {**history.curve(), "accuracy": history.watched}
            rest = plateau(history, 0.05, *LIMITS[key])
            rests[name] = rest and {"loss": rest.loss, "steps": rest.steps, "accuracy": history.watched[rest.best]}
        panels_of[key] = {"name": classes.name, "samples": len(inputs), "curves": curves, "plateaus": rests}
        found[f"plateaus on {classes.name}"] = rests
    return {"settings": {**settings, "width": 50, "std": list(STDS.values())}, "sets": panels_of, "found": found}


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("Training at different depths (000, Fig. 1)", 2, 2)
    for (left, right), one in zip((axes[:2], axes[2:]), data["sets"].values(), strict=True):
        draw_curves(left, one["curves"], "loss", "training loss (mean square error)", log=True)
        draw_curves(right, one["curves"], "accuracy", "training accuracy")
        for panel in (left, right):
            panel.set_title(f"{one['name']}, {one['samples']} samples", fontsize=10)
            for rest in filter(None, one["plateaus"].values()):
                panel.axvspan(*rest["steps"], **SHADE, alpha=0.5)
    return figure


if __name__ == "__main__":
    run("fig1", __doc__, compute, draw, of_images=True)
