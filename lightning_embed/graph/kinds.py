"""Which classes of modules are layers, and how each keeps its weight: the registry that users can extend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_embed.errors import InputError

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = nn.Linear | Convolution


@dataclass(frozen=True)
class Kind:
    """How the modules of a class keep what makes them layers.

    Attributes:
        transposed: whether the weight is stored as (columns, rows, …) instead of (rows, columns, …).
        positions: number of dimensions behind the channels, of input and output alike.
        rows: attribute that says how many neurons there are; empty if there is none.
        columns: attribute that says how many values are read; empty if there is none.
        known: whether the observer recognises the computation by torch's own function; otherwise the whole call of
            the module is the layer's.
    """

    transposed: bool = False
    positions: int = 0
    rows: str = ""
    columns: str = ""
    known: bool = False


_KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(rows="out_features", columns="in_features", known=True),
    nn.Conv1d: Kind(positions=1, known=True, rows="out_channels", columns="in_channels"),
    nn.Conv2d: Kind(positions=2, known=True, rows="out_channels", columns="in_channels"),
    nn.Conv3d: Kind(positions=3, known=True, rows="out_channels", columns="in_channels"),
    nn.ConvTranspose1d: Kind(transposed=True, positions=1, known=True, rows="out_channels", columns="in_channels"),
    nn.ConvTranspose2d: Kind(transposed=True, positions=2, known=True, rows="out_channels", columns="in_channels"),
    nn.ConvTranspose3d: Kind(transposed=True, positions=3, known=True, rows="out_channels", columns="in_channels"),
}
# classes of packages that are not imported for this
_BY_NAME: dict[str, Kind] = {"transformers.pytorch_utils.Conv1D": Kind(transposed=True, rows="nf", columns="nx")}


def register_layer(
    module_class: type[nn.Module], *, transposed: bool = False, positions: int = 0, rows: str = "", columns: str = ""
) -> None:
    """Say that modules of a class are layers: y = x Wᵀ + b along one dimension, with `weight` and `bias` of their own.

    Its rows can then be merged and its columns refitted like those of an nn.Linear. Nothing but `weight`, `bias` and
    the two counts is changed; a module that keeps its sizes elsewhere too fails the check, and is put back.

    Args:
        module_class: its calls take one tensor and return one tensor; `weight` is a parameter, `bias` a parameter or
            None (or absent).
        transposed: whether `weight` is stored as (inputs, outputs).
        positions: how many dimensions lie behind the channels, as 2 in images; 0 for features along the last one.
        rows: name of the attribute that counts outputs, if the module has one.
        columns: name of the attribute that counts inputs, if the module has one.

    Raises:
        InputError: no class of modules is given, or it is one that torch or this package defines as a layer already.

    >>> import torch
    >>> class Dense(nn.Module):
    ...     def __init__(self, inputs, units):
    ...         super().__init__()
    ...         self.units, self.weight = units, nn.Parameter(torch.randn(inputs, units))
    ...     def forward(self, x):
    ...         return x @ self.weight
    >>> register_layer(Dense, transposed=True, rows="units")
    >>> kind_of(Dense(2, 3)).rows
    'units'
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise InputError(f"register_layer takes a class of modules, got {module_class!r}.")
    if module_class in _TORCHS:
        raise InputError(f"{module_class.__name__} is a layer already.")
    _KINDS[module_class] = Kind(transposed, positions, rows, columns)


_TORCHS = frozenset(_KINDS)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The known class that a layer is an instance of.

    >>> class_of(nn.LazyLinear(3)).__name__
    'Linear'
    """
    return next(one for one in type(module).__mro__ if _kind(one) is not None)


def _kind(one: type) -> Kind | None:
    return _KINDS.get(one) or _BY_NAME.get(f"{one.__module__}.{one.__qualname__}")


def kind_of(module: nn.Module) -> Kind | None:
    """How a module keeps its weight; None where it is no layer.

    >>> kind_of(nn.Linear(2, 3)).rows, kind_of(nn.ReLU())
    ('out_features', None)
    """
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups != 1:
        return None  # it is a function of each group of channels
    return next((kind for one in type(module).__mro__ if (kind := _kind(one)) is not None), None)


def output_weight(layer: nn.Module) -> Tensor:
    """A layer's weight as (rows, columns, taps of a kernel …), a view of the parameter, whatever its storage order.

    >>> output_weight(nn.ConvTranspose1d(2, 5, 3)).shape
    torch.Size([5, 2, 3])
    """
    return stored_weight(layer, layer.weight)  # type: ignore[arg-type]  # layers have one


def stored_weight(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight (rows, columns, …) in the order in which the layer stores it; the inverse of `output_weight`."""
    kind = kind_of(layer)
    return weight.transpose(0, 1) if kind is not None and kind.transposed else weight


def counts(module: nn.Module) -> dict[str, int]:
    """The attributes by which a module tells its sizes, with the values that its tensors have now.

    Of a convolution with groups these follow the channels that it puts out, as many of each group as before.

    >>> counts(nn.Linear(2, 3))
    {'out_features': 3, 'in_features': 2}
    """
    kind = kind_of(module)
    if kind is not None:
        rows, columns = output_weight(module).shape[:2]
        return {name: size for name, size in ((kind.rows, rows), (kind.columns, columns)) if name}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        groups = len(module.weight) // (module.out_channels // module.groups)
        return {"groups": groups, "in_channels": groups * module.weight.shape[1], "out_channels": len(module.weight)}
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.PReLU)):  # elsewhere the attributes may mean anything
        tensors = [*module._parameters.values(), *module._buffers.values()]
        sizes = [len(tensor) for tensor in tensors if tensor is not None and tensor.dim() == 1]
        name = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
        return {name: sizes[0]} if sizes else {}
    return {}
