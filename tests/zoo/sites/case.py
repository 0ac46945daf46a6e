"""How a small network is entered with the truth about its sites, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IN, OUT, ROWS = 7, 3, 9
# why a layer is refused that is tied to one that is refused for a reason of its own
PARTNER = ("columns mix", "cannot be cut", "joined by")
# why a layer is refused that meets other data, which would have to lose as many columns
TIED = ("joined by", "cannot be cut")

Index = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Truth:
    """One site, in the short form that `index` reads.

    Attributes:
        producers: layer -> rows of its weight, unit by unit.
        reads: layer -> columns of its weight.
        per_neuron: "tensor" or "tensor@dim" -> entries along that dimension (0 where none is named).
        fixed: other layers whose values the region uses, "input" where it uses inputs or constants.
        rows_mix: whether rows mix, differ or change number; None where a row has no one meaning (convolutions).
    """

    producers: dict[str, str]
    reads: dict[str, str]
    per_neuron: dict[str, str] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    rows_mix: bool | None = False


@dataclass(frozen=True)
class SiteCase:
    """A model, its sites, and why its other layers are in none.

    Attributes:
        make: builds the model.
        sites: the truth about every site.
        why: layer -> keys of reasons, one of which refuses it; no key stands for any reason.
        batch: builds a batch of so many samples.
        call: model and batch -> outputs; by default model(batch).
    """

    make: Callable[[], nn.Module]
    sites: tuple[Truth, ...]
    why: dict[str, tuple[str, ...]]
    batch: Callable[[int], Any] = lambda rows: torch.randn(rows, IN)
    call: Callable[[Any, Any], Any] = lambda model, batch: model(batch)


SITES: dict[str, SiteCase] = {}


def site_case(
    *sites: Truth,
    output: str = "",
    batch: Callable[[int], Any] | None = None,
    call: Callable[[Any, Any], Any] | None = None,
    why: dict[str, str | tuple[str, ...]] | None = None,
) -> Callable[[Any], Any]:
    """Enter a model. `output` names the layers that are the model's output; `why` gives reasons of the others.

    A key of `why` may name several layers.
    """

    def enter(make: Any) -> Any:
        reasons: dict[str, tuple[str, ...]] = dict.fromkeys(output.split(), ("is the model's output",))
        for names, keys in (why or {}).items():
            reasons |= {name: (keys,) if isinstance(keys, str) else keys for name in names.split()}
        other = {key: value for key, value in (("batch", batch), ("call", call)) if value is not None}
        assert make.__name__ not in SITES, make.__name__
        SITES[make.__name__] = SiteCase(make, sites, reasons, **other)
        return make

    return enter


def index(text: str) -> Index:
    """Entries of every unit, as a range and how it is dealt to the units.

    "0:6" gives each unit one entry, "0:6/2" two neighbours, "0:6%2" deals them out in turn to two units; "|" puts
    several ranges beside each other.

    >>> index("0:3"), index("5:-1:-2")
    (((0,), (1,), (2,)), ((5,), (3,), (1,)))
    >>> index("0:6/2"), index("0:6%2"), index("0:2 | 7:9")
    (((0, 1), (2, 3), (4, 5)), ((0, 2, 4), (1, 3, 5)), ((0, 7), (1, 8)))
    """
    columns: list[list[tuple[int, ...]]] = []
    for part in text.split("|"):
        span, of, size = part.strip().replace("%", " % ").replace("/", " / ").partition(" ")
        numbers = list(range(*map(int, span.split(":"))))
        if not of:
            columns.append([(number,) for number in numbers])
            continue
        sign, count = size.split()
        if sign == "/":
            columns.append([tuple(numbers[at : at + int(count)]) for at in range(0, len(numbers), int(count))])
        else:
            columns.append([tuple(numbers[at :: int(count)]) for at in range(int(count))])
    assert len({len(part) for part in columns}) == 1, text
    return tuple(tuple(sorted(sum(parts, ()))) for parts in zip(*columns, strict=True))


def per_neuron_of(truth: Truth) -> dict[tuple[str, int], Index]:
    """(tensor, dimension) -> entries of every unit."""
    found = {}
    for key, text in truth.per_neuron.items():
        name, _, dim = key.partition("@")
        found[name, int(dim or 0)] = index(text)
    return found


def norm(name: str, entries: str) -> dict[str, str]:
    """What a batch norm holds for every unit."""
    return {f"{name}.{tensor}": entries for tensor in ("weight", "bias", "running_mean", "running_var")}


class Net(nn.Module):
    """A model with the given modules, parameters and tensors (as buffers)."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def tokens(count: int = 5) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, count, IN)


def images(channels: int = 3, side: int = 8) -> Callable[[int], Tensor]:
    return lambda rows: torch.randn(rows, channels, side, side)


def linear(inputs: int, outputs: int, **how: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **how)


def conv(inputs: int, outputs: int, kernel: int = 3, **how: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=how.pop("padding", kernel // 2), **how)


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A model of the zoo, with batch norms that have seen something."""
    torch.manual_seed(seed)
    model = SITES[name].make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
    return model.to(dtype)


def batch_of(name: str, rows: int = ROWS, dtype: torch.dtype = torch.float32) -> Any:
    """A batch for it, floating point numbers in the given type."""
    batch = SITES[name].batch(rows)
    if isinstance(batch, tuple):
        return tuple(part.to(dtype) if part.is_floating_point() else part for part in batch)
    return batch.to(dtype)
