"""Layers that keep their weight as (inputs, outputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, Net, Truth, linear, site_case, tokens


class Conv1D(nn.Module):
    """What transformers calls Conv1D: a Linear with its weight transposed."""

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
