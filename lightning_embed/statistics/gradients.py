"""Size of the gradient, layer by layer and in total."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def named_gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """Collect the gradients that the parameters hold now.

    Args:
        module: any module; a shared parameter counts once, under its first name.

    Returns:
        The gradient of every parameter by its qualified name, None where there is none; not copied.

    >>> named_gradients(nn.Linear(1, 1, bias=False))
    {'weight': None}
    """
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def _norm(gradient: Tensor, order: int) -> Tensor:
    values = gradient.detach()
    if values.is_sparse:
        # Entries for the same row add up before the norm is taken.
        values = values.coalesce().values()
    # Squares of half-precision numbers overflow early.
    norm: Tensor = torch.linalg.vector_norm(values, order, dtype=torch.promote_types(values.dtype, torch.float32))
    return norm


def gradient_norms(gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    r"""L2 norm of the gradient of every layer.

    $\|\nabla_l R\|_2$ over all parameters of the module l that holds them.

    Args:
        gradients: gradient by parameter name, None where there is none (`named_gradients`).

    Returns:
        The norm (scalar tensor, at least float32) by the path of the module that holds the parameter ("" is
        the model itself). Modules without any gradient are absent; a NaN gradient gives NaN.

    >>> three, four = torch.tensor([3.0]), torch.tensor([4.0])
    >>> norms = gradient_norms({"0.weight": three, "0.bias": four, "1.bias": None})
    >>> norms["0"].item(), len(norms)
    (5.0, 1)
    """
    layers: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        if gradient is not None:
            layers.setdefault(name.rpartition(".")[0], []).append(_norm(gradient, 2))
    return {layer: torch.linalg.vector_norm(torch.stack(norms)) for layer, norms in layers.items()}


def gradient_l1(gradients: Mapping[str, Tensor | None]) -> Tensor:
    r"""L1 norm of the whole gradient, the papers' criterion of a critical point.

    $\|\nabla_\theta R\|_1$ (000, App. C, which accepts about 1e-4). It grows with the number of parameters.

    Args:
        gradients: gradient by parameter name, None where there is none (`named_gradients`).

    Returns:
        The sum of absolute values over all parameters, scalar, at least float32; NaN if there is no gradient
        at all (that is no critical point) or one is NaN.

    >>> gradient_l1({"a": torch.tensor([1.0, -2.0]), "b": None}).item()
    3.0
    """
    norms = [_norm(gradient, 1) for gradient in gradients.values() if gradient is not None]
    if not norms:
        return torch.tensor(torch.nan)
    return torch.stack([norm.to(norms[0]) for norm in norms]).sum()
