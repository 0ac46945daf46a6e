"""What must be refused, kept apart or looked at twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, TIED, Net, Truth, linear, site_case


class Behind(Net):
    """A layer, something behind it, and a layer that reads it."""

    def __init__(self, width: int = 12, **parts: nn.Module | Tensor) -> None:
        super().__init__(a=linear(IN, width), out=linear(width, OUT), **parts)

    def middle(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.middle(self.a(x)))


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, {"mask": "0:12"}), output="out")
class LearnedMask(Behind):
    def __init__(self) -> None:
        super().__init__(mask=nn.Parameter(torch.randn(12)))

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * self.mask.sigmoid()


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, {"mask": "0:12"}), output="out")
class BufferMask(Behind):
    def __init__(self) -> None:
        super().__init__(mask=torch.rand(12))

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * self.mask


@site_case(output="out", why={"a": "cannot be cut"})
class ConstantMask(Behind):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["mask"] = torch.rand(12)

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * self.mask


@site_case(output="out", why={"a": "cannot be cut"})
class UnsavedMask(Behind):
    """A buffer that no checkpoint holds could not be cut again on loading."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.rand(12), persistent=False)

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * self.mask


@site_case(Truth({"a": "0:12", "gate": "0:12"}, {"out": "0:12"}, {"act.weight": "0:12"}), output="out")
class DeadUnits(Net):
    """A third of the units are silent on every row that is ever probed."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), gate=linear(IN, 12), act=nn.PReLU(12), out=linear(12, OUT))
        with torch.no_grad():
            self.gate.bias[::3] -= 50

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.a(x)) * self.gate(x).relu())


@site_case(output="out", why={"a b": ("activation shared", *TIED)})
class SharedScale(Net):
    """A scale of two layers' neurons: cut with the ones it would be lost to the others."""

    def __init__(self) -> None:
        super().__init__(a=linear(3, 11), b=linear(4, 11), scale=nn.Parameter(torch.rand(11)), out=linear(22, OUT))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x[:, :3]).relu(), self.b(x[:, 3:]).relu()
        return self.out(torch.cat([a * self.scale, b * self.scale], dim=1))


@site_case(output="out", why={"a b": "activation shared"})
class SharedPReLU(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), b=linear(12, 12), act=nn.PReLU(12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.b(self.act(self.a(x)))))


@site_case(Truth({"a": "0:11"}, {"out": "0:11"}, {"scale": "0:11"}), output="out")
class ScaleOfSiblings(Net):
    """Used twice, but both times for the same units."""

    def __init__(self) -> None:
        super().__init__(a=linear(3, 11), scale=nn.Parameter(torch.rand(11)), out=linear(11, OUT))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x[:, :3]).relu(), self.a(x[:, 3:6]).relu()
        return self.out(a * self.scale - (b * self.scale).tanh())


@site_case(output="out", why={"a": "consumer shared"})
class ReaderOfOtherData(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, IN), out=linear(IN, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu()) + self.out(x)


@site_case(output="out", why={"a": TIED})
class InputResidual(Behind):
    def __init__(self) -> None:
        super().__init__(IN)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu() + x)


@site_case(
    Truth({"encoder": "0:12"}, {"mean": "0:12", "spread": "0:12"}),
    Truth({"decoder": "0:10"}, {"out": "0:10"}),
    output="out",
    why={"mean spread": "random in eval"},
)
class Variational(Net):
    def __init__(self) -> None:
        super().__init__(
            encoder=linear(IN, 12), mean=linear(12, 8), spread=linear(12, 8), decoder=linear(8, 10), out=linear(10, OUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x).relu()
        mean = self.mean(h)
        code = mean + torch.randn_like(mean) * self.spread(h).mul(0.5).exp()
        return self.out(self.decoder(code).relu())


@site_case(output="out", why={"a": "columns mix"})
class LargestPass(Behind):
    def middle(self, h: Tensor) -> Tensor:
        return torch.where(h >= h.topk(5, dim=1).values[:, -1:], h, 0.0)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}), output="out")
class RareSwitch(Behind):
    """Mixes where no probe goes, however loud: the check has to see it."""

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * (h.amax(dim=1, keepdim=True) < 1e6)


@site_case(output="out", why={"a": "columns mix"})
class LoudSwitch(Behind):
    """Mixes only where values are larger than any that were seen, but not out of a probe's reach."""

    def middle(self, h: Tensor) -> Tensor:
        return h.relu() * (h.abs().amax(dim=1, keepdim=True) < 12)


@site_case(output="out", why={"a": "value read by code", "gate": ()})
class Branching(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), gate=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.out(h * self.gate(x).sigmoid() if h.mean() < 9 else h)


@site_case(output="out", why={"a b": "weight shared"})
class TiedFactors(Net):
    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), b=linear(IN, 12), out=linear(12, OUT))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).tanh() * self.b(x))


@site_case(output="out", why={"a": ()})
class OneUnit(Behind):
    """Every column of the reader depends on both neurons."""

    def __init__(self) -> None:
        super().__init__(2)

    def middle(self, h: Tensor) -> Tensor:
        return torch.stack([h.sum(-1), h.prod(-1)], dim=-1)


@site_case(output="out", why={"a": "cannot be cut"})
class WrittenPermutation(Behind):
    def middle(self, h: Tensor) -> Tensor:
        return h[:, [3, 0, 7, 1, 11, 2, 4, 10, 5, 9, 6, 8]].relu()


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, {"gain@1": "0:12"}), output="out")
class TableOfUnits(Behind):
    """Several values of each unit in one tensor, and some tensors of no unit."""

    def __init__(self) -> None:
        super().__init__(gain=torch.randn(3, 12), share=torch.rand(3))

    def middle(self, h: Tensor) -> Tensor:
        return torch.einsum("bi,ki,k->bi", h, self.gain, self.share.softmax(0)).tanh()


@site_case(Truth({"a": "0:12"}, {"out": "0:24%12"}, {"knots": "0:12"}), output="out")
class Splines(Net):
    """Several features of each unit, side by side, as networks of splines have them."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), knots=nn.Parameter(torch.randn(12, 2)), out=linear(24, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.a(x)[:, :, None] - self.knots).transpose(1, 2).flatten(1))


@site_case(
    Truth({"a": "0:9", "b": "0:9"}, {"b": "0:9", "out": "0:9"}), Truth({"c": "0:8"}, {"d": "0:8"}), output="out d"
)
class UsedAcrossCalls(Net):
    """The tape's two heads share a body whose layer is called more often than its partner."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 9), b=linear(9, 9), out=linear(9, OUT), c=linear(IN, 8), d=linear(8, OUT))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x)
        for _ in range(3):
            h = h + self.b(h.tanh())
        return self.out(h), self.d(self.c(x).relu())


@site_case(output="out", why={"a": "differs in train mode", "gate": ()})
class GateInTraining(Net):
    """Cut alone, as eval mode would allow, the layer would not fit its gate in training."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), gate=linear(IN, 12), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.out(h * self.gate(x).sigmoid() if self.training else h)


@site_case(Truth({"a": "0:12"}, {"out": "0:12"}, {"mean": "0:12", "gain": "0:12"}), output="out")
class OwnNorm(Net):
    """A buffer that training writes."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), mean=torch.zeros(12), gain=nn.Parameter(torch.rand(12)), out=linear(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * h.mean(dim=0))
        return self.out((self.gain * (h - self.mean)).relu())


@site_case(
    output="out",
    why={"a": ("columns mix", "cannot be cut")},
    batch=lambda rows: (torch.randn(rows, IN), torch.randint(12, (rows, 4))),
    call=lambda model, batch: model(*batch),
)
class ChosenByTheInput(Net):
    """Each row says which neurons it wants."""

    def __init__(self) -> None:
        super().__init__(a=linear(IN, 12), out=linear(4, OUT))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        return self.out(self.a(x).relu().gather(1, choice))
