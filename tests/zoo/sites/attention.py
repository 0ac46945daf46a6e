"""Attention: values and the layer that reads them, heads, and what stays refused."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, PARTNER, Net, Truth, linear, site_case, tokens


class Attention(Net):
    """Queries, keys and values, each from a layer of its own."""

    def __init__(self, inner: int = 8, value: int = 12, read: int | None = None) -> None:
        super().__init__(q=linear(IN, inner), k=linear(IN, inner), v=linear(IN, value), o=linear(read or value, OUT))


@site_case(
    Truth({"v": "0:12"}, {"o": "0:12"}, fixed=("q", "k"), rows_mix=True),
    output="o",
    why={"q k": "columns mix"},
    batch=tokens(),
)
class OneHead(Attention):
    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


@site_case(
    Truth({"v": "0:12"}, {"o": "0:12"}, fixed=("q", "k", "input"), rows_mix=True),
    output="o",
    why={"q k": "columns mix"},
    batch=tokens(),
)
class MaskedByTheInput(Attention):
    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 3
        scores = scores.masked_fill((x[:, None, :, 0] < -1.0), -1e4)
        return self.o(scores.softmax(dim=-1) @ self.v(x))


@site_case(
    Truth({"v": "0:12"}, {"o": "0:12"}, fixed=("weights",), rows_mix=True),
    output="o",
    why={"weights": "columns mix"},
    batch=tokens(5),
)
class WeightsOfALayer(Net):
    def __init__(self) -> None:
        super().__init__(weights=linear(IN, 5), v=linear(IN, 12), o=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.weights(x).softmax(dim=-1) @ self.v(x))


@site_case(
    Truth({"u": "0:12", "v": "0:12"}, {"o": "0:12"}, fixed=("q", "k"), rows_mix=True),
    output="o",
    why={"q k": "columns mix"},
    batch=tokens(),
)
class GatedAttentionUnit(Net):
    def __init__(self) -> None:
        super().__init__(q=linear(IN, 6), k=linear(IN, 6), v=linear(IN, 12), u=linear(IN, 12), o=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2)).relu().square()
        return self.o(self.u(x) * (weights @ self.v(x)))


@site_case(
    Truth({"v": "0:12"}, {"o": "0:12"}, fixed=("q", "k"), rows_mix=True),
    output="o",
    why={"q k": "columns mix"},
    batch=tokens(),
)
class LinearAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1
        return self.o(q @ (k.transpose(1, 2) @ self.v(x)))


@site_case(
    Truth({"v": "0:12%6"}, {"o": "0:12%6"}, fixed=("q", "k"), rows_mix=True),
    output="o",
    why={"q k": PARTNER},
    batch=tokens(),
)
class EqualCutsOfHeads(Attention):
    """The code says how many heads there are: each must lose as much as the others."""

    def heads(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (2, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.scaled_dot_product_attention(*(self.heads(layer(x)) for layer in (self.q, self.k, self.v)))
        return self.o(h.transpose(1, 2).flatten(2))


@site_case(
    Truth({"q": "0:12/4", "k": "0:12/4", "v": "0:15/5"}, {"o": "0:15/5"}, rows_mix=True),
    output="o",
    batch=tokens(),
)
class WholeHeads(Net):
    """The code says how wide a head is: whole heads may go, in all three layers at once."""

    def __init__(self) -> None:
        super().__init__(q=linear(IN, 12), k=linear(IN, 12), v=linear(IN, 15), o=linear(15, OUT))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k))
        v = self.v(x).unflatten(-1, (-1, 5)).transpose(1, 2)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@site_case(
    Truth({"qkv": "0:12/4 | 12:24/4 | 24:36/4"}, {"o": "0:12/4"}, rows_mix=True),
    output="o",
    batch=tokens(),
)
class PackedWholeHeads(Net):
    def __init__(self) -> None:
        super().__init__(qkv=linear(IN, 36), o=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 4)).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@site_case(output="o", why={"qkv": ("columns mix", "cannot be cut")}, batch=tokens())
class PackedOneHead(Net):
    """The values are a third of the layer's rows, and chunk would take other thirds of fewer."""

    def __init__(self) -> None:
        super().__init__(qkv=linear(IN, 36), o=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1)))


@site_case(
    Truth({"v": "0:6"}, {"o": "0:12%6"}, fixed=("q", "k"), rows_mix=True),
    Truth({"q": "0:8/4"}, {"o": "0:12/6"}, fixed=("k", "v")),
    output="o",
    why={"k": "columns mix"},
    batch=tokens(),
)
class MultiQuery(Net):
    """Heads of queries read the same keys and values: heads may go, and values of all of them."""

    def __init__(self) -> None:
        super().__init__(q=linear(IN, 8), k=linear(IN, 4), v=linear(IN, 6), o=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, 4)).transpose(1, 2)
        k, v = self.k(x)[:, None], self.v(x)[:, None]
        h = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
        return self.o(h.transpose(1, 2).flatten(2))


@site_case(
    Truth({"v": "0:10"}, {"o": "0:10"}, fixed=("q", "k"), rows_mix=True),
    Truth({"one": "0:13"}, {"two": "0:13"}),
    output="out",
    why={"embed": "columns mix", "o two": PARTNER, "q k": "columns mix"},
    batch=tokens(),
)
class TransformerBlock(Net):
    """Layer norms read the residual stream, so its neurons stay; those between its reads do not."""

    def __init__(self) -> None:
        super().__init__(
            embed=linear(IN, 8),
            first=nn.LayerNorm(8),
            q=linear(8, 6),
            k=linear(8, 6),
            v=linear(8, 10),
            o=linear(10, 8),
            second=nn.LayerNorm(8),
            one=linear(8, 13),
            two=linear(13, 8),
            out=linear(8, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        n = self.first(h)
        h = h + self.o(F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n)))
        h = h + self.two(F.gelu(self.one(self.second(h))))
        return self.out(h)


@site_case(
    Truth({"linear1": "0:14"}, {"linear2": "0:14"}),
    why={"linear2": ("columns mix", "no consumer", "is the model's output"), "self_attn.out_proj": "weight shared"},
    batch=lambda rows: torch.randn(rows, 4, 8),
)
def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 14, batch_first=True)


@site_case(output="out", why={"a": "columns mix"})
class LayerNormBehind(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), norm=nn.LayerNorm(12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.a(x)).relu())


@site_case(output="out", why={"a": "columns mix"})
class RootMeanSquareNorm(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), scale=nn.Parameter(torch.rand(12)), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(self.scale * h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
