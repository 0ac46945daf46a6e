"""Small networks whose neurons are tied to others: gates, concatenations, pooled sets, stages, depthwise."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 28


class Gates(nn.Module):
    """Two SwiGLU blocks; packed: gate and value are halves of one layer."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        sizes = ((SIDE * SIDE, 256, 128), (128, 128, 10))
        self.wide = nn.ModuleList(nn.Linear(wide, 2 * hidden if packed else hidden) for wide, hidden, _ in sizes)
        self.up = nn.ModuleList(nn.Linear(wide, hidden) for wide, hidden, _ in sizes if not packed)
        self.down = nn.ModuleList(nn.Linear(hidden, out) for _, hidden, out in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for number, (wide, down) in enumerate(zip(self.wide, self.down, strict=True)):
            gate, value = wide(x).chunk(2, -1) if self.packed else (wide(x), self.up[number](x))
            x = down(F.silu(gate) * value)
        return x


class Towers(nn.Module):
    """The upper and the lower half of an image, read apart and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(SIDE * SIDE // 2, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()) for _ in range(2)
        )
        self.joined, self.head = nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        halves = zip(self.towers, x.chunk(2, 1), strict=True)
        return self.head(self.joined(torch.cat([tower(half) for tower, half in halves], 1)).relu())


def _rows(x: Tensor) -> Tensor:
    """An image as the set of its rows, each with its number."""
    rows = x.reshape(len(x), SIDE, SIDE)
    return torch.cat([rows, torch.eye(SIDE, device=x.device).expand(len(x), -1, -1)], -1)


class Sets(nn.Module):
    """A network for every row, their mean, and a network for that."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2 * SIDE, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.whole = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.each(_rows(x)).mean(1))


class Attention(nn.Module):
    """One attention over the rows; the values and what reads them are a site."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * SIDE, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, 128), nn.Linear(128, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(_rows(x))
        mixed = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(self.norm(x + self.out(mixed)).mean(1))


class _Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden)
        self.second, self.norm2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


class Residual(nn.Module):
    """A stem and two stages of two residual blocks with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.one = nn.Sequential(_Residual(16, 32), _Residual(16, 32))
        self.down, self.norm2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.two = nn.Sequential(_Residual(32, 64), _Residual(32, 64))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x.reshape(-1, 1, SIDE, SIDE))))
        x = F.relu(self.norm2(self.down(self.one(x))))
        return self.head(self.two(x).mean((2, 3)))


class _Inverted(nn.Module):
    """MobileNet's block: wide, depthwise, squeeze and excite, narrow."""

    def __init__(self, width: int, hidden: int, out: int, stride: int) -> None:
        super().__init__()
        self.same = stride == 1 and width == out
        self.wide, self.norm1 = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, hidden // 4, 1), nn.Conv2d(hidden // 4, hidden, 1)
        self.narrow, self.norm3 = nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.norm2(self.depthwise(F.hardswish(self.norm1(self.wide(x))))))
        h = h * F.hardsigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3), keepdim=True)))))
        h = self.norm3(self.narrow(h))
        return x + h if self.same else h


class Mobile(nn.Module):
    """Four inverted blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        sizes = ((16, 48, 16, 1), (16, 64, 24, 2), (24, 72, 24, 1), (24, 96, 32, 2))
        self.blocks = nn.Sequential(*(_Inverted(*size) for size in sizes))
        self.head = nn.Sequential(nn.Linear(32, 64), nn.Hardswish(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x.reshape(-1, 1, SIDE, SIDE))))
        return self.head(self.blocks(x).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # what builds it, and its output layer
    "SwiGLU": (lambda: Gates(packed=False), "down.1"),
    "packed gate": (lambda: Gates(packed=True), "down.1"),
    "towers": (Towers, "head"),
    "sets": (Sets, "whole.2"),
    "attention v→o": (Attention, "head"),
    "residual": (Residual, "head"),
    "depthwise + SE": (Mobile, "head.2"),
}
