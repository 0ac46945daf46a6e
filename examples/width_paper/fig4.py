"""Fig. 4 of the width paper: the critical points of narrow networks, embedded in a width-3 network.

    python examples/width_paper/fig4.py

Many tanh networks of widths 1, 2 and 3 are trained on the curve of Fig. 1 and polished. Every critical function is
embedded in width 3: its loss, its degree of degeneracy and its output. The exact fit of width 3 is known, for the curve
is made of three neurons; where no trial arrives there it stands with 0 trials.
"""

from __future__ import annotations

from typing import Any

import torch
from experiment import Options, curve, exact, run
from matplotlib.figure import Figure
from torch import nn

from lightning_embed.analysis import Inertia, Landscape, LandscapePoint, Risk, inertia, landscape_diagram, spectrum
from lightning_embed.analysis.figures import landscape_figure
from lightning_embed.surgery import mlp, theta_of

WIDTH = 3


def compute(options: Options) -> dict[str, Any]:
    trials, steps, rate = (200, 300_000, 0.005) if options.full else (4, 3000, 0.2)
    landscape = landscape_diagram(curve(), WIDTH, trials=trials, steps=steps, rate=rate, seed=options.seed)
    critical = (*landscape.points, *known(landscape))
    points = []
    for point in critical:
        risk = Risk(mlp(point.embedded, nn.Tanh()), nn.MSELoss(), curve())
        embedded = {"loss": risk.value(risk.point), "gradient": risk.gradient(risk.point).abs().sum()}
        points.append({**point.to_dict(), "in_width_3": embedded})
    found = {
        f"critical functions of width {width}: loss (degeneracy in width {WIDTH}, found by trials)": [
            f"{point.loss:.6f} ({point.inertia.zero if point.inertia else '?'}, {point.found})"
            for point in critical
            if point.width == width
        ]
        for width in range(1, WIDTH + 1)
    }
    return {"trials": trials, "found": found, **landscape.to_dict(), "points": points}


def known(landscape: Landscape) -> list[LandscapePoint]:
    """The exact fit of three neurons, unless it was found."""
    if any(point.loss < 1e-20 for point in landscape.points):
        return []
    theta = theta_of(exact())
    risk = Risk(exact(), nn.MSELoss(), curve())
    counts = inertia(spectrum(risk.hessian(risk.point)))
    outputs = risk.outputs(risk.point)
    return [LandscapePoint(WIDTH, 0, risk.value(risk.point).item(), theta, theta, counts, outputs)]


def draw(results: dict[str, Any]) -> Figure:
    figure = landscape_figure(
        Landscape(
            width=results["width"],
            points=tuple(_point(one) for one in results["points"]),
            unsettled=tuple(results["unsettled"]),
            inputs=_tensor(results["inputs"]),
            targets=_tensor(results["targets"]),
        )
    )
    figure.suptitle("green: degree of degeneracy in width 3; dots: data; line: output", fontsize=10)
    return figure


def _point(one: dict[str, Any]) -> LandscapePoint:
    counts = one["inertia"]
    return LandscapePoint(
        width=one["width"],
        found=one["found"],
        loss=one["loss"],
        theta=tuple(tuple(_tensor(part) for part in layer) for layer in one["theta"]),
        embedded=tuple(tuple(_tensor(part) for part in layer) for layer in one["embedded"]),
        inertia=Inertia(**counts, threshold=0.0, gap=float("inf")) if counts else None,
        outputs=_tensor(one["outputs"]),
    )


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


if __name__ == "__main__":
    run("fig4", __doc__, compute, draw)
