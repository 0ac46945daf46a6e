"""Fig. 11: residual tanh networks of different depths meet at the same losses (1-D data).

    python examples/depth_paper/fig11.py

The paper: width 50, variance 0.01, gradient descent at 0.01. The second and third hidden layers have a skip connection
around them; the first cannot, as the input has one coordinate. Quick: at 0.04 and
only as long as all of them rest.
"""

from typing import Any

from depths import compare, draw_depths
from experiment import Options, Skip, gaussian, run, steps_curve
from matplotlib.figure import Figure
from torch import nn


def residual(depth: int, seed: int) -> nn.Sequential:
    """A first hidden layer, then hidden layers with a skip connection."""
    blocks = [Skip(50) for _ in range(depth - 1)]
    return gaussian(nn.Sequential(nn.Linear(1, 50), nn.Tanh(), *blocks, nn.Linear(50, 1)), 0.1, seed)


def compute(options: Options) -> dict[str, Any]:
    nets = {f"{depth} hidden": residual(depth, options.seed) for depth in (1, 2, 3)}
    rate, steps = (0.01, 20_000) if options.full else (0.04, 1000)
    results = compare(nets, steps_curve(), rate=rate, steps=steps, levels=(0.13, 0.122))
    return {"settings": {"rate": rate, "steps": steps, "width": 50, "std": 0.1}, **results}


def draw(data: dict[str, Any]) -> Figure:
    return draw_depths("Residual networks of different depths (000, Fig. 11)", data)


if __name__ == "__main__":
    run("fig11", __doc__, compute, draw)
