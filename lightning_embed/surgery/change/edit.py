"""The one way in which a model is changed: a list of replacements that can be taken back bit for bit.

Nothing is ever written into an existing tensor. Every change puts a *new* object (parameter, buffer, module,
attribute) in the place of an old one and remembers the old one, so that undoing restores the very same objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_embed.graph import counts as layer_counts
from lightning_embed.graph import is_layer
from lightning_embed.tape.tape import modules_by_name


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of a canonical qualified name, looking through the wrappers that `torch.compile` puts in.

    >>> submodule(nn.Sequential(nn.Linear(2, 3)), "0")
    Linear(in_features=2, out_features=3, bias=True)
    """
    return modules_by_name(model)[name]


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; of layers that have no shape yet none.

    >>> parameter_count(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(5)))
    9
    """
    return sum(one.numel() for one in model.parameters() if not nn.parameter.is_lazy(one))


class Edits:
    """Replacements made in a model, in order; `undo` takes all of them back, the last first."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace one attribute of `owner` (a parameter, buffer, module or plain value)."""
        old = getattr(owner, name)
        setattr(owner, name, value)
        self._done.append((owner, name, old))

    def set_tensor(self, module: nn.Module, name: str, value: Tensor | None, *, like: Tensor | None = None) -> None:
        """Replace a parameter or buffer by a tensor of another shape, keeping dtype, device, `requires_grad`."""
        old = getattr(module, name)
        like = old if old is not None else like
        if value is not None and like is not None:
            value = value.detach().to(device=like.device, dtype=like.dtype).contiguous()
        if value is not None and name in module._parameters:
            value = nn.Parameter(value, requires_grad=like is None or like.requires_grad)
        self.set(module, name, value)

    def sync_counts(self, module: nn.Module) -> None:
        """Let the numbers by which a module describes itself agree with its tensors."""
        counts: Mapping[str, int | None] = layer_counts(module)
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
            counts = _grouped(module)
        elif not is_layer(module):
            own = [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
            count = next((len(tensor) for tensor in own if tensor.dim() == 1), None)
            torchs = isinstance(module, (nn.modules.batchnorm._NormBase, nn.PReLU))  # elsewhere it may mean anything
            counts = {"num_features": count, "num_parameters": count} if torchs and count is not None else {}
        for name, number in counts.items():
            if getattr(module, name, number) != number:
                self.set(module, name, number)

    def set_slot(self, model: nn.Module, name: str, module: nn.Module) -> None:
        """Put another module into the slot `name`.

        `nn.TransformerEncoderLayer` chooses its fused path by flags that describe its activation; without
        resetting them the fused path would go on computing the old activation.
        """
        parent_name, _, child = name.rpartition(".")
        parent = submodule(model, parent_name)
        if hasattr(parent._modules.get(child), "_orig_mod"):
            parent, child = parent._modules[child], "_orig_mod"  # type: ignore[assignment]  # a compiled wrapper
            self.set(parent, "forward", module.__call__)  # its own one stays bound to the old module
        self.set(parent, child, module)
        if isinstance(parent, nn.TransformerEncoderLayer) and child == "activation":
            self.set(parent, "activation_relu_or_gelu", _fused_activation(module))
            for encoder in model.modules():
                if isinstance(encoder, nn.TransformerEncoder) and any(parent is one for one in encoder.layers):
                    self.set(encoder, "use_nested_tensor", False)

    def extend(self, later: Edits) -> None:
        """Take in the replacements that were made after these."""
        self._done.extend(later._done)

    def undo(self) -> None:
        """Take every replacement back."""
        while self._done:
            owner, name, old = self._done.pop()
            setattr(owner, name, old)


def _grouped(module: nn.modules.conv._ConvNd) -> dict[str, int]:
    """Counts of a convolution with groups from its weight: each group has as many channels as before."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    whole = module.in_channels if transposed else module.out_channels  # what the first dimension of the weight counts
    groups = len(module.weight) * module.groups // whole
    other = groups * module.weight.shape[1]
    first, second = ("in_channels", "out_channels") if transposed else ("out_channels", "in_channels")
    return {"groups": groups, first: len(module.weight), second: other}


def _fused_activation(module: nn.Module) -> int:
    """The code by which `nn.TransformerEncoderLayer` names the activations that its fused path knows."""
    if isinstance(module, nn.ReLU):
        return 1
    return 2 if isinstance(module, nn.GELU) and module.approximate == "none" else 0
