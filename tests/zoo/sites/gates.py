"""Layers whose values multiply each other, or of whose values the largest passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, PARTNER, TIED, Net, Truth, linear, site_case, tokens


@site_case(Truth({"gate": "0:20", "up": "0:20"}, {"down": "0:20"}), output="down", batch=tokens())
class SwiGLU(Net):
    def __init__(self) -> None:
        super().__init__(
            up=linear(IN, 20, bias=False), gate=linear(IN, 20, bias=False), down=linear(20, OUT, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


@site_case(Truth({"both": "0:18 | 18:36"}, {"down": "0:18"}), output="down")
class GEGLU(Net):
    """Both factors in one layer, halved."""

    def __init__(self) -> None:
        super().__init__(both=linear(IN, 36), down=linear(18, OUT))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


@site_case(Truth({"both": "0:11 | 11:22"}, {"down": "0:11"}), output="down", batch=tokens(3))
class GLU(Net):
    def __init__(self) -> None:
        super().__init__(both=linear(IN, 22), act=nn.GLU(), down=linear(11, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.both(x)))


@site_case(output="down", why={"both": "cannot be cut"})
class ReGLUWithWrittenSizes(Net):
    """The code says where the halves are, so it would not find them in fewer rows."""

    def __init__(self) -> None:
        super().__init__(both=linear(IN, 28), down=linear(14, OUT))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).split(14, dim=-1)
        return self.down(value * gate.relu())


@site_case(output="down", why={"both": "cannot be cut"})
class HalvesBySlices(Net):
    def __init__(self) -> None:
        super().__init__(both=linear(IN, 28), down=linear(14, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.both(x)
        return self.down(h[:, :14] * h[:, 14:].sigmoid())


@site_case(Truth({"both": "0:26/2"}, {"down": "0:13"}), output="down")
class Interleaved(Net):
    def __init__(self) -> None:
        super().__init__(both=linear(IN, 26), down=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.both(x)
        return self.down(h[..., ::2] * h[..., 1::2].sigmoid())


@site_case(Truth({"pieces": "0:27/3"}, {"out": "0:9"}), output="out")
class MaxoutOfNeighbours(Net):
    def __init__(self) -> None:
        super().__init__(pieces=linear(IN, 27), out=linear(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pieces(x).view(len(x), -1, 3).max(dim=-1)[0])


@site_case(Truth({"pieces": "0:24%8"}, {"out": "0:8"}), output="out")
class MaxoutOfBlocks(Net):
    def __init__(self) -> None:
        super().__init__(pieces=linear(IN, 24), out=linear(8, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pieces(x).unflatten(-1, (3, -1)).amax(dim=1))


@site_case(Truth({"pieces": "0:20/2"}, {"out": "0:10"}), output="out")
class MaxoutByPooling(Net):
    def __init__(self) -> None:
        super().__init__(pieces=linear(IN, 20), out=linear(10, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.max_pool1d(self.pieces(x)[:, None], 2)[:, 0])


@site_case(Truth({"one": "0:13", "two": "0:13", "three": "0:13"}, {"out": "0:13"}), output="out")
class MaxoutOfLayers(Net):
    def __init__(self) -> None:
        super().__init__(one=linear(IN, 13), two=linear(IN, 13), three=linear(IN, 13), out=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.stack([self.one(x), self.two(x), self.three(x)]).amax(0))


@site_case(Truth({"update": "0:15", "new": "0:15", "old": "0:15"}, {"out": "0:15"}), output="out")
class GRULike(Net):
    def __init__(self) -> None:
        super().__init__(update=linear(IN, 15), new=linear(IN, 15), old=linear(IN, 15), out=linear(15, OUT))

    def forward(self, x: Tensor) -> Tensor:
        z = self.update(x).sigmoid()
        return self.out((1 - z) * self.new(x).tanh() + z * self.old(x))


@site_case(
    Truth({"one": "0:16"}, {"two": "0:16"}),
    Truth({"two": "0:12"}, {"gate": "0:12"}),
    output="out",
    why={"skip gate": "columns mix"},
)
class GatedResidualNetwork(Net):
    """Of the temporal fusion transformer; a layer norm closes it."""

    def __init__(self) -> None:
        super().__init__(
            skip=linear(IN, 10),
            one=linear(IN, 16),
            two=linear(16, 12),
            gate=linear(12, 20),
            norm=nn.LayerNorm(10),
            out=linear(10, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.skip(x) + F.glu(self.gate(self.two(F.elu(self.one(x)))))))


@site_case(
    Truth({"one": "0:16"}, {"gate": "0:16"}),
    Truth({"skip": "0:11", "gate": "0:11 | 11:22"}, {"out": "0:11"}),
    output="out",
)
class GatedResidualWithoutNorm(Net):
    def __init__(self) -> None:
        super().__init__(skip=linear(IN, 11), one=linear(IN, 16), gate=linear(16, 22), out=linear(11, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.skip(x) + F.glu(self.gate(F.elu(self.one(x)))))


@site_case(
    Truth({"body": "0:14", "film": "0:14 | 14:28"}, {"out": "0:14"}),
    Truth({"context": "0:9"}, {"film": "0:9"}),
    output="out",
    batch=lambda rows: (torch.randn(rows, IN), torch.randn(rows, 4)),
    call=lambda model, batch: model(*batch),
)
class FiLM(Net):
    def __init__(self) -> None:
        super().__init__(body=linear(IN, 14), context=linear(4, 9), film=linear(9, 28), out=linear(14, OUT))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, shift = self.film(F.silu(self.context(condition))).chunk(2, dim=-1)
        return self.out(F.relu((1 + gain) * self.body(x) + shift))


@site_case(Truth({"a": "0:12", "b": "0:12", "c": "0:12"}, {"out": "0:12"}), output="out")
class ThreeFactors(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), b=linear(IN, 12), c=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).tanh() * self.b(x).sigmoid() * self.c(x))


@site_case(Truth({"a": "0:14", "b": "0:14"}, {"out": "0:14"}), output="out")
class ByEinsum(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 14), b=linear(IN, 14), out=linear(14, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.einsum("bi,bi->bi", self.a(x).tanh(), self.b(x)))


@site_case(
    Truth({"shared": "0:13", "one": "0:13", "two": "0:13"}, {"left": "0:13", "right": "0:13"}), output="left right"
)
class InTwoProducts(Net):
    def __init__(self) -> None:
        super().__init__(
            shared=linear(IN, 13), one=linear(IN, 13), two=linear(IN, 13), left=linear(13, OUT), right=linear(13, OUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(x).relu()
        return self.left(h * self.one(x)) + self.right(h * self.two(x))


@site_case(Truth({"gate": "0:16", "up": "0:16"}, {"down": "0:16", "side": "0:16"}), output="down side")
class GateReadElsewhere(Net):
    """Two reads of one site with different functions need two mixes."""

    def __init__(self) -> None:
        super().__init__(gate=linear(IN, 16), up=linear(IN, 16), down=linear(16, OUT), side=linear(16, OUT))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.down(F.silu(gate) * self.up(x)) + self.side(gate.tanh())


@site_case(output="gate down", why={"up": (*PARTNER, "is the model's output")})
class GateIsOutput(Net):
    def __init__(self) -> None:
        super().__init__(gate=linear(IN, 16), up=linear(IN, 16), down=linear(16, OUT))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(x)
        return self.down(gate.sigmoid() * self.up(x)), gate


@site_case(Truth({"up": "0:13"}, {"down": "0:13"}, fixed=("gate",)), output="down", why={"gate": ()})
class GateOfOneColumn(Net):
    """One value gates all neurons of a row: they are no single unit for that."""

    def __init__(self) -> None:
        super().__init__(up=linear(IN, 13), gate=linear(IN, 1), down=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu() * self.gate(x).sigmoid())


@site_case(output="down", why={"gate": "columns mix", "up": PARTNER})
class SoftmaxGate(Net):
    """Refused with its partner: whatever is cut of the one must be cut of the other."""

    def __init__(self) -> None:
        super().__init__(up=linear(IN, 14), gate=linear(IN, 14), down=linear(14, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.gate(x).softmax(-1))


@site_case(
    Truth({"a": "0:12", "gate": "0:12"}, {"down": "0:12"}, fixed=("b",)),
    Truth({"b": "0:8", "gate": "12:20"}, {"down": "12:20"}, fixed=("a",)),
    output="down",
)
class GateOverConcatenation(Net):
    """One layer in two sites."""

    def __init__(self) -> None:
        super().__init__(gate=linear(IN, 20), a=linear(IN, 12), b=linear(IN, 8), down=linear(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return self.down(gate * torch.cat([self.a(x), self.b(x)], dim=1))


@site_case(Truth({"gate": "0:14", "up": "0:14"}, {"down": "0:14", "side": "0:14"}), output="down side")
class ChangedAfterUse(Net):
    """The gate is changed in place after the product has read it."""

    def __init__(self) -> None:
        super().__init__(gate=linear(IN, 14), up=linear(IN, 14), down=linear(14, OUT), side=linear(14, OUT))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        product = gate.sigmoid() * self.up(x)
        gate.relu_()
        return self.down(product) + self.side(gate)


@site_case(
    Truth({"stem": "0:13", "keep": "0:13", "new": "0:13"}, {"keep": "0:13", "new": "0:13", "out": "0:13"}), output="out"
)
class Highway(Net):
    """The layers that gate the stream read it too."""

    def __init__(self) -> None:
        super().__init__(stem=linear(IN, 13), keep=linear(13, 13), new=linear(13, 13), out=linear(13, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        t = self.keep(h).sigmoid()
        return self.out(t * self.new(h).relu() + (1 - t) * h)


@site_case(output="out", why={"keep new": TIED})
class HighwayOverTheInput(Net):
    """The input has as many columns as the layers have neurons and is not cut."""

    def __init__(self) -> None:
        super().__init__(keep=linear(IN, IN), new=linear(IN, IN), out=linear(IN, OUT))

    def forward(self, x: Tensor) -> Tensor:
        t = self.keep(x).sigmoid()
        return self.out(t * self.new(x).relu() + (1 - t) * x)


@site_case(
    Truth({"expert0": "0:12", "expert1": "0:12", "expert2": "0:12"}, {"out": "0:12"}, fixed=("router",)),
    output="out",
    why={"router": "columns mix"},
)
class SoftMixtureOfExperts(Net):
    def __init__(self) -> None:
        experts = {f"expert{number}": linear(IN, 12) for number in range(3)}
        super().__init__(router=linear(IN, 3), out=linear(12, OUT), **experts)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        experts = (self.expert0, self.expert1, self.expert2)
        return self.out(sum(shares[:, at, None] * expert(x).relu() for at, expert in enumerate(experts)))


@site_case(
    Truth({"left": "0:6"}, {"out": "0:30/5"}, fixed=("right",)),
    Truth({"right": "0:5"}, {"out": "0:30%5"}, fixed=("left",)),
    output="out",
)
class OuterProduct(Net):
    """Two sites that read the same columns, divided in two ways."""

    def __init__(self) -> None:
        super().__init__(left=linear(IN, 6), right=linear(IN, 5), out=linear(30, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.left(x)[:, :, None] * self.right(x)[:, None, :]).tanh().flatten(1))


@site_case(output="out", why={"a b": "columns mix"})
class InnerProduct(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), b=linear(IN, 12), out=linear(2, OUT))

    def forward(self, x: Tensor) -> Tensor:
        product = self.a(x) * self.b(x)
        return self.out(torch.stack([product.sum(-1), product.square().sum(-1)], dim=-1))


@site_case(
    Truth(
        {"of_input": "0:9 | 9:18 | 18:27 | 27:36", "of_state": "0:9 | 9:18 | 18:27 | 27:36"},
        {"of_state": "0:9", "out": "0:9"},
    ),
    output="out",
    batch=tokens(3),
)
class LSTMLike(Net):
    """Four gates in each of two layers, one of which reads the state that it makes."""

    def __init__(self) -> None:
        super().__init__(of_input=linear(IN, 36), of_state=linear(9, 36, bias=False), out=linear(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        i, _, g, o = self.of_input(x[:, 0]).chunk(4, dim=-1)
        cell = i.sigmoid() * g.tanh()
        state = o.sigmoid() * cell.tanh()
        for step in range(1, x.shape[1]):
            i, f, g, o = (self.of_input(x[:, step]) + self.of_state(state)).chunk(4, dim=-1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
        return self.out(state)


@site_case(
    Truth({"of_input": "0:12", "of_state": "0:12"}, {"of_state": "0:12", "out": "0:12"}), output="out", batch=tokens(3)
)
class Recurrent(Net):
    def __init__(self) -> None:
        super().__init__(of_input=linear(IN, 12), of_state=linear(12, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.of_input(x[:, 0]).tanh()
        for step in range(1, x.shape[1]):
            h = torch.tanh(self.of_input(x[:, step]) + self.of_state(h))
        return self.out(h)


@site_case(output="out", why={"of_input of_state": ()}, batch=tokens(3))
class RecurrentFromZeros(Net):
    """The first state has a written size, and the layer that reads it is not fed by the site alone."""

    def __init__(self) -> None:
        super().__init__(of_input=linear(IN, 12), of_state=linear(12, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 12)
        for step in range(x.shape[1]):
            h = torch.tanh(self.of_input(x[:, step]) + self.of_state(h))
        return self.out(h)


@site_case(Truth({"both": "0:12 | 12:24"}, {"down": "0:12"}), output="down", batch=tokens(3))
class ReGLU(Net):
    def __init__(self) -> None:
        super().__init__(both=linear(IN, 24, bias=False), down=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = torch.tensor_split(self.both(x), 2, dim=-1)
        return self.down(gate.relu() * value)


def _autocast(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


@site_case(Truth({"gate": "0:12", "up": "0:12"}, {"down": "0:12"}), output="down", call=_autocast)
class InHalfPrecision(Net):
    """The layers put out bfloat16; what lies between goes back and forth."""

    def __init__(self) -> None:
        super().__init__(gate=linear(IN, 12), up=linear(IN, 12), down=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x).float()).to(torch.bfloat16) * self.up(x))
