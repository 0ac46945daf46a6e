"""Layers whose rows are pooled, scattered or mixed on the way to the next one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, Net, Truth, linear, site_case, tokens


class Pooled(Net):
    """A set goes through one layer and is pooled; subclasses say how."""

    def __init__(self, width: int = 12, columns: int = 12, **parts: Any) -> None:
        super().__init__(a=linear(IN, width), out=linear(columns, OUT), **parts)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.a(x), x))


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens())
class MeanOfSet(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.relu().mean(dim=1)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens())
class MaximumOfSet(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.tanh().max(dim=1).values


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens())
class LogSumExpOfSet(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.logsumexp(dim=1)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, fixed=("input",), rows_mix=True), output="out", batch=tokens())
class MaskedMean(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        mask = (x[..., :1] > -0.8).to(h.dtype)
        return (h.relu() * mask).sum(1) / mask.sum(1).clamp(min=1)


@site_case(Truth({"a": "0:10"}, {"out": "0:10 | 10:20"}, rows_mix=True), output="out", batch=tokens())
class MeanAndMaximum(Pooled):
    def __init__(self) -> None:
        super().__init__(10, 20)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        h = h.relu()
        return torch.cat([h.mean(dim=1), h.amax(dim=1)], dim=-1)


@site_case(Truth({"a": "0:12"}, {"out": "0:24%12"}, rows_mix=True), output="out", batch=tokens())
class LargestTwoOfSet(Pooled):
    def __init__(self) -> None:
        super().__init__(12, 24)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.topk(2, dim=1).values.flatten(1)


@site_case(Truth({"a": "0:12"}, {"out": "0:60%12"}, rows_mix=True), output="out", batch=tokens(5))
class FlattenedTokens(Pooled):
    def __init__(self) -> None:
        super().__init__(12, 60)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.relu().flatten(1)


@site_case(Truth({"a": "0:12"}, {"out": "0:60/5"}, rows_mix=True), output="out", batch=tokens(5))
class FlattenedSeries(Pooled):
    def __init__(self) -> None:
        super().__init__(12, 60)

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.relu().transpose(1, 2).flatten(1)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens())
class Cumulated(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return h.relu().cumsum(dim=1)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens(4))
class PairwiseDifferences(Pooled):
    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return (h[:, :, None] - h[:, None, :]).abs().mean(dim=(1, 2))


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, {"table@1": "0:12"}), output="out", batch=tokens(5))
class PositionalTable(Pooled):
    """Each token has a row of the table: rows differ, which is no mixing."""

    def __init__(self) -> None:
        super().__init__(table=nn.Parameter(torch.randn(6, 12)))

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return (h + self.table[: h.shape[1]]).relu()


def graph_batch(rows: int) -> tuple[Tensor, Tensor]:
    """Nodes and the graph of each; every graph has a node."""
    count = max(2, rows // 4)
    return torch.randn(rows, IN), torch.cat([torch.arange(count), torch.randint(count, (rows - count,))])


@site_case(
    Truth({"a": "0:12"}, {"out": "0:12"}, fixed=("input",), rows_mix=True),
    output="out",
    batch=graph_batch,
    call=lambda model, batch: model(*batch),
)
class IndexAdded(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.a(x).relu()
        pooled = h.new_zeros(int(graph.max()) + 1, h.shape[1])
        return self.out(pooled.index_add(0, graph, h))


@site_case(
    Truth({"a": "0:12"}, {"out": "0:12"}, fixed=("input",), rows_mix=True),
    output="out",
    batch=graph_batch,
    call=lambda model, batch: model(*batch),
)
class SegmentMean(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.a(x).relu()
        count = int(graph.max()) + 1
        total = h.new_zeros(count, h.shape[-1]).scatter_add_(0, graph[:, None].expand_as(h), h)
        return self.out(total / torch.bincount(graph, minlength=count)[:, None])


@site_case(
    Truth({"query": "0:10"}, {"score": "0:10"}),
    Truth({"value": "0:12"}, {"out": "0:12"}, fixed=("score",), rows_mix=True),
    output="out",
    why={"score": ()},
    batch=tokens(),
)
class AttentionPooling(Net):
    """The weights come from other layers, one for each token."""

    def __init__(self) -> None:
        super().__init__(query=linear(IN, 10), score=linear(10, 1), value=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(self.query(x).tanh()).softmax(dim=1)
        return self.out((weights * self.value(x)).sum(dim=1))


def adjacency_batch(rows: int) -> tuple[Tensor, Tensor]:
    """A batch of graphs of six nodes."""
    return torch.randn(rows, 6, IN), torch.bernoulli(torch.full((rows, 6, 6), 0.4))


@site_case(
    Truth({"a": "0:12"}, {"b": "0:12"}, fixed=("input",), rows_mix=True),
    Truth({"b": "0:10"}, {"c": "0:10"}, {}, fixed=("input",), rows_mix=True),
    Truth({"c": "0:8"}, {"out": "0:8"}, rows_mix=True),
    output="out",
    batch=adjacency_batch,
    call=lambda model, batch: model(*batch),
)
class GraphIsomorphism(Net):
    """Sums over neighbours, with a learned weight of the node itself."""

    def __init__(self) -> None:
        super().__init__(
            a=linear(IN, 12), b=linear(12, 10), c=linear(10, 8), out=linear(8, OUT), own=nn.Parameter(torch.rand(1))
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = self.b((1 + self.own) * h + edges @ h).relu()
        h = self.c((1 + self.own) * h + torch.bmm(edges, h)).relu()
        return self.out(h.sum(dim=1))


@site_case(Truth({"mix": "0:9"}, {"back": "0:9"}), output="out", why={"a back": "columns mix"}, batch=tokens(6))
class TokenMixing(Net):
    """A layer over the tokens: neurons of the layer before are rows of it, not columns."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 6), mix=linear(6, 9), back=linear(9, 6), out=linear(6, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(self.back(F.gelu(self.mix(h.transpose(1, 2)))).transpose(1, 2))


@site_case(output="out", why={"a b c": "columns mix"})
class Interactions(Net):
    """Inner products of three layers' outputs, as recommenders have them."""

    def __init__(self) -> None:
        super().__init__(a=linear(3, 8), b=linear(2, 8), c=linear(2, 8), out=linear(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.stack([self.a(x[:, :3]), self.b(x[:, 3:5]), self.c(x[:, 5:])], dim=1)
        return self.out((h @ h.transpose(1, 2)).flatten(1))


@site_case(
    Truth({"one": "0:12", "two": "0:12"}, {"out": "0:12"}, fixed=("input",), rows_mix=True),
    output="out",
)
class RoutedRows(Net):
    """Each row goes to one of two experts."""

    def __init__(self) -> None:
        super().__init__(one=linear(IN, 12), two=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0] > 0
        h = self.one(x[first]).relu()
        routed = h.new_zeros(len(x), h.shape[1])
        routed[first] = h
        routed[~first] = self.two(x[~first]).tanh()
        return self.out(routed)


@site_case(
    Truth({"a": "0:8"}, {"out": "0:24%8"}, fixed=("score",), rows_mix=True),
    output="out",
    why={"score": ()},
    batch=tokens(5),
)
class SortedByScore(Net):
    """The three tokens of the highest score, one after the other."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 8), score=linear(IN, 1), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        order = self.score(x).argsort(dim=1, descending=True)
        return self.out(h.gather(1, order.expand_as(h))[:, :3].flatten(1))


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, rows_mix=True), output="out", batch=tokens(6))
class Spectrum(Pooled):
    """Complex numbers on the way."""

    def pool(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.fft.rfft(h.tanh(), dim=1).abs()
