"""What every operator asks of its tensors, and the way into and out of float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_embed.errors import InputError


def matrix(name: str, value: Tensor, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    """Check a matrix and give it in float64.

    Args:
        name: How the caller calls the argument.
        value: The tensor to check.
        rows: Number of rows it must have, if any number is demanded.
        columns: Number of columns it must have, likewise.

    Returns:
        The values in float64; the same tensor if they already are.

    Raises:
        InputError: If it is no finite floating-point matrix of that shape.
    """
    _check_numbers(name, value)
    wanted = f"({'any' if rows is None else rows}, {'any' if columns is None else columns})"
    if value.dim() != 2 or rows not in {None, value.shape[0]} or columns not in {None, value.shape[1]}:
        raise InputError(f"{name} must have shape {wanted}, not {tuple(value.shape)}")
    return value.double()


def vector(name: str, value: Tensor, size: int) -> Tensor:
    """Check a vector and give it in float64.

    Args:
        name: How the caller calls the argument.
        value: The tensor to check.
        size: Number of entries it must have.

    Returns:
        The values in float64; the same tensor if they already are.

    Raises:
        InputError: If it is no finite floating-point vector of that size.
    """
    _check_numbers(name, value)
    if value.shape != (size,):
        raise InputError(f"{name} must have shape ({size},), not {tuple(value.shape)}")
    return value.double()


def bias(name: str, value: Tensor | None, weight: Tensor) -> Tensor:
    """Give a layer's bias in float64, zeros where the layer has none.

    Args:
        name: How the caller calls the bias.
        value: The bias, or None.
        weight: The layer's weight; its rows count the bias's entries.

    Returns:
        A float64 vector.

    Raises:
        InputError: If there is a bias and it is no finite floating-point vector of the right size.
    """
    if value is None:
        return torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    return vector(name, value, weight.shape[0])


def _check_numbers(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must be a floating-point tensor, not {kind}")
    if not torch.isfinite(value).all():
        raise InputError(f"{name} holds NaN or infinite values; a network that has diverged cannot be used")


def same_device(**tensors: Tensor | None) -> None:
    """Check that tensors can be multiplied with each other.

    Args:
        **tensors: The tensors by the names of the arguments; what is none is left to the other checks.

    Raises:
        InputError: If two of them are on different devices.
    """
    places = {name: str(value.device) for name, value in tensors.items() if isinstance(value, Tensor)}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in places.items())
        raise InputError(f"all tensors must be on one device, but {listed}; move them with .to(device)")


def indices(name: str, value: Sequence[int], width: int) -> list[int]:
    """Check distinct neuron numbers.

    Args:
        name: How the caller calls the argument.
        value: Neuron numbers, in any order.
        width: Number of neurons in the layer.

    Returns:
        The same numbers as a list.

    Raises:
        InputError: If a number is out of 0..width-1 or appears twice.
    """
    numbers = [int(number) for number in value]
    wrong = [number for number in numbers if not 0 <= number < width]
    if wrong:
        raise InputError(f"{name} must be neurons in 0..{width - 1}, not {wrong}")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{name} must name every neuron at most once, not {numbers}")
    return numbers


def back(name: str, value: Tensor, like: Tensor) -> Tensor:
    """Cast a float64 result to the type of the tensor it replaces.

    Args:
        name: What the result is, for the message.
        value: A finite float64 tensor, computed anew: if `like` is float64 too, it is the result.
        like: The tensor whose type and device the result takes.

    Returns:
        The values in the type and on the device of `like`.

    Raises:
        InputError: If a value is too large for the type.
    """
    result = value.to(device=like.device, dtype=like.dtype)
    if not torch.isfinite(result).all():
        raise InputError(f"{name} is too large for {like.dtype}; convert the layer to float32 or float64 first")
    return result


def back_bias(value: Tensor, like: Tensor | None, weight: Tensor) -> Tensor | None:
    """Cast an output bias back; a layer without one gets one only if it needs it.

    Args:
        value: The new bias in float64.
        like: The bias that it replaces, or None.
        weight: The layer's weight; an added bias takes its type and device.

    Returns:
        The bias, or None if there was none and the new one is exactly zero.

    Raises:
        InputError: If a value is too large for the type.
    """
    if like is None and not value.any():
        return None
    return back("the new output bias", value, weight if like is None else like)
