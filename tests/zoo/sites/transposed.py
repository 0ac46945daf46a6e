"""Layers that keep their weight as (inputs, outputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_embed.graph import register_layer
from tests.zoo.sites.case import IN, OUT, Net, Truth, linear, site_case, tokens


class Dense(nn.Module):
    """A layer of somebody's own; it keeps no sizes."""

    def __init__(self, inputs: int, units: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(inputs, units))
        self.bias = nn.Parameter(0.3 * torch.randn(units)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.weight
        return h if self.bias is None else h + self.bias


register_layer(Dense, transposed=True)


class Conv1D(nn.Module):
    """A stand-in for the class of transformers, which is known by its full name."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.3 * torch.randn(nx, nf))
        self.bias = nn.Parameter(0.3 * torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


@site_case(Truth({"one": "0:14"}, {"two": "0:14"}), output="two", batch=tokens())
class TransposedMLP(Net):
    def __init__(self) -> None:
        super().__init__(one=Conv1D(14, IN), two=Conv1D(OUT, 14))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.gelu(self.one(x)))


@site_case(Truth({"gate": "0:13", "up": "0:13"}, {"down": "0:13", "side": "0:13"}), output="down side", batch=tokens())
class TransposedGate(Net):
    """Transposed and ordinary layers in one site, on both sides of it."""

    def __init__(self) -> None:
        super().__init__(gate=Conv1D(13, IN), up=linear(IN, 13), down=Conv1D(OUT, 13), side=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate(x)) * self.up(x)
        return self.down(h) + self.side(h)


@site_case(
    Truth({"gate": "0:13", "up": "0:13"}, {"down": "0:13"}), Truth({"down": "0:8"}, {"out": "0:8"}), output="out"
)
class OwnLayers(Net):
    """Layers of a registered class, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__(gate=Dense(IN, 13, bias=False), up=Dense(IN, 13), down=Dense(13, 8), out=linear(8, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(F.silu(self.gate(x)) * self.up(x)).relu())
