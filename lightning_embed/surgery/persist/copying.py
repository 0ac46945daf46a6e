"""A copy of a model that shares nothing with it, whatever the model keeps on itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.tape.tree import tensors_of

M = TypeVar("M", bound=nn.Module)
_WITHOUT_SHAPE: Any = nn.parameter.UninitializedBuffer  # torch tells type checkers nothing of its arguments


@torch.inference_mode(mode=False)
def copy_of(model: M) -> M:
    """A deep copy of a model.

    Tensors that it keeps from earlier calls (features, masked or normalised weights) are copied without their graph,
    sparse parameters and buffers without a shape as what they are; `copy.deepcopy` alone refuses all three.

    Args:
        model: any module.

    Returns:
        The copy, in the same modes.

    Raises:
        InputError: something on the model cannot be copied, or its own `__deepcopy__` gives back a part of itself.
    """
    known: dict[int, Any] = {}
    for module in model.modules():
        for tensor in tensors_of(vars(module)):
            if tensor.grad_fn is not None:
                known[id(tensor)] = tensor.detach().clone()
        for parameter in module._parameters.values():
            if parameter is not None and parameter.layout != torch.strided:
                known[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None and nn.parameter.is_lazy(buffer):
                known[id(buffer)] = _WITHOUT_SHAPE(device=buffer.device, dtype=buffer.dtype)
    try:
        copied = copy.deepcopy(model, known)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Take what it keeps on itself "
            "and cannot be copied (open files, locks, graphs) off it first."
        ) from error
    if not isinstance(copied, type(model)) or _parts(copied) & _parts(model):
        raise InputError(
            f"{type(model).__name__} cannot be copied: its __deepcopy__ gives back parts of the model itself, which "
            "would be changed with the copy. Copy the model yourself and use lightning_embed.apply on that."
        )
    return copied


def _parts(model: nn.Module) -> set[int]:
    return {id(one) for one in (*model.modules(), *model.parameters())}


@contextmanager
def lazy_refused(model: nn.Module) -> Iterator[None]:
    """Refuse calls of layers that have no shape yet, before a call gives them one behind the user's back."""

    def refuse(name: str) -> Any:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...]) -> None:
            raise InputError(f"{name!r} is lazy and has no shape yet; call the model once on a batch first.")

        return hook

    lazy = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.modules.lazy.LazyModuleMixin)]
    handles = [
        one.register_forward_pre_hook(refuse(name), prepend=True)
        for name, one in lazy
        if isinstance(one, nn.Module) and one.has_uninitialized_params()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
