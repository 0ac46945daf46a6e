"""How a small model is entered in the zoo: what is to be seen in it, and how to run it on a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IN, WIDTH, OUT, ROWS = 5, 8, 3, 12


@dataclass(frozen=True)
class Case:
    """A model and what `observe` has to say about it.

    Attributes:
        make: builds the model.
        neurons: layers whose neurons may be merged.
        layers: layers that may be removed.
        why: (layer, "neurons", "layer" or "refused") -> key of the reason.
        batch: builds a batch.
        call: model and batch -> outputs; by default model(batch).
    """

    make: Callable[[], nn.Module]
    neurons: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    why: dict[tuple[str, str], str] = field(default_factory=dict)
    batch: Callable[[], Any] = lambda: torch.randn(ROWS, IN)
    call: Callable[[Any, Any], Any] = lambda model, batch: model(batch)


ZOO: dict[str, Case] = {}


def case(
    neurons: str = "",
    layers: str | None = None,
    batch: Callable[[], Any] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    **why: str,
) -> Callable[[Any], Any]:
    """Enter a model; layers=None: those whose neurons may be merged. `why` by layer, dots as `_`."""

    def enter(make: Any) -> Any:
        reasons = {}
        for key, reason in why.items():
            layer, _, what = key.partition("__")
            reasons[layer if "." in layer else layer.replace("_", "."), what or "refused"] = reason
        kept = frozenset(neurons.split())
        given = {key: value for key, value in (("batch", batch), ("call", call)) if value is not None}
        ZOO[make.__name__] = Case(make, kept, kept if layers is None else frozenset(layers.split()), reasons, **given)
        return make

    return enter


class Base(nn.Module):
    """Two Linears, fc1 and fc2; subclasses say what lies between."""

    def __init__(self, out: int = OUT) -> None:
        super().__init__()
        self.fc1 = nn.Linear(IN, WIDTH)
        self.fc2 = nn.Linear(WIDTH, out)

    def middle(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.middle(self.fc1(x)))


def between(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(IN, WIDTH), *modules, nn.Linear(WIDTH, OUT))
