"""Fig. 5: lifting a critical point by one and by two layers adds zero eigenvalues to the Hessian, and nothing else.

    python examples/depth_paper/fig5.py

A ReLU network with one hidden layer of two neurons at a critical point, polished to an L1 gradient of 1e-12 (the paper
stops at 1e-4), lifted by two more hidden layers of two neurons. Quick: one decomposition of each Hessian; with --full
the paper's average over 100 random rotations.
"""

from typing import Any

import torch
from experiment import Options, iris, network, panels, run, steps_curve
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_embed.analysis import find_critical_point, hessian, inertia, spectrum
from lightning_embed.errors import InputError
from lightning_embed.operators import affine_segments, lift
from lightning_embed.surgery import mlp, theta_of

LOSS = nn.MSELoss()
SEEDS = 40


def critical(data: tuple[Tensor, Tensor], seed: int, steps: int) -> tuple[nn.Sequential, int, float]:
    """The first seed from which a descent finds a critical point that has learned something."""
    widths = [data[0].shape[1], 2, data[1].shape[1]]
    constant = LOSS(data[1].mean(0).expand_as(data[1]), data[1]).item()
    for tried in range(seed, seed + SEEDS):
        try:
            point = find_critical_point(network(widths, nn.ReLU, 0.5, tried), LOSS, data, steps=steps, rate=0.05)
        except InputError:  # it runs away, or the data lie on a kink
            continue
        if point.loss < 0.9 * constant:
            assert isinstance(point.model, nn.Sequential)
            return point.model, tried, point.gradient
    raise SystemExit(f"No critical point from the seeds {seed} to {seed + SEEDS - 1}; try another --seed.")


def compute(options: Options) -> dict[str, Any]:
    flowers = iris(options.seed)
    sets = {"1-D": steps_curve(), "Iris": (flowers.inputs, flowers.one_hot)}
    (segment,) = affine_segments(nn.ReLU())
    results = {}
    for name, data in sets.items():
        model, seed, gradient = critical(data, options.seed, 5000 if options.full else 1500)
        theta = theta_of(model)
        stages = []
        for lifted in range(3):
            if lifted:
                theta = lift(theta, lifted, data[0], torch.relu, segment, width=2)
            matrix = hessian(mlp(theta, nn.ReLU()), LOSS, data).matrix
            values = spectrum(matrix, rotations=100 if options.full else 0)
            counts = inertia(values)
            stages.append(
                {
                    "hidden layers": lifted + 1,
                    "parameters": len(values),
                    "loss": LOSS(mlp(theta, nn.ReLU())(data[0]), data[1]).item(),
                    "eigenvalues": values,
                    "positive": counts.positive,
                    "zero": counts.zero,
                    "negative": counts.negative,
                    "threshold": counts.threshold,
                    "gap": counts.gap,
                }
            )
        results[name] = {"seed": seed, "gradient": gradient, "stages": stages}
    shown = "{parameters} parameters: {positive} +, {zero} zero, {negative} -"
    found = {
        f"{name}, {one['hidden layers']} hidden": shown.format(**one)
        for name, entry in results.items()
        for one in entry["stages"]
    }
    return {"found": found, "sets": results}


def draw(data: dict[str, Any]) -> Figure:
    figure, axes = panels("Lifting adds exactly the zeros (000, Fig. 5)", 2)
    for one, (name, entry) in zip(axes, data["sets"].items(), strict=True):
        for marker, stage in zip("o^s", entry["stages"], strict=True):
            sizes = sorted((max(abs(value), 1e-19) for value in stage["eigenvalues"]), reverse=True)
            label = f"{stage['hidden layers']} hidden: {stage['zero']} zero of {stage['parameters']}"
            one.plot(range(1, len(sizes) + 1), sizes, f"k{marker}", fillstyle="none", markersize=5, label=label)
        one.axhline(
            max(stage["threshold"] for stage in entry["stages"]), color="0.4", linestyle="--", label="zero below"
        )
        one.set(yscale="log", xlabel="rank of the eigenvalue", ylabel="|eigenvalue| of the Hessian")
        one.set_title(name, fontsize=10)
        one.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run("fig5", __doc__, compute, draw)
