"""Similarity of the representations of two layers."""

from torch import Tensor

from lightning_embed.errors import InputError


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    r"""Linear centred kernel alignment (CKA) of two representations of the same samples.

    $\|Y'^\top X'\|_F^2 / (\|X'^\top X'\|_F \, \|Y'^\top Y'\|_F)$ for the centred X' and Y' (000, App. A.6). It does not
    change under shifts, isotropic scaling and orthogonal maps of either representation.

    It is 1 exactly where $Y'Y'^\top = \alpha X'X'^\top$, that is Y' = √α X'Q with Q a partial isometry on the row
    space of X'. Then Y is an affine function of X, which is all that 000, Prop. A.6 says; the converse fails: a generic
    affine map gives less than 1. So it does not measure linearization (`minimal_pearson_correlation`).

    Args:
        x: features of one layer, shape (samples, neurons), any floating dtype.
        y: features of another on the same samples, shape (samples, other neurons).

    Returns:
        The similarity in [0, 1], float64 scalar; NaN if undefined: all features of a layer constant, or a value that
        is not finite.

    Raises:
        InputError: they are no matrices of floating-point numbers with equally many samples, at least one.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(linear_cka(x, 3 * x.flip(1) + 5).item(), 9)  # an isometry
    1.0
    >>> round(linear_cka(x, x[:, :1]).item() ** 2, 9)  # an affine map that forgets one of two directions
    0.5
    """
    for name, value in (("x", x), ("y", y)):
        if value.ndim != 2 or not value.is_floating_point() or len(value) == 0:
            raise InputError(f"{name} must be a floating-point matrix (samples, neurons), not {tuple(value.shape)}")
    if len(x) != len(y):
        raise InputError(f"x and y must be of the same samples, not of {len(x)} and {len(y)}")
    left, right = (_centred(value.detach().double()) for value in (x, y))
    aligned = (right.T @ left).square().sum()
    result: Tensor = aligned / ((left.T @ left).norm() * (right.T @ right).norm())
    return result


def _centred(values: Tensor) -> Tensor:
    """Less the means; from the first sample on, so that what is constant becomes exactly zero."""
    shifted = values - values[:1]
    return shifted - shifted.mean(dim=0)
