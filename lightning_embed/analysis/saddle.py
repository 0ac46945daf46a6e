"""Strict saddle points, and which critical points become one in a wider network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vjp

from lightning_embed.analysis.hessian import Hessian, hessian_parts
from lightning_embed.analysis.polish import gradient_sizes
from lightning_embed.analysis.risk import Data, Loss, Risk
from lightning_embed.analysis.spectrum import spectrum
from lightning_embed.errors import InputError
from lightning_embed.operators import from_vector, global_splitting, to_vector, widths_of
from lightning_embed.surgery import mlp, theta_of

AT_MOST = 1e-6  # L1 norm of the gradient of what is taken for a critical point
NEGLIGIBLE = 1e-8  # share of the largest entry or eigenvalue up to which others count as zero


def is_strict_saddle(model: nn.Module, loss: Loss, data: Data) -> bool:
    """Whether a critical point is a strict saddle point: its Hessian has a negative eigenvalue (001, Def. 6.1).

    Args:
        model: at a critical point; not changed, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.

    Returns:
        Whether there is one, beyond the share `NEGLIGIBLE` of the largest magnitude.

    Raises:
        InputError: the L1 norm of the gradient is above `AT_MOST`, or the data or the loss cannot be used (see `Risk`).

    The loss (a w - 1)² at a = w = 0:

    >>> product = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer in product:
    ...     _ = nn.init.zeros_(layer.weight)
    >>> is_strict_saddle(product, nn.MSELoss(), (torch.ones(1, 1), torch.ones(1, 1)))
    True
    """
    return _has_negative(_at_critical(model, loss, data))


def may_be_truly_bad(model: nn.Module, loss: Loss, data: Data) -> bool:
    """Whether a critical point may stay no strict saddle under every embedding (001, Def. 6.2 and Thm. 6.3).

    Necessary are H ⪰ 0 and H⁽²⁾ = 0. For fully-connected networks False is certain, by `escape`; True proves nothing.

    Args:
        model: at a critical point; not changed, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.

    Returns:
        Whether both hold, up to the share `NEGLIGIBLE`.

    Raises:
        InputError: the L1 norm of the gradient is above `AT_MOST`, or the data or the loss cannot be used (see `Risk`).

    They do where every sample is fitted exactly:

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> line = nn.Linear(1, 1)
    >>> may_be_truly_bad(line, nn.MSELoss(), (x, line(x)))
    True
    """
    parts = _at_critical(model, loss, data)
    return not _has_negative(parts) and not _matters(parts.second, parts)


@dataclass(frozen=True)
class Escape:
    """A wider network of the same output at a strict saddle point, and a way down from there.

    Attributes:
        model: the network, in float64.
        direction: a unit vector in the order of `model.parameters()`.
        curvature: the second derivative of the risk along it; negative.
        lemma: "6.1" or "6.2", the lemma of 001 that gave the direction.
    """

    model: nn.Sequential
    direction: Tensor
    curvature: float
    lemma: str


def escape(model: nn.Sequential, loss: Loss, data: Data) -> Escape:
    r"""Embed a critical point with H ⪰ 0 and H⁽²⁾ ≠ 0 as a strict saddle point, and give a way down (001, Thm. 6.3).

    The embedding sets three copies of the hidden layers side by side and subtracts the third (001, Example 5.1). Let
    the block $H^{(2),[L-1]}$ of H⁽²⁾ without the last layer have the unit eigenvector v of eigenvalue λ. Moving the
    copies by (v, -v, 0) has curvature 2λ, by (v/2, v/2, v) -λ/2 (001, Lemma 6.1); the most negative of these at unit
    length is taken. If the block is zero, v belongs to the least eigenvalue of H⁽²⁾ with the last weight, and (v, -v)
    has curvature 2λ (001, Lemma 6.2).

    Args:
        model: an nn.Sequential of Linears with one kind of activation between them, at a critical point; not changed.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.

    Returns:
        The wide network, whose output is the model's for every input, and the direction.

    Raises:
        InputError: the model is not of that form, the L1 norm of the gradient is above `AT_MOST`, or the point is a
            strict saddle already or has H⁽²⁾ = 0 (`may_be_truly_bad`), up to the share `NEGLIGIBLE`.

    The best that one tanh neuron can do for a sine is no minimum for three:

    >>> from lightning_embed.analysis import find_critical_point
    >>> x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    >>> data = x, torch.sin(2 * x) + x / 2
    >>> one = mlp(((torch.ones(1, 1), torch.zeros(1)), (torch.ones(1, 1), torch.zeros(1))), nn.Tanh())
    >>> point = find_critical_point(one, nn.MSELoss(), data, steps=100)
    >>> is_strict_saddle(point.model, nn.MSELoss(), data), escape(point.model, nn.MSELoss(), data).curvature < 0
    (False, True)
    """
    theta = tuple((weight.double(), bias.double()) for weight, bias in theta_of(model))
    activation, widths = _activation(model), widths_of(theta)
    parts = _at_critical(mlp(theta, activation), loss, data)
    if _has_negative(parts):
        raise InputError("the point is a strict saddle point already: its Hessian has a negative eigenvalue")
    last_weight = widths[-2] * widths[-1]
    with_weight = parts.second[: -widths[-1], : -widths[-1]]  # the last bias has no part in H⁽²⁾
    block = with_weight[:-last_weight, :-last_weight]
    if _matters(block, parts):
        lemma, copies = "6.1", _by_hidden_layers(block, last_weight)
    elif _matters(with_weight, parts):
        least = torch.linalg.eigh(with_weight).eigenvectors[:, 0]
        lemma, copies = "6.2", torch.stack([least, -least, torch.zeros_like(least)]) / math.sqrt(2)
    else:
        raise InputError("H⁽²⁾ is zero at this point: it may be truly bad (001, Thm. 6.3), and no way down is known")
    direction = _of_wide(copies, widths)
    wide = mlp(global_splitting(widths)(theta), activation)
    risk = Risk(wide, loss, data)
    curved = vjp(risk.gradient, risk.point)[1](direction)[0]
    return Escape(wide, direction, float(direction @ curved), lemma)


def _by_hidden_layers(block: Tensor, last_weight: int) -> Tensor:
    """The moves of the three copies by Lemma 6.1, shape (3, parameters without the last bias)."""
    values, vectors = torch.linalg.eigh(block)
    if values[0] <= -values[-1] / 3:  # the curvatures at unit length are λ and -λ/3
        shares, v = block.new_tensor([1.0, -1.0, 0.0]), vectors[:, 0]
    else:
        shares, v = block.new_tensor([0.5, 0.5, 1.0]), vectors[:, -1]
    moves = torch.outer(shares / shares.norm(), v)
    return torch.cat([moves, moves.new_zeros(3, last_weight)], dim=1)


def _of_wide(copies: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Write the moves of the three copies as one vector of the wide network; its zero weights stay."""
    full = torch.cat([copies, copies.new_zeros(3, widths[-1])], dim=1)
    first, *middle, last = zip(*(from_vector(one, widths) for one in full), strict=True)

    def biases(layer: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
        return torch.cat([bias for _, bias in layer])

    return to_vector(
        (
            (torch.cat([weight for weight, _ in first]), biases(first)),
            *((torch.block_diag(*[weight for weight, _ in layer]), biases(layer)) for layer in middle),
            (torch.cat([weight for weight, _ in last], dim=1), last[0][1]),
        )
    )


def _activation(model: nn.Sequential) -> nn.Module:
    found = [one for one in model.modules() if not isinstance(one, (nn.Sequential, nn.Linear))]
    if len({repr(one) for one in found}) != 1:
        raise InputError(f"the model must have one and the same activation in all its hidden layers, not {found}")
    return found[0]


def _at_critical(model: nn.Module, loss: Loss, data: Data) -> Hessian:
    risk = Risk(model, loss, data)
    size = gradient_sizes(risk, risk.point[None]).item()
    if not size <= AT_MOST:
        raise InputError(
            f"the point is not critical: the L1 norm of the gradient is {size:.1e}, above {AT_MOST:.0e}; "
            "find_critical_point polishes it"
        )
    return hessian_parts(risk, risk.point)


def _has_negative(parts: Hessian) -> bool:
    values = spectrum(parts.matrix)
    return bool(values[0] < -NEGLIGIBLE * values.abs().max())


def _matters(part: Tensor, parts: Hessian) -> bool:
    return bool(part.abs().max() > NEGLIGIBLE * torch.maximum(parts.first.abs(), parts.second.abs()).max())
