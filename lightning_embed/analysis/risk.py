"""The empirical risk of a model as a function of one vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lightning_embed.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor]

ROWS_AT_ONCE = 256  # of a derivative; bounds the memory to so many backward passes


class Risk:
    r"""The empirical risk of a model on fixed data, as a function of one float64 vector.

    $R_S(\theta) = \mathbb E_S\,\ell(f_\theta(x), y)$ (001, eq. 3.7). θ holds the parameters that require a gradient,
    flattened one after another in the order of `model.named_parameters()`; all else stays as it is in the model. The
    model is copied, in float64 and in eval mode.

    Args:
        model: any module that maps the inputs to one tensor of outputs.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets, of one and the same number of samples.

    Raises:
        InputError: data is no pair of tensors of the same length, no parameter requires a gradient, or the loss is not
            one finite number.

    >>> risk = Risk(nn.Linear(1, 1, bias=False), nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
    >>> risk.value(torch.tensor([3.0], dtype=torch.float64)).item()
    9.0
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Data) -> None:
        self.inputs, self.targets = checked(data)
        self.loss = loss
        self.model = copy.deepcopy(model).double().eval()
        trainable = {name: value for name, value in self.model.named_parameters() if value.requires_grad}
        if not trainable:
            raise InputError("no parameter of the model requires a gradient: there is nothing to differentiate by")
        self._shapes = {name: value.shape for name, value in trainable.items()}
        self.point = parameters_to_vector(trainable.values()).detach()
        value = self.value(self.point)
        if value.dim() != 0 or not math.isfinite(value.item()):
            raise InputError(
                f"loss must give one finite number for the model's outputs, not {value!r}; "
                "average it over the samples, and check the weights and the data"
            )

    def outputs(self, theta: Tensor) -> Tensor:
        """The model's outputs on the data at θ, shape (parameters,)."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), theta.split(sizes), strict=True)
        named = {name: part.view(shape) for (name, shape), part in parts}
        result: Tensor = functional_call(self.model, named, (self.inputs,))
        return result

    def value(self, theta: Tensor) -> Tensor:
        """The risk at θ."""
        return self.loss(self.outputs(theta), self.targets)

    def gradient(self, theta: Tensor) -> Tensor:
        """Its gradient, shape (parameters,)."""
        result: Tensor = grad(self.value)(theta)
        return result

    def gradients(self, points: Tensor) -> Tensor:
        """Its gradients at many points, shape (points, parameters), in one backward pass."""
        free = points.detach().requires_grad_()
        result: Tensor = torch.autograd.grad(vmap(self.value)(free).sum(), free)[0]
        return result

    def hessian(self, theta: Tensor) -> Tensor:
        """Its Hessian, shape (parameters, parameters)."""
        return jacobian(self.gradient, theta)

    def module(self, theta: Tensor) -> nn.Module:
        """The model in float64 with the parameters of θ, in eval mode."""
        model = copy.deepcopy(self.model)
        vector_to_parameters(theta, [value for value in model.parameters() if value.requires_grad])
        return model


def jacobian(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """The derivative of a function of one vector, by backward passes alone, which more layers allow than forward mode.

    >>> jacobian(lambda theta: torch.outer(theta, theta), torch.tensor([3.0])).tolist()
    [[6.0]]
    """
    values, pull_back = vjp(function, theta)[:2]
    units = torch.eye(values.numel(), dtype=values.dtype, device=values.device).view(-1, *values.shape)
    result: Tensor = vmap(lambda unit: pull_back(unit)[0], chunk_size=ROWS_AT_ONCE)(units)
    return result


def checked(data: Any) -> Data:
    """Check data and give it without gradients, its floating-point numbers in float64; see `Risk`."""
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise InputError(f"data must be a pair of tensors (inputs, targets), not {type(data).__name__}")
    inputs, targets = (part.detach().double() if part.is_floating_point() else part for part in data)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise InputError(f"inputs and targets must be equally many, at least one, not {len(inputs)} and {len(targets)}")
    return inputs, targets
