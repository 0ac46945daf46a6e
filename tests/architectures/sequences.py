"""More architectures without a light package: sequences, graphs, tables, cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.architecture import architecture, numbers


@architecture("TransformerEncoder", numbers(10, 12), "head")
class Encoder(nn.Module):
    """torch's own, with its projections packed into one tensor."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        layer = nn.TransformerEncoderLayer(width, 4, 128, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


@architecture("LSTM + head", numbers(10, 12), "head.2")
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 48, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


NODES, EDGES = 10, 30


def _graphs(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Node features, edges (from, to), and the graph of every node."""
    begin = NODES * torch.arange(samples).repeat_interleave(EDGES)
    edges = torch.randint(NODES, (2, samples * EDGES)) + begin
    return torch.randn(samples * NODES, 8), edges, torch.arange(samples).repeat_interleave(NODES)


class _Isomorphism(nn.Module):
    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.tensor(0.1))
        self.mlp = nn.Sequential(
            nn.Linear(wide, out), nn.BatchNorm1d(out), nn.ReLU(), nn.Linear(out, out), nn.BatchNorm1d(out), nn.ReLU()
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        neighbours = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
        return self.mlp((1 + self.eps) * x + neighbours)


@architecture("GIN", _graphs, "head.2")
class GIN(nn.Module):
    """Sums over neighbours, an MLP at every node, sums over the graph from every depth."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Isomorphism(8, width), _Isomorphism(width, width), _Isomorphism(width, width)])
        self.head = nn.Sequential(nn.Linear(3 * width, 64), nn.ReLU(), nn.Linear(64, 5))

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        pooled, count = [], int(graph[-1]) + 1
        for layer in self.layers:
            x = layer(x, edges)
            pooled.append(x.new_zeros(count, x.shape[1]).index_add(0, graph, x))
        return self.head(torch.cat(pooled, 1))


class _TabularBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.BatchNorm1d(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.narrow(self.drop(F.relu(self.wide(self.norm(x))))))


@architecture("Tabular ResNet", numbers(20), "head.2")
class TabularResNet(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(20, width)
        self.blocks = nn.Sequential(*(_TabularBlock(width, 96) for _ in range(4)))
        self.head = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x)))


def _table(samples: int) -> tuple[Tensor, Tensor]:
    return torch.randint(10, (samples, 5)), torch.randn(samples, 6)


class _GatedBlock(nn.Module):
    """Attention over columns and a GEGLU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in self.qkv(self.norm1(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        value, gate = self.wide(self.norm2(x)).chunk(2, -1)
        return x + self.narrow(value * F.gelu(gate))


@architecture("TabTransformer", _table, "mlp.4")
class TabTransformer(nn.Module):
    def __init__(self, columns: int = 5, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(columns * 10, width)
        self.blocks = nn.Sequential(*(_GatedBlock(width, 4) for _ in range(2)))
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.Sequential(
            nn.Linear(columns * width + 6, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2)
        )
        self.register_buffer("offset", 10 * torch.arange(columns))

    def forward(self, categories: Tensor, continuous: Tensor) -> Tensor:
        x = self.blocks(self.embed(categories + self.offset)).flatten(1)
        return self.mlp(torch.cat([x, self.norm(continuous)], 1))


class _Gated(nn.Module):
    """The temporal fusion transformer's gated residual network."""

    def __init__(self, wide: int, hidden: int, out: int) -> None:
        super().__init__()
        self.skip = nn.Linear(wide, out) if wide != out else nn.Identity()
        self.first, self.second, self.gate = nn.Linear(wide, hidden), nn.Linear(hidden, out), nn.Linear(out, 2 * out)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.skip(x) + F.glu(self.gate(self.second(F.elu(self.first(x))))))


@architecture("TFT", numbers(12, 4), "head")
class TemporalFusion(nn.Module):
    """Variables are chosen, a recurrent layer runs over time, attention with one value for all heads."""

    def __init__(self, variables: int = 4, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.embed = nn.ModuleList(nn.Linear(1, width) for _ in range(variables))
        self.each = nn.ModuleList(_Gated(width, width, width) for _ in range(variables))
        self.choose = _Gated(variables * width, width, variables)
        self.lstm, self.after = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 2 * width)
        self.norm, self.enrich = nn.LayerNorm(width), _Gated(width, width, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width // heads), nn.Linear(width // heads, width)
        self.attended, self.last = nn.LayerNorm(width), _Gated(width, width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = [layer(x[..., i : i + 1]) for i, layer in enumerate(self.embed)]
        weights = self.choose(torch.cat(made, -1)).softmax(-1)
        chosen = torch.stack([gated(one) for gated, one in zip(self.each, made, strict=True)], -1)
        x = (chosen * weights[..., None, :]).sum(-1)
        x = self.enrich(self.norm(x + F.glu(self.after(self.lstm(x)[0]))))
        q, k = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key))
        scores = (q @ k.transpose(-1, -2) / (self.width // self.heads) ** 0.5).softmax(-1).mean(1)
        x = self.last(self.attended(x + self.out(scores @ self.value(x))))
        return self.head(x[:, -1])


def _cells(samples: int) -> tuple[Tensor, Tensor]:
    counts = torch.poisson(torch.rand(samples, 60) * 5 * torch.rand(60))
    return counts, F.one_hot(torch.randint(3, (samples,)), 3).float()


class _Covariates(nn.Module):
    """SCVI's fully connected layers: the batch is given to every one of them."""

    def __init__(self, wide: int, hidden: int, covariates: int, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear((wide if i == 0 else hidden) + covariates, hidden),
                nn.BatchNorm1d(hidden, momentum=0.01, eps=0.001),
                nn.ReLU(),
                nn.Dropout(0.1),
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(torch.cat([x, batch], -1))
        return x


@architecture("SCVI", _cells, "mean spread scale.0 rest")
class SCVI(nn.Module):
    """A variational autoencoder of counts with the batch as covariate."""

    def __init__(self, genes: int = 60, hidden: int = 64, latent: int = 10) -> None:
        super().__init__()
        self.encoder, self.decoder = _Covariates(genes, hidden, 3), _Covariates(latent, hidden, 3)
        self.mean, self.spread = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.scale, self.rest = nn.Sequential(nn.Linear(hidden, genes), nn.Softmax(-1)), nn.Linear(hidden, genes)

    def forward(self, counts: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h = self.encoder(torch.log1p(counts), batch)
        mean, spread = self.mean(h), self.spread(h).exp() + 1e-4
        z = mean + spread.sqrt() * torch.randn_like(mean)
        h = self.decoder(z, batch)
        return self.scale(h), self.rest(h), mean, spread
