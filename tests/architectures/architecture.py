"""How an architecture is entered: what builds it, what it is called on, and which of its layers are its outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SETTLING = 3  # batches from which batch norms take their statistics


@dataclass(frozen=True)
class Architecture:
    """A network of a known kind, with random weights.

    Attributes:
        title: what people call it.
        make: builds it.
        batch: number of samples -> what it is called on: a tensor, a tuple of arguments or a dictionary of them.
        outputs: layers whose values are the network's outputs; pruners that do not see it have to be told.
        output: the tensor (or tensors) of what a call returns.
        package: the package that builds it, if it is no dependency.
        samples: for calibration.
    """

    title: str
    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    outputs: tuple[str, ...]
    output: Callable[[Any], Any]
    package: str
    samples: int

    @property
    def available(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def build(self, seed: int = 0) -> nn.Module:
        """With random weights; statistics of batch norms are those of random data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.make()
            for norm in _batch_norms(net):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
        self.settle(net)
        return net

    def batches(self, samples: int, *, like: nn.Module, size: int = 64, seed: int = 1) -> list[Any]:
        """Random ones of at most `size` samples, of the precision of a network's parameters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [self.batch(min(size, samples - begin)) for begin in range(0, samples, size)]
        return [_to(batch, next(like.parameters()).dtype) for batch in made]

    def run(self, net: nn.Module, batch: Any) -> Any:
        if isinstance(batch, dict):
            return net(**batch)
        return net(*batch) if isinstance(batch, tuple) else net(batch)

    def outcome(self, net: nn.Module, batches: list[Any]) -> Tensor:
        """All outputs as rows of numbers, from a fixed seed where the network draws."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            made = [self.output(self.run(net, batch)) for batch in batches]
        rows = [torch.cat([part.flatten(1) for part in (one if isinstance(one, tuple) else (one,))], 1) for one in made]
        return torch.cat(rows)

    def settle(self, net: nn.Module) -> None:
        """Give batch norms the statistics of what they read now, averaged over some batches."""
        norms = _batch_norms(net)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for batch in self.batches(SETTLING * 256, like=net, size=256, seed=6) if norms else []:
                self.run(net.train(), batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.eval()


def _batch_norms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


ARCHITECTURES: dict[str, Architecture] = {}


def _to(batch: Any, dtype: torch.dtype) -> Any:
    if isinstance(batch, dict):
        return {name: _to(one, dtype) for name, one in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_to(one, dtype) for one in batch)
    return batch.to(dtype) if batch.is_floating_point() else batch


def architecture(
    title: str,
    batch: Callable[[int], Any],
    outputs: str,
    *,
    output: Callable[[Any], Any] = lambda made: made,
    package: str = "torch",
    samples: int = 512,
) -> Callable[[Any], Any]:
    """Enter a class or a function that builds a network; `outputs` are separated by spaces."""

    def enter(make: Any) -> Any:
        ARCHITECTURES[title] = Architecture(title, make, batch, tuple(outputs.split()), output, package, samples)
        return make

    return enter


def images(size: int, channels: int = 3) -> Callable[[int], Tensor]:
    """Coarse random patterns and fine noise."""

    def batch(samples: int) -> Tensor:
        coarse = torch.randn(samples, channels, size // 8, size // 8)
        smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
        return smooth + 0.3 * torch.randn(samples, channels, size, size)

    return batch


def numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda samples: torch.randn(samples, *shape)
