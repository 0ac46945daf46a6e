"""Architectures without a light package, as their papers or well-known implementations print them: vectors, images."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.architecture import architecture, images, numbers


@architecture("Mixer", images(32), "head")
class Mixer(nn.Module):
    """MLPs over patches and over channels in turn."""

    def __init__(self, patches: int = 16, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.tokens = nn.ModuleList(self._mlp(patches, 32) for _ in range(depth))
        self.channels = nn.ModuleList(self._mlp(width, 128) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.head = nn.Linear(width, 10)

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


class _Twice(nn.Sequential):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(wide, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        )


@architecture("U-Net, interpolation", images(32), "head", samples=128)
class UNet(nn.Module):
    """Three levels, two convolutions with batch norm each."""

    def __init__(self, width: int = 16, *, transposed: bool = False) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_Twice(i, o) for i, o in zip([3, *sizes], sizes, strict=False))
        self.middle = _Twice(4 * width, 8 * width)
        below = [8 * width, 4 * width, 2 * width]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(b, b // 2, 2, stride=2)
            if transposed
            else nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(b, b // 2, 1))
            for b in below
        )
        self.up = nn.ModuleList(_Twice(b, b // 2) for b in below)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, block in zip(self.ups, self.up, strict=True):
            x = block(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


@architecture("U-Net, ConvTranspose", images(32), "head", samples=128)
def unet_transposed() -> nn.Module:
    return UNet(transposed=True)


def _sets(samples: int) -> Tensor:
    """Sets that differ in their means, so that pools differ."""
    return torch.randn(samples, 1, 8) + torch.randn(samples, 20, 8)


@architecture("DeepSets", _sets, "rho.4")
class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.rho = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).mean(1))


class _Alignment(nn.Module):
    """PointNet's network that turns its input: its last layer is a matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.points = nn.Sequential(
            nn.Conv1d(width, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.whole = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, width * width))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.whole(self.points(x).max(2)[0]).view(-1, self.width, self.width)
        return torch.bmm((matrix + torch.eye(self.width, device=x.device)).transpose(1, 2), x)


@architecture("PointNet", numbers(3, 48), "head.6")
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.align = _Alignment(3)
        self.first = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 128, 1), nn.BatchNorm1d(128)
        )
        self.head = nn.Sequential(
            nn.Linear(128, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.Dropout(0.3),
            nn.BatchNorm1d(32),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.align(x))).max(2)[0])


def _chain(*sizes: int, last: bool = False) -> nn.Sequential:
    pairs = list(itertools.pairwise(sizes))
    layers: list[nn.Module] = []
    for i, (wide, out) in enumerate(pairs):
        layers.append(nn.Linear(wide, out))
        if last or i + 1 < len(pairs):
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _clicks(samples: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 13), torch.randint(20, (samples, 4))


@architecture("DLRM", _clicks, "top.4")
class DLRM(nn.Module):
    """Dense features and embedded categories, joined by their dot products."""

    def __init__(self, fields: int = 4, width: int = 16) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(20, width) for _ in range(fields))
        self.bottom = _chain(13, 64, 32, width, last=True)
        pairs = (fields + 1) * fields // 2
        self.top = _chain(width + pairs, 64, 32, 1)
        self.register_buffer("lower", torch.tril_indices(fields + 1, fields + 1, offset=-1))

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = torch.stack([x, *(one(categories[:, i]) for i, one in enumerate(self.embeddings))], 1)
        products = torch.bmm(rows, rows.transpose(1, 2))
        return self.top(torch.cat([x, products[:, self.lower[0], self.lower[1]]], 1))


class _Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@architecture("MoE", numbers(32), "head")
class MixtureOfExperts(nn.Module):
    """Every sample goes to the two experts that a router chooses."""

    def __init__(self, width: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.norm, self.router = nn.LayerNorm(width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(_Expert(width, 64) for _ in range(experts))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        given, total = self.norm(x), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = torch.where(chosen == number)
            total = total.index_add(0, rows, expert(given[rows]) * weights[rows, place, None])
        return self.head(x + total)


@architecture("VAE", numbers(40), "mean spread decoder.4")
class VAE(nn.Module):
    def __init__(self, data: int = 40, hidden: int = 64, latent: int = 12) -> None:
        super().__init__()
        self.encoder = _chain(data, hidden, hidden, last=True)
        self.mean, self.spread = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = _chain(latent, hidden, hidden, data)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, spread = self.mean(h), self.spread(h)
        return self.decoder(mean + torch.randn_like(mean) * (0.5 * spread).exp()), mean, spread


@architecture("LayerNorm MLP", numbers(17), "4.0")
def layer_norm_mlp() -> nn.Module:
    """As critics of reinforcement learning have it."""
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(i, 64), nn.LayerNorm(64), nn.ReLU()) for i in (17, 64, 64, 64)),
        nn.Sequential(nn.Linear(64, 1)),
    )


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(10.0 * x)


@architecture("SIREN", numbers(2), "6")
def siren() -> nn.Module:
    net = nn.Sequential(
        nn.Linear(2, 64), _Sine(), nn.Linear(64, 64), _Sine(), nn.Linear(64, 64), _Sine(), nn.Linear(64, 3)
    )
    for layer in net[2::2]:
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -(6**0.5) / 80, 6**0.5 / 80)
    return net


class _Radial(nn.Module):
    """FastKAN's layer: radial functions of every input, and a linear layer beside."""

    def __init__(self, wide: int, out: int, *, norm: bool, grid: int = 6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(wide) if norm else nn.Identity()
        self.register_buffer("grid", torch.linspace(-2, 2, grid))
        self.spline, self.base = nn.Linear(wide * grid, out, bias=False), nn.Linear(wide, out)

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-(((self.norm(x)[..., None] - self.grid) / 0.8) ** 2))
        return self.spline(basis.view(*basis.shape[:-2], -1)) + self.base(F.silu(x))


@architecture("KAN (FastKAN without LayerNorm)", numbers(8), "2.spline 2.base")
def kan() -> nn.Module:
    return nn.Sequential(*(_Radial(i, o, norm=False) for i, o in ((8, 32), (32, 32), (32, 3))))


@architecture("KAN (FastKAN)", numbers(8), "2.spline 2.base")
def kan_norm() -> nn.Module:
    return nn.Sequential(*(_Radial(i, o, norm=True) for i, o in ((8, 32), (32, 32), (32, 3))))
