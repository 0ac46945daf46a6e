"""An empirical diagram of a loss landscape: critical points of narrow networks, embedded in a wider one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.analysis.polish import CRITICAL, gradient_sizes, polish, runs_away
from lightning_embed.analysis.risk import Data, Risk, checked
from lightning_embed.analysis.spectrum import Inertia, inertia, spectrum
from lightning_embed.errors import InputError
from lightning_embed.operators import Theta, from_vector, parameter_count, split_neuron
from lightning_embed.statistics import amplitudes, augmented_weights
from lightning_embed.surgery import mlp

SAME = 1e-5  # share of the largest output by which outputs of one critical function may differ


@dataclass(frozen=True, eq=False)
class LandscapePoint:
    """A set of critical points of one output function, found in the narrowest network that has it.

    Attributes:
        width: of that network, m₀.
        found: how many of its trials ended there.
        loss: the risk.
        theta: its parameters, float64.
        embedded: the parameters in the diagram's width m: the neuron of the largest amplitude split equally into
            m - m₀ + 1.
        inertia: of the Hessian there; None if no gap tells its zero eigenvalues from the others.
        outputs: the output function on the data, shape (samples, outputs).
    """

    width: int
    found: int
    loss: float
    theta: Theta
    embedded: Theta
    inertia: Inertia | None
    outputs: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        counts = self.inertia.counts if self.inertia else None
        return {
            "width": self.width,
            "found": self.found,
            "loss": self.loss,
            "theta": [[part.tolist() for part in layer] for layer in self.theta],
            "embedded": [[part.tolist() for part in layer] for layer in self.embedded],
            "inertia": None if counts is None else dict(zip(("positive", "zero", "negative"), counts, strict=True)),
            "outputs": self.outputs.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Landscape:
    """The critical points of the networks of one hidden layer up to a width (004, Fig. 4).

    Attributes:
        width: the width m in which they are embedded.
        points: narrowest network first, then by decreasing loss.
        unsettled: for every width 1..m, how many trials ran away or did not reach a critical point.
        inputs: of the data, float64.
        targets: of the data.
    """

    width: int
    points: tuple[LandscapePoint, ...]
    unsettled: tuple[int, ...]
    inputs: Tensor
    targets: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "width": self.width,
            "points": [point.to_dict() for point in self.points],
            "unsettled": list(self.unsettled),
            "inputs": self.inputs.tolist(),
            "targets": self.targets.tolist(),
        }


def landscape_diagram(
    data: Data,
    width: int = 3,
    *,
    activation: nn.Module | None = None,
    trials: int = 100,
    steps: int = 10_000,
    rate: float = 0.02,
    seed: int = 0,
) -> Landscape:
    r"""Find the critical points of networks of one hidden layer of widths 1..m, embedded in width m (004, Fig. 4).

    For every width m₀, `trials` networks start from normal weights of variance 1/m₀³ (002, App. B) and descend the mean
    squared error at once (`torch.func.vmap`), by full-batch gradient descent. Each one's point of the least L1 gradient
    is polished by damped Newton steps; what runs away or does not reach ‖∇R‖₁ ≤ `CRITICAL` is only counted. Points of
    the same outputs on the data are one critical function, listed at the least width in which it was found.

    Args:
        data: inputs, shape (samples, m_in), and targets, shape (samples, m_out).
        width: m.
        activation: of the hidden layer, without parameters; tanh by default.
        trials: networks for every width.
        steps: of the descent.
        rate: its learning rate.
        seed: of the starting weights.

    Returns:
        The critical functions found, with the inertia of the Hessian where they are embedded. Others may exist.

    Raises:
        InputError: the data cannot be used, or width or trials is not positive.

    One tanh neuron fits two values exactly, with two parameters to spare:

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> found = landscape_diagram((x, x / 2), width=1, trials=4, steps=100, rate=0.3)
    >>> [(point.width, round(point.loss, 9), point.inertia.counts) for point in found.points]
    [(1, 0.0, (2, 2, 0))]
    """
    if width < 1 or trials < 1:
        raise InputError(f"width and trials must be positive, not {width} and {trials}")
    inputs, targets = checked(data)
    if inputs.dim() != 2 or targets.dim() != 2:
        raise InputError(f"data must be two matrices, not of shapes {tuple(inputs.shape)} and {tuple(targets.shape)}")
    activation = activation or nn.Tanh()
    generator = torch.Generator().manual_seed(seed)
    points: list[LandscapePoint] = []
    unsettled = []
    for narrow in range(1, width + 1):
        widths = (inputs.shape[1], narrow, targets.shape[1])
        starts = narrow**-1.5 * torch.randn(trials, parameter_count(widths), dtype=torch.float64, generator=generator)
        risk = Risk(mlp(from_vector(starts[0], widths), activation), nn.MSELoss(), (inputs, targets))
        settled = _settle(risk, starts.to(inputs.device), steps, rate)
        unsettled.append(trials - len(settled))
        new = [
            (members, outputs)
            for members, outputs in _same_outputs(risk, settled)
            if not any(_close(outputs, known.outputs) for known in points)
        ]
        points += [_point(risk, members, outputs, widths, width, activation) for members, outputs in new]
    return Landscape(width, tuple(points), tuple(unsettled), inputs, targets)


def _settle(risk: Risk, starts: Tensor, steps: int, rate: float) -> Tensor:
    """The critical points, of those that are any, near the descents from many starts."""
    points, best = starts, starts
    least = torch.full_like(starts[:, :1], torch.inf)
    for _ in range(steps + 1):
        gradients = risk.gradients(points)
        sizes = gradients.abs().sum(dim=1, keepdim=True)
        best = torch.where(sizes < least, points, best)
        least = torch.minimum(sizes, least)
        points = points - rate * gradients
    polished = polish(risk, best)
    return polished[(gradient_sizes(risk, polished) <= CRITICAL) & ~runs_away(risk, best, polished)]


def _same_outputs(risk: Risk, points: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Sort points into sets of the same outputs, by decreasing loss; with the outputs of each set."""
    sets: list[tuple[list[Tensor], Tensor]] = []
    for point in sorted(points, key=lambda one: -risk.value(one).item()):
        outputs = risk.outputs(point).detach()
        same = next((members for members, known in sets if _close(outputs, known)), None)
        if same is None:
            sets.append(([point], outputs))
        else:
            same.append(point)
    return [(torch.stack(members), outputs) for members, outputs in sets]


def _close(one: Tensor, other: Tensor) -> bool:
    scale = max(one.abs().max().item(), other.abs().max().item())
    return bool((one - other).abs().max() <= SAME * scale + torch.finfo(one.dtype).eps)


def _point(
    risk: Risk, members: Tensor, outputs: Tensor, widths: tuple[int, int, int], width: int, activation: nn.Module
) -> LandscapePoint:
    theta = from_vector(members[0], widths)
    embedded = _embed(theta, width)
    wide = Risk(mlp(embedded, activation), risk.loss, (risk.inputs, risk.targets))
    try:
        counts = inertia(spectrum(wide.hessian(wide.point)))
    except InputError:  # no evident gap
        counts = None
    return LandscapePoint(widths[1], len(members), risk.value(members[0]).item(), theta, embedded, counts, outputs)


def _embed(theta: Theta, width: int) -> Theta:
    """Split the neuron of the largest amplitude equally, as 004, Fig. 3 does with one neuron."""
    (w_in, b_in), (w_out, b_out) = theta
    copies = width - len(b_in) + 1
    if copies == 1:
        return theta
    neuron = int(amplitudes(augmented_weights(w_in, b_in), w_out).argmax())
    w_in, split_bias, w_out = split_neuron(w_in, b_in, w_out, neuron, [1 / copies] * copies)
    assert split_bias is not None
    return (w_in, split_bias), (w_out, b_out)
