"""The Hessian of the empirical risk, dense, in its two parts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from lightning_embed.analysis.risk import Data, Loss, Risk, jacobian
from lightning_embed.errors import InputError

MAX_PARAMETERS = 5000  # 200 MB a matrix, and minutes for its eigenvalues


@dataclass(frozen=True)
class Hessian:
    """A Hessian H = H⁽¹⁾ + H⁽²⁾ (001, eqs. 3.9, 3.10); float64, shape (parameters, parameters).

    Attributes:
        first: H⁽¹⁾, from the curvature of the loss; positive semidefinite for a convex loss.
        second: H⁽²⁾, from the curvature of the model; zero where the loss has no slope in the outputs.
    """

    first: Tensor
    second: Tensor

    @property
    def matrix(self) -> Tensor:
        """H itself."""
        return self.first + self.second


def hessian(model: nn.Module, loss: Loss, data: Data) -> Hessian:
    r"""Hessian of the empirical risk by the model's parameters, and its two parts.

    $H^{(1)} = \mathbb E_S \sum_{ij} \partial_{ij}\ell\, \nabla f_i (\nabla f_j)^\top$ and
    $H^{(2)} = \mathbb E_S \sum_i \partial_i\ell\, \nabla\nabla f_i$ (001, eqs. 3.9, 3.10). At a kink, as of ReLU, it is
    the Hessian of the piece that autograd chooses.

    Args:
        model: any module that maps the inputs to one tensor; not changed, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples, twice differentiable in the outputs.
        data: inputs and targets.

    Returns:
        The two parts, float64. Rows and columns are the entries of the parameters that require a gradient, flattened,
        in the order of `model.parameters()`.

    Raises:
        InputError: the data or the loss cannot be used (see `Risk`), or there are more than `MAX_PARAMETERS`
            parameters; `hessian_operator` takes those.

    The model x ↦ a w x at a = 2, w = 1 with the loss (f - 3)² at x = 1:

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer, value in zip(model, (1.0, 2.0)):
    ...     _ = nn.init.constant_(layer.weight, value)
    >>> one = torch.ones(1, 1)
    >>> hessian(model, nn.MSELoss(), (one, 3 * one)).first.tolist()  # 2 (a, w)(a, w)ᵀ
    [[8.0, 4.0], [4.0, 2.0]]
    >>> hessian(model, nn.MSELoss(), (one, 3 * one)).second.tolist()  # 2 (f - 3) in the mixed entry
    [[0.0, -2.0], [-2.0, 0.0]]
    """
    risk = Risk(model, loss, data)
    if len(risk.point) > MAX_PARAMETERS:
        raise InputError(
            f"the model has {len(risk.point)} parameters; a dense Hessian is for at most {MAX_PARAMETERS}. "
            "Use hessian_operator and extreme_eigenvalues"
        )
    return hessian_parts(risk, risk.point)


def hessian_parts(risk: Risk, theta: Tensor) -> Hessian:
    """The two parts of the Hessian of a risk at θ; see `hessian`."""

    def slope(outputs: Tensor) -> Tensor:
        result: Tensor = grad(risk.loss)(outputs, risk.targets)
        return result

    outputs = risk.outputs(theta)
    slopes, curve = vjp(slope, outputs)[:2]
    features = jacobian(risk.outputs, theta)
    curved = vmap(lambda column: curve(column.view_as(outputs))[0].flatten(), in_dims=1)(features)
    weighted = grad(lambda point: (slopes * risk.outputs(point)).sum())
    return Hessian(_symmetric(curved @ features), _symmetric(jacobian(weighted, theta)))


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2
