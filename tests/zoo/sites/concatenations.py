"""Layers whose values stand beside other data in what the next layer reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, TIED, Net, Truth, linear, norm, site_case, tokens


@site_case(
    Truth({"a": "0:10"}, {"out": "0:10"}, fixed=("b",)),
    Truth({"b": "0:14"}, {"out": "10:24"}, fixed=("a",)),
    output="out",
)
class TwoTowers(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(3, 10), b=linear(4, 14), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x[:, :3]).relu(), self.b(x[:, 3:]).tanh()], dim=1))


@site_case(Truth({"a": "0:13"}, {"out": "0:13"}, fixed=("input",)), output="out")
class InputBeside(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 13), out=linear(13 + IN, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x).relu(), x], dim=1))


@site_case(Truth({"a": "0:13"}, {"out": "7:20"}, fixed=("input",)), output="out")
class InputOnBothSides(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 13), out=linear(22, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x, self.a(x).relu(), x[:, :2]], dim=1))


@site_case(Truth({"a": "0:11"}, {"out": "0:11 | 11:22"}), output="out")
class TwiceTheSame(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 11), out=linear(22, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).tanh()
        return self.out(torch.cat([h, h], dim=1))


@site_case(Truth({"a": "0:11"}, {"out": "0:11 | 11:22"}), output="out")
class CReLU(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 11), out=linear(22, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(torch.cat([h.relu(), (-h).relu()], dim=1))


@site_case(Truth({"a": "0:12"}, {"out": "0:12 | 12:24"}), output="out")
class SiameseConcatenated(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(3, 12), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x[:, :3]).relu(), self.a(x[:, 3:6]).relu()], dim=1))


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}), output="out")
class SiameseDistance(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(3, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.a(x[:, :3]).relu() - self.a(x[:, 3:6]).relu()).abs())


@site_case(
    Truth({"a": "0:12"}, {"out": "0:12"}, {"token@2": "0:12"}, rows_mix=True),
    output="out",
    batch=tokens(4),
)
class ClassToken(Net):
    """A learned token before the others: as wide as the layer, and cut with it."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), token=nn.Parameter(torch.randn(1, 1, 12)), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), self.a(x)], dim=1)
        return self.out(h.tanh())


@site_case(Truth({"a": "0:13", "b": "0:13"}, {"out": "0:13"}, rows_mix=True), output="out", batch=tokens(5))
class TwoKindsOfTokens(Net):
    """Concatenated along the tokens: both layers feed the same columns."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 13), b=linear(IN, 13), out=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x[:, :2]), self.b(x[:, 2:])], dim=1).relu())


@site_case(Truth({"a": "0:13"}, {"out": "0:13"}, rows_mix=True), output="out")
class TwoBatchesInOne(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 13), out=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x), self.a(-x)], dim=0).relu())


@site_case(output="out", why={"a b": TIED})
class StackedLast(Net):
    """Stacked, so both must keep equally many; but nothing ties the neurons of the one to those of the other."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 10), b=linear(IN, 10), out=linear(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.a(x), self.b(x)], dim=-1).relu().flatten(1))


@site_case(Truth({"a": "0:10"}, {"out": "0:20:2 | 1:20:2"}, fixed=("input",)), output="out")
class StackedWithItself(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 10), out=linear(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(torch.stack([h.relu(), h * x[:, :1]], dim=-1).flatten(1))


@site_case(output="out", why={"a b": TIED})
class StackedFirst(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 10), b=linear(IN, 10), out=linear(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.a(x), self.b(x)], dim=1).relu().flatten(1))


@site_case(
    Truth({"a": "0:10"}, {"b": "0:10", "c": "0:10", "out": "0:10"}, norm("norm", "0:10"), fixed=("b", "c")),
    Truth({"b": "0:8"}, {"c": "10:18", "out": "10:18"}, norm("norm", "10:18"), fixed=("a", "c")),
    Truth({"c": "0:6"}, {"out": "18:24"}, norm("norm", "18:24"), fixed=("a", "b")),
    output="out",
)
class DenseMLP(Net):
    """Each layer reads all before it; the last batch norm holds something of each."""

    def __init__(self) -> None:
        super().__init__(
            a=linear(IN, 10), b=linear(10, 8), c=linear(18, 6), norm=nn.BatchNorm1d(24), out=linear(24, OUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = torch.cat([h, self.b(h.relu())], dim=1)
        h = torch.cat([h, self.c(h.relu())], dim=1)
        return self.out(self.norm(h).relu())


@site_case(
    Truth({"a": "0:10"}, {"out": "7:17"}, norm("norm", "7:17"), fixed=("input",)),
    output="out",
)
class NormedWithTheInput(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 10), norm=nn.BatchNorm1d(17), out=linear(17, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(torch.cat([x, self.a(x)], dim=1)).relu())


@site_case(Truth({"a": "12:24"}, {"b": "0:12"}), Truth({"b": "0:12"}, {"out": "12:24"}, fixed=("a",)), output="out")
class HalfGoesOn(Net):
    """The halves of one layer go two ways; a first guess takes both for one site.

    Where the first half ends is written down, so only the second may be cut.
    """

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 24), b=linear(12, 12), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.out(torch.cat([h[:, :12], self.b(h[:, 12:]).relu()], dim=1))


@site_case(output="out", why={"a b": TIED})
class WrittenPlaces(Net):
    """Values are put where the code says."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 10), b=linear(IN, 12), out=linear(22, OUT))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).relu(), self.b(x).relu()
        h = x.new_zeros(len(x), 22)
        h[:, :10] = a
        h[:, 10:] = b
        return self.out(h)


@site_case(Truth({"a": "0:12"}, {"out": "11:-1:-1"}), output="out")
class Reversed(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().flip(1))


@site_case(output="out", why={"a": "cannot be cut"})
class Rolled(Net):
    """After a cut, rolling by three would put other neurons in the columns."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().roll(3, 1))


@site_case(
    Truth({"a": "0:13"}, {"out": "6:19"}, fixed=("input",)),
    output="out",
    batch=lambda rows: (torch.randn(rows, IN), torch.randint(4, (rows,))),
    call=lambda model, batch: model(*batch),
)
class CategoryBeside(Net):
    def __init__(self) -> None:
        super().__init__(table=nn.Embedding(4, 6), a=linear(IN, 13), out=linear(19, OUT))

    def forward(self, x: Tensor, category: Tensor) -> Tensor:
        return self.out(torch.cat([self.table(category), self.a(x).relu()], dim=1))


@site_case(
    Truth({"a": "0:12"}, {"out": "0:12"}, {"table.weight@1": "0:12"}, fixed=("input",)),
    output="out",
    batch=lambda rows: (torch.randn(rows, IN), torch.randint(4, (rows,))),
    call=lambda model, batch: model(*batch),
)
class CategoryAdded(Net):
    """A table's columns are units too; its rows are not."""

    def __init__(self) -> None:
        super().__init__(table=nn.Embedding(4, 12), a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor, category: Tensor) -> Tensor:
        return self.out((self.a(x) + self.table(category)).relu())


@site_case(
    Truth({"stem": "0:9"}, {"a": "0:9", "out": "0:9"}, fixed=("a",)),
    Truth({"a": "0:11"}, {"out": "9:20"}, fixed=("stem",)),
    output="out",
)
class SkipByConcatenation(Net):
    def __init__(self) -> None:
        super().__init__(stem=linear(IN, 9), a=linear(9, 11), out=linear(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        return self.out(torch.cat([h, F.gelu(self.a(h))], dim=1))


@site_case(
    Truth({"stem": "0:14", "b": "0:14"}, {"a": "0:14", "out": "0:14"}, {**norm("norm", "0:14")}),
    Truth({"a": "0:10"}, {"b": "0:10"}),
    output="out",
)
class TabularResNet(Net):
    def __init__(self) -> None:
        super().__init__(
            stem=linear(IN, 14), norm=nn.BatchNorm1d(14), a=linear(14, 10), b=linear(10, 14), out=linear(14, OUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.b(self.a(self.norm(h)).relu())
        return self.out(h.relu())


@site_case(
    Truth({"stem": "0:14", "b": "0:14", "d": "0:14"}, {"a": "0:14", "c": "0:14", "out": "0:14"}),
    Truth({"a": "0:10"}, {"b": "0:10"}),
    Truth({"c": "0:8"}, {"d": "0:8"}),
    output="out",
)
class ResidualInPlace(Net):
    def __init__(self) -> None:
        super().__init__(
            stem=linear(IN, 14),
            a=linear(14, 10),
            b=linear(10, 14),
            c=linear(14, 8),
            d=linear(8, 14),
            out=linear(14, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h += self.b(self.a(h.relu()).relu_())
        h.add_(self.d(self.c(h.tanh()).relu_()))
        return self.out(h.relu_())


@site_case(
    Truth({"a": "0:12"}, {"out": "0:12"}, fixed=("input",)),
    output="out",
)
class ScaledByTheInput(Net):
    """De-normalised by what the input was normalised with: a value of each row."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        return self.out(self.a((x - mean) / deviation).relu() * deviation + mean)


@site_case(Truth({"a": "0:12"}, {"out": "0:12 | 12:24"}), output="out")
class SiameseDifferently(Net):
    """Two calls of one layer with a function of its own behind each."""

    def __init__(self) -> None:
        super().__init__(a=linear(3, 12), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x[:, :3]).relu(), self.a(x[:, 3:6]).tanh()], dim=1))


@site_case(
    Truth({"stem": "0:12", "b": "0:12"}, {"a": "0:12", "out": "0:12"}, {"gain": "0:12"}),
    Truth({"a": "0:9"}, {"b": "0:9"}),
    output="out",
)
class ResidualScaled(Net):
    """A learned gain of every neuron, and a branch that training leaves out at random."""

    def __init__(self) -> None:
        super().__init__(
            stem=linear(IN, 12),
            a=linear(12, 9),
            b=linear(9, 12),
            gain=nn.Parameter(torch.rand(12)),
            out=linear(12, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        branch = self.gain * self.b(self.a(h).relu())
        if self.training:
            branch = branch * torch.bernoulli(torch.full_like(x[:, :1], 0.8)) / 0.8
        return self.out((h + branch).tanh())
