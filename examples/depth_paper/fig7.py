"""Fig. 7: more data, given at a plateau, against layer linearization (1-D data, three hidden tanh layers).

    python examples/depth_paper/fig7.py

The paper switches from 70 to 80 or 100 points "equally spaced around 0" and escapes the sooner the more there are. Its
interval is only drawn. Here the 70 points lie on ±1.3, and 80 and 100 reach further at the same spacing. With --full
the intervals are ±1.2, ±1.3 and ±1.4, each from five seeds, for twice as long. Gradient descent at 0.03 instead of
0.01; all networks descend at once, as one batch of matrices.
"""

from __future__ import annotations

from typing import Any

import torch
from experiment import LINES, Options, draw_mpc, network, panels, run, steps_curve
from matplotlib.figure import Figure
from torch import Tensor, nn

import lightning_embed as le

COUNTS = (70, 80, 100)
RATE, ADJUST, ESCAPE, RECORDS = (
    0.03,
    300,
    0.9,
    120,
)  # escaped: below this share of the loss so many steps after the switch


class Networks:
    """Many networks of one shape as one batch of matrices, trained at once, each on its own data."""

    def __init__(self, nets: list[nn.Sequential]) -> None:
        linears = [[module for module in net if isinstance(module, nn.Linear)] for net in nets]
        layers = list(zip(*linears, strict=True))
        self.weights = [torch.stack([one.weight.detach().T for one in layer]).requires_grad_() for layer in layers]
        self.biases = [torch.stack([one.bias.detach()[None] for one in layer]).requires_grad_() for layer in layers]

    def repeat(self, times: int) -> None:
        """Every network so many times, one copy after the other."""
        for parts in (self.weights, self.biases):
            parts[:] = [part.detach().repeat_interleave(times, 0).requires_grad_() for part in parts]

    def layers(self, x: Tensor) -> list[Tensor]:
        """Pre-activations of every layer on inputs of shape (networks, samples, 1); the last are the outputs."""
        pres: list[Tensor] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            pres.append(torch.baddbmm(bias, pres[-1].tanh() if pres else x, weight))
        return pres

    def descend(self, x: Tensor, y: Tensor, counted: Tensor, steps: int) -> dict[str, Any]:
        """Gradient descent; the losses by network and their MPC by layer at equal distances.

        `counted` is 1 where a network has a sample and 0 behind its last one.
        """
        losses, mpcs, every = [], [], max(1, steps // RECORDS)
        sizes = counted.sum(1)
        for step in range(steps + 1):
            pres = self.layers(x)
            each = ((pres[-1] - y).square()[:, :, 0] * counted).sum(1) / sizes
            if step % every == 0:
                losses.append(each.tolist())
                mpcs.append([mpc(pres[:-1], number, int(size)) for number, size in enumerate(sizes)])
            gradients = torch.autograd.grad(each.sum(), [*self.weights, *self.biases])
            with torch.no_grad():
                torch._foreach_sub_([*self.weights, *self.biases], torch._foreach_mul(gradients, RATE))
        by_network = list(zip(*losses, strict=True)), list(zip(*mpcs, strict=True))
        return {"step": list(range(0, steps + 1, every)), "loss": by_network[0], "mpc": by_network[1]}


def mpc(pres: list[Tensor], number: int, size: int) -> list[float]:
    with torch.no_grad():
        seen = [pre[number, :size] for pre in pres]
        return [le.minimal_pearson_correlation(pre, pre.tanh()).item() for pre in seen]


def padded(sets: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sets of different sizes as one batch, and which samples count."""
    x, y = (nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*sets, strict=True))
    counted = nn.utils.rnn.pad_sequence([torch.ones(len(one[0]), dtype=x.dtype) for one in sets], batch_first=True)
    return x, y, counted


def escaped(steps: list[int], losses: list[float]) -> int | None:
    """The first recorded step with a loss well below that to which the network soon settled on the new data."""
    settled = next(loss for step, loss in zip(steps, losses, strict=True) if step >= ADJUST)
    return next((step for step, loss in zip(steps, losses, strict=True) if loss < ESCAPE * settled), None)


def ordered(escapes: dict[str, int | None]) -> bool | None:
    """Whether more data escape sooner, as the paper says; None where nothing escapes."""
    if all(step is None for step in escapes.values()):
        return None
    few, more, most = (float("inf") if step is None else step for step in escapes.values())
    return most < more < few


def compute(options: Options) -> dict[str, Any]:
    half_widths = (1.2, 1.3, 1.4) if options.full else (1.3,)
    seeds = range(options.seed, options.seed + (5 if options.full else 1))
    before, after = 3000, 12_000 if options.full else 6000
    cases = [(half, seed) for half in half_widths for seed in seeds]
    nets = Networks([network([1, 50, 50, 50, 1], nn.Tanh, 0.1, seed) for _, seed in cases])
    start = nets.descend(*padded([steps_curve(70, half) for half, _ in cases]), before)
    nets.repeat(len(COUNTS))
    sets = [steps_curve(count, half * (count - 1) / 69) for half, _ in cases for count in COUNTS]
    rest = nets.descend(*padded(sets), after)
    runs = []
    for number, (half, seed) in enumerate(cases):
        mine = range(number * len(COUNTS), (number + 1) * len(COUNTS))
        by_count = {
            f"{count} points": {"loss": rest["loss"][place], "mpc": rest["mpc"][place]}
            for count, place in zip(COUNTS, mine, strict=True)
        }
        escapes = {name: escaped(rest["step"], one["loss"]) for name, one in by_count.items()}
        runs.append(
            {
                "half width": half,
                "seed": seed,
                "before": {"loss": start["loss"][number], "mpc": start["mpc"][number]},
                "after": by_count,
                "escape": escapes,
                "ordered": ordered(escapes),
            }
        )
    return {
        "settings": {"rate": RATE, "width": 50, "std": 0.1, "steps before": before, "steps after": after},
        "steps": {"before": start["step"], "after": rest["step"]},
        "runs": runs,
        "found": summary(runs, half_widths),
    }


def summary(runs: list[dict[str, Any]], half_widths: tuple[float, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for half in half_widths:
        mine = [one for one in runs if one["half width"] == half]
        drops = [
            new < old
            for one in mine
            for count in ("80 points", "100 points")
            for new, old in zip(one["after"][count]["mpc"][0], one["before"]["mpc"][-1], strict=True)
        ]
        found |= {
            f"±{half}: steps from the switch to the escape, by seed (null: none)": [one["escape"] for one in mine],
            f"±{half}: 100 points before 80 before 70": [one["ordered"] for one in mine],
            f"±{half}: layers whose MPC drops at the switch to 80 or 100 points": f"{sum(drops)} of {len(drops)}",
        }
    return found


def draw(data: dict[str, Any]) -> Figure:
    shown = next((one for one in data["runs"] if one["half width"] == 1.3), data["runs"][0])
    figure, axes = panels(f"More data at a plateau, 70 points on ±{shown['half width']} (000, Fig. 7)", 2, 2)
    before, after = data["steps"]["before"], data["steps"]["after"]
    switch = before[-1]
    axes[0].plot(before, shown["before"]["loss"], "k", linewidth=1)
    axes[0].plot(switch, shown["before"]["loss"][-1], "ko", markersize=5)
    for style, (name, one) in zip(LINES, shown["after"].items(), strict=False):
        axes[0].plot([switch + step for step in after], one["loss"], linestyle=style, label=name)
    axes[0].set(xlabel="training step", ylabel="training loss (mean square error)", yscale="log")
    axes[0].legend(fontsize=7)
    for panel, (name, one) in zip(axes[1:], shown["after"].items(), strict=True):
        steps = [*before, *[switch + step for step in after]]
        draw_mpc(panel, steps, [*shown["before"]["mpc"], *one["mpc"]])
        panel.axvline(switch, color="k", linewidth=0.8)
        if shown["escape"][name] is not None:
            panel.axvline(switch + shown["escape"][name], color="0.5", linestyle="--", linewidth=0.8)
        panel.set_title(name, fontsize=10)
    return figure


if __name__ == "__main__":
    run("fig7", __doc__, compute, draw)
