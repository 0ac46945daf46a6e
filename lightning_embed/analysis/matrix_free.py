"""Hessians too large to be written down, through curvlinops."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lightning_embed.analysis.risk import Data, Risk
from lightning_embed.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def hessian_operator(model: nn.Module, loss: nn.Module, data: Data) -> LinearOperator:
    """The Hessian of the empirical risk as a linear operator: it multiplies vectors and is never written down.

    Args:
        model: any module that maps the inputs to one tensor; not changed, and run in float64 and eval mode.
        loss: a loss module of torch with `reduction="mean"`.
        data: inputs and targets.

    Returns:
        A `scipy.sparse.linalg.LinearOperator` in float64; the order of its rows and columns is that of `hessian`.

    Raises:
        InputError: the data or the loss cannot be used (see `Risk`).
        ImportError: curvlinops is not installed.

    >>> operator = hessian_operator(nn.Linear(1, 1), nn.MSELoss(), (torch.ones(3, 1), torch.zeros(3, 1)))
    >>> (operator @ [1.0, 0.0]).tolist()  # 2 x x̃
    [2.0, 2.0]
    """
    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ImportError('a matrix-free Hessian needs curvlinops: pip install "lightning-embed[spectra]"') from error
    if getattr(loss, "reduction", None) != "mean":
        raise InputError(f"loss must be a loss of torch with reduction='mean', such as nn.MSELoss(), not {loss!r}")
    risk = Risk(model, loss, data)
    parameters = [one for one in risk.model.parameters() if one.requires_grad]
    operator = HessianLinearOperator(risk.model, loss, parameters, [(risk.inputs, risk.targets)])
    return cast("LinearOperator", operator.to_scipy())


def extreme_eigenvalues(operator: LinearOperator, count: int = 6) -> Tensor:
    """The eigenvalues at both ends of a symmetric operator's spectrum, by Lanczos iterations (scipy).

    Enough to see whether a critical point is a strict saddle point; zero eigenvalues are in between and not counted.

    Args:
        operator: symmetric, of size n (`hessian_operator`).
        count: how many, below n; half of them (rounded down) from the lower end.

    Returns:
        The eigenvalues in increasing order, float64, shape (count,).

    Raises:
        InputError: count is not in 1..n-1.

    >>> from scipy.sparse import diags
    >>> extreme_eigenvalues(diags([4.0, -3.0, 0.0, 1.0, 2.0]), 2).round(decimals=9).tolist()
    [-3.0, 4.0]
    """
    from scipy.sparse.linalg import eigsh

    size = operator.shape[0]
    if not 0 < count < size:
        raise InputError(f"count must be in 1..{size - 1} for an operator of size {size}, not {count}")
    values = eigsh(operator, k=count, which="BE", return_eigenvectors=False, v0=[1.0] * size)
    return torch.from_numpy(values).sort().values
