"""Fig. 1: the training of networks of different depths rests at nearly the same losses and accuracies.

    python examples/depth_paper/fig1.py [--data DIR]

ReLU networks of width 50 on Iris and on 500 images, mean square error, full-batch gradient descent. The paper prints, for
Iris, a variance of 0.07 and 100 000 steps at 0.001; ours is a standard deviation of 0.07, at which the networks of all
depths rest. Quick: larger rates for as much time (step times rate); of the images 30 instead of 100.
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

STD = 0.07
DEPTHS = (1, 2, 3)


def compute(options: Options) -> dict[str, Any]:
    settings = {
        "Iris": {"rate": 0.001, "steps": 100_000} if options.full else {"rate": 0.1, "steps": 1000},
        "images": {"rate": 0.01, "steps": 10_000} if options.full else {"rate": 0.05, "steps": 600},
    }
    panels_of, found = {}, {}
    for key, classes in (("Iris", iris(options.seed)), ("images", images(options, 500))):
        inputs, labels = classes.inputs.double(), classes.labels
        targets = classes.one_hot.double()
        curves, rests = {}, {}
        for depth in DEPTHS:
            name = f"{depth} hidden"
            net = network([inputs.shape[1], *[50] * depth, targets.shape[1]], nn.ReLU, STD, options.seed)
            history = descend(
                net, (inputs, targets), **settings[key], watch=lambda one, x=inputs, y=labels: accuracy(one, x, y)
            )
            curves[name] = {**history.curve(), "accuracy": history.watched}
            rest = plateau(history)
            rests[name] = rest and {"loss": rest.loss, "steps": rest.steps, "accuracy": history.watched[rest.best]}
        panels_of[key] = {"name": classes.name, "samples": len(inputs), "curves": curves, "plateaus": rests}
        found[f"plateaus on {classes.name}"] = rests
    return {"settings": {**settings, "width": 50, "std": STD}, "sets": panels_of, "found": found}


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
    run("fig1", __doc__, compute, draw)
