"""What has to be known about torch's functions when they are seen passing by: names, flags, addresses."""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

# Functions that tell about a tensor without telling its values: using them is no use of the tensor.
METADATA = frozenset(
    [
        "__len__",
        "_version",
        "data_ptr",
        "device",
        "dim",
        "dtype",
        "element_size",
        "get_device",
        "grad",
        "grad_fn",
        "has_names",
        "is_complex",
        "is_contiguous",
        "is_conj",
        "is_cpu",
        "is_cuda",
        "is_floating_point",
        "is_inference",
        "is_leaf",
        "is_meta",
        "is_mps",
        "is_neg",
        "is_nested",
        "is_quantized",
        "is_same_size",
        "is_shared",
        "is_signed",
        "is_sparse",
        "is_storage",
        "is_tensor",
        "itemsize",
        "layout",
        "name",
        "names",
        "nbytes",
        "ndim",
        "ndimension",
        "nelement",
        "numel",
        "output_nr",
        "register_hook",
        "requires_grad",
        "requires_grad_",
        "result_type",
        "retain_grad",
        "retains_grad",
        "shape",
        "size",
        "storage_offset",
        "stride",
        "untyped_storage",
        "volatile",
        "_is_view",
    ]
)

# Functions whose integers are sizes: a width or a number of rows written there follows the tensor.
SHAPES = frozenset(
    [
        "broadcast_to",
        "empty",
        "expand",
        "full",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "rand",
        "randn",
        "reshape",
        "unflatten",
        "view",
        "zeros",
    ]
)

OWNERS = ("Tensor", "nn.functional", "special", "_C._nn", "_C._VariableFunctions", "")


def raw_name(function: Callable[..., Any]) -> str:
    """The attribute name of a torch function; of a property's getter the property's name.

    >>> raw_name(torch.Tensor.shape.__get__)
    'shape'
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        owner = getattr(function, "__self__", None)
        return str(
            owner.fget.__name__ if isinstance(owner, property) and owner.fget else getattr(owner, "__name__", name)
        )
    return str(name)


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function as people say it.

    >>> function_name(torch.Tensor.add_), function_name(torch.Tensor.__getitem__)
    ('add', 'getitem')
    """
    return raw_name(function).removesuffix(".default").strip("_")


@dataclass(frozen=True)
class Address:
    """A function by where it is found below `torch`, for those that cannot be pickled themselves."""

    owner: str
    name: str

    @property
    def __name__(self) -> str:
        overload = self.owner.count(".") == 2 and self.owner.startswith("ops.")
        return self.owner.rpartition(".")[2] if overload else self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return getattr(owner_of(self.owner), self.name)(*args, **kwargs)


def owner_of(path: str) -> Any:
    """What lies at a path below `torch`."""
    return operator.attrgetter(path)(torch) if path else torch


@functools.lru_cache(maxsize=4096)
def portable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does the same and can be pickled and copied.

    Getters of properties, overloaded operators and some methods of `Tensor` cannot be pickled.

    Args:
        function: as a function mode receives it.

    Returns:
        `function` itself where it can be pickled or nothing better is known.

    >>> pickle.loads(pickle.dumps(portable(torch.Tensor.T.__get__)))(torch.zeros(2, 3)).shape
    torch.Size([3, 2])
    """
    if getattr(function, "__name__", "") == "__get__":
        return operator.attrgetter(raw_name(function))
    with contextlib.suppress(Exception):
        if pickle.loads(pickle.dumps(function)) is not None:  # noqa: S301  # made on the spot
            return function
    return address_of(function) or function


def address_of(function: Callable[..., Any]) -> Address | None:
    """Where below `torch` a function is found; None for one that is not there.

    >>> address_of(torch.tanh)
    Address(owner='_C._VariableFunctions', name='tanh')
    """
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        owner, _, name = f"ops.{function}".rpartition(".")
        return Address(owner, name)
    name = raw_name(function)
    for owner, found in product(OWNERS, (name, f"__{name}__")):  # x**2 is a function called pow at Tensor.__pow__
        if getattr(owner_of(owner), found, None) is function:
            return Address(owner, found)
    return None


def in_eval(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with `training` (or `train`) set to False, wherever it was written.

    >>> in_eval(torch.nn.functional.dropout, ("z", 0.5, True), {})
    (('z', 0.5, False), {})
    """
    known = inspect.isfunction(function) or any(value is True for value in args)
    names = _parameter_names(function) if known else []
    flags = ("training", "train")
    new_args = tuple(
        False if position < len(names) and names[position] in flags else value for position, value in enumerate(args)
    )
    new_kwargs = {key: False if key in flags else value for key, value in kwargs.items()}
    if "training" in names[len(args) :]:  # F.dropout trains unless told otherwise
        new_kwargs["training"] = False
    return new_args, new_kwargs


@functools.lru_cache(maxsize=4096)
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    if isinstance(function, Address):
        function = getattr(owner_of(function.owner), function.name)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # functions written in C++ have none; torch keeps stand-ins with the same arguments
        stand_in = torch.overrides.get_testing_overrides().get(function)
        return None if stand_in is None else inspect.signature(stand_in)


def _parameter_names(function: Callable[..., Any]) -> list[str]:
    signature = _signature(function)
    return [] if signature is None else list(signature.parameters)
