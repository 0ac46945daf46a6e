"""Fig. 10: ReLU networks of one, two and three hidden layers meet at the same losses (1-D data).

    python examples/depth_paper/fig10.py

The paper: width 50, variance 0.005, gradient descent at 0.001; its data are drawn, not given, and ours are those of
Fig. 3. Quick: at 0.04 for as much time (step times rate). MPC sees no linear layer, for some neuron of every ReLU layer
bends; what the layers pass on is affine in their inputs all the same, and that share is measured too.
"""

from typing import Any

from depths import compare, draw_depths
from experiment import Options, network, run, steps_curve
from matplotlib.figure import Figure
from torch import nn

STD = 0.005**0.5


def compute(options: Options) -> dict[str, Any]:
    nets = {f"{depth} hidden": network([1, *[50] * depth, 1], nn.ReLU, STD, options.seed) for depth in (1, 2, 3)}
    rate, steps = (0.001, 60_000) if options.full else (0.04, 1500)
    levels = (0.125, 0.08)
    results = compare(nets, steps_curve(), rate=rate, steps=steps, levels=levels, least_amplitude=0.1)
    return {"settings": {"rate": rate, "steps": steps, "width": 50, "std": STD, "least amplitude": 0.1}, **results}


def draw(data: dict[str, Any]) -> Figure:
    return draw_depths("ReLU networks of different depths (000, Fig. 10)", data)


if __name__ == "__main__":
    run("fig10", __doc__, compute, draw)
