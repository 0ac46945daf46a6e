"""From a plain fully-connected model to its parameters θ, and back."""

from __future__ import annotations

import copy

from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.operators.theta import Theta, widths_of


def theta_of(model: nn.Sequential) -> Theta:
    """Read the parameters θ = ((W¹, b¹), …, (Wᴸ, bᴸ)) off a sequence of Linears with activations between them.

    Args:
        model: an nn.Sequential (others may be nested in it) of Linears and activation modules in turn; modules
            without parameters of their own count as activations, a missing bias as zeros, identities at the start as
            nothing.

    Returns:
        Copies of the weights and biases, detached.

    Raises:
        InputError: the model is not of that form; the message names the module.

    >>> theta = theta_of(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    >>> [tuple(weight.shape) for weight, _ in theta]
    [(3, 2), (1, 3)]
    """
    linears: list[nn.Linear] = []
    between = 0  # activations since the last Linear
    for name, module in _leaves(model):
        if isinstance(module, nn.Linear):
            if linears and not between:
                raise InputError(f"{name!r} follows a Linear with no activation between; put an nn.Identity() there.")
            linears.append(module)
            between = 0
        elif isinstance(module, nn.Identity) and not linears:
            continue  # where a merged layer was
        elif any(True for _ in (*module.parameters(), *module.buffers())) or not linears:
            raise InputError(
                f"{name!r} is a {type(module).__name__}: θ is defined for Linears with activations between them only."
            )
        else:
            between += 1
    if not linears or between:
        raise InputError("the model must begin and end with an nn.Linear.")
    theta = tuple(
        (
            one.weight.detach().clone(),
            one.weight.new_zeros(one.out_features) if one.bias is None else one.bias.detach().clone(),
        )
        for one in linears
    )
    widths_of(theta)
    return theta


def _leaves(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Sequential):
        return [(prefix.removesuffix("."), model)]
    return [leaf for name, child in model.named_children() for leaf in _leaves(child, f"{prefix}{name}.")]


def mlp(theta: Theta, activation: nn.Module) -> nn.Sequential:
    """Build the model of the parameters θ; the inverse of `theta_of`.

    Args:
        theta: the parameters.
        activation: the activation of every hidden layer; each gets a copy of its own.

    Returns:
        nn.Sequential(Linear, activation, …, Linear) with copies of the parameters, of their types and devices.

    Raises:
        InputError: the layers of θ do not fit each other.

    >>> import torch
    >>> net = mlp(((torch.ones(2, 1), torch.zeros(2)), (torch.ones(1, 2), torch.zeros(1))), nn.ReLU())
    >>> net(torch.tensor([3.0])).item()
    6.0
    """
    widths_of(theta)
    modules: list[nn.Module] = []
    for weight, bias in theta:
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.weight = nn.Parameter(weight.detach().clone())
        linear.bias = nn.Parameter(bias.detach().clone())
        modules += [linear, copy.deepcopy(activation)]
    return nn.Sequential(*modules[:-1])
