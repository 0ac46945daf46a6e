"""Models that differ in who feeds whom, and in how they are called."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from tests.zoo.case import IN, OUT, ROWS, WIDTH, Base, case


@case("trunk", a="is the model's output", b="is the model's output")
class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.act = nn.Linear(IN, WIDTH), nn.Tanh()
        self.a, self.b = nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.act(self.trunk(x))
        return self.a(h), self.b(h)


@case("fc1", "", fc1__layer="activation in code")
class ResidualInside(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()

    def middle(self, h: Tensor) -> Tensor:
        return h + self.act(h)


@case("fc1 stem", "fc1", stem__layer="joined by")
class ResidualAround(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.act = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()
        self.fc2, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.fc2(self.act(self.fc1(x))))


@case("fc1 fc2", "", fc1__layer="joined by", fc2__layer="joined by")
class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(IN, WIDTH), nn.Linear(IN, WIDTH), nn.Linear(2 * WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.fc1(x).relu(), self.fc2(x)], -1))


@case("fc1", "", fc1__layer="joined by")
class Gating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.gate, self.head = nn.Linear(IN, WIDTH), nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc1(x) * torch.sigmoid(self.gate(x)))


@case("", fc1="weight shared", a="weight shared", b="weight shared")
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.a, self.b = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight
        self.head, self.act = nn.Linear(WIDTH, OUT), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.act(self.a(self.act(self.fc1(x))))))


@case("", fc1="weight shared", fc2="is the model's output")
class TransposedUse(Base):
    def __init__(self) -> None:
        super().__init__(out=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x))) @ self.fc1.weight


@case("", **{"0": "weight computed", "2": "weight computed"})
def parametrized() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), weight_norm(nn.Linear(WIDTH, WIDTH)), nn.Linear(WIDTH, OUT))


@case("fc1", "", fc1__layer="joined by")
class ConsumerShared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(IN, WIDTH), nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc1(x).relu()) + self.head(self.fc2(x).tanh())


@case("", fc1="value read by code")
class Branch(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h.relu() if h.mean() > 0 else h.tanh()


@case("", fc1="differs in train mode")
class TrainOnlyBranch(Base):
    def forward(self, x: Tensor) -> Any:
        h = self.fc1(x)
        out = self.fc2(h.relu())
        return out + h.mean() if self.training else out


@case("", fc1="no consumer")
class Unconsumed(Base):
    def middle(self, h: Tensor) -> Tensor:
        self.last_norm = h.norm()
        return h


@case("fc1", unused="never called")
class NeverCalled(Base):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)


class Doubled(nn.Linear):
    """A Linear that computes something else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name of the method that it overrides
        return super().forward(2 * input)


@case("", **{"0": "forward overridden"})
def overridden_forward() -> nn.Module:
    return nn.Sequential(Doubled(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUT))


@case("body.fc1 body.fc2", head="is the model's output")
class CalledTwice(nn.Module):
    """A siamese network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.fc1, self.body.act = nn.Linear(IN, WIDTH), nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Tanh())
        self.body.fc2, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.head(self.body.fc2(self.body.act(self.body.fc1(x * sign)))) for sign in (1, -1))


@case("fc1", "", fc1__layer="activation in code", batch=lambda: torch.randn(4, 3, IN))
class Tokens(Base):
    """Leading dimensions that are flattened on the way, with sizes written down."""

    def middle(self, h: Tensor) -> Tensor:
        b, t, w = h.shape
        return torch.tanh(h.contiguous()).view(b * t, w)


@case(
    "linear1",
    "",
    linear1__layer="activation in code",
    linear2="is the model's output",
    batch=lambda: torch.randn(4, 3, WIDTH),
)
def transformer_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)


@case("layers.0.linear1 layers.1.linear1", batch=lambda: torch.randn(4, 3, WIDTH))
def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, activation=nn.ReLU(), batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def _checkpointed(reentrant: bool) -> type[nn.Module]:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
            self.head = nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor) -> Tensor:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="None of the inputs")  # reentrant, under no_grad
                return self.head(checkpoint(self.block, x, use_reentrant=reentrant))

    return Checkpointed


@case("block.0 block.2")
def checkpointed() -> nn.Module:
    return _checkpointed(reentrant=False)()


@case("block.0 block.2")
def checkpointed_reentrant() -> nn.Module:
    return _checkpointed(reentrant=True)()


class Negated(torch.autograd.Function):
    """A function written in Python; what it calls is seen."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return -z.relu()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


@case("fc1", "", fc1__layer="activation in code")
class AutogradFunction(Base):
    def middle(self, h: Tensor) -> Tensor:
        return Negated.apply(h)


def _autocast(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(batch)


@case("0 2", call=_autocast)
def autocast() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))


@case("fc1", "", fc1__layer="activation in code", call=_autocast)
class Casts(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h.float().tanh().to(h.dtype)


@case("fc1", batch=lambda: {"x": torch.randn(ROWS, IN), "scale": 2.0}, call=lambda model, batch: model(**batch))
class DictInput(Base):
    def forward(self, x: Tensor, scale: float) -> dict[str, Tensor]:
        return {"y": self.fc2(self.fc1(x * scale))}


@dataclass
class Pair:
    """A batch as a dataclass."""

    x: Tensor
    mask: Tensor | None = None


@case("fc1", batch=lambda: Pair(torch.randn(ROWS, IN)))
class DataclassInput(Base):
    def forward(self, x: Pair) -> Pair:  # type: ignore[override]
        return Pair(super().forward(x.x))


class CalledStraight(nn.Module):
    """Layers are called from the step itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.act = (
            nn.Linear(IN, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, OUT),
            nn.ReLU(),
        )

    def step(self, batch: Tensor) -> Tensor:
        return self.fc3(F.softplus(self.fc2(self.act(self.fc1(batch)))))


@case("fc1 fc2", "fc1", fc2__layer="activation in code", call=lambda model, batch: model.step(batch))
def called_straight() -> nn.Module:
    return CalledStraight()


@case(
    "encoder.0 decoder.0",
    batch=lambda: torch.randn(ROWS, IN),
    mu="is the model's output",
    logvar="random in eval",
    call=lambda model, batch: model.step(batch),
)
class Autoencoder(nn.Module):
    """A variational autoencoder; its sample is drawn between the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(IN, WIDTH), nn.ReLU())
        self.mu, self.logvar = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)
        self.decoder = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, IN))

    def step(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        return self.decoder(mu + torch.randn_like(mu) * (0.5 * logvar).exp()), mu.square().sum(-1)


@case("generator.0 discriminator.0", call=lambda model, batch: model.step(batch))
class Adversarial(nn.Module):
    """Two networks with an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, IN))
        self.discriminator = nn.Sequential(nn.Linear(IN, WIDTH), nn.LeakyReLU(), nn.Linear(WIDTH, 1))

    def step(self, x: Tensor) -> tuple[Tensor, ...]:
        fake = self.generator(torch.randn_like(x))
        return self.discriminator(x), self.discriminator(fake.detach()), self.discriminator(fake)


class Hidden(nn.Module):
    """An activation that torch's function modes do not see."""

    def forward(self, z: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return z.exp()


@case("", fc1="lost from sight in 'act'")
class OutOfSight(Base):
    def __init__(self) -> None:
        super().__init__()
        self.act = Hidden()

    def middle(self, h: Tensor) -> Tensor:
        return self.act(h)


@case("fc1", "", fc1__layer="calls disagree")
class CallsDisagree(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu()) + self.fc2(self.fc1(-x).tanh())


@case("", fc1="columns mix", **{"attention.out_proj": "weight shared", "fc2": "is the model's output"})
class Attention(Base):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def middle(self, h: Tensor) -> Tensor:
        return h + self.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]


@case("body.fc1")
class CumulativeStatistics(nn.Module):
    """Batch norm whose momentum differs from call to call, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Base()
        self.norm = nn.BatchNorm1d(WIDTH, momentum=None)
        self.body.middle = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.body(-x)


@case("", **{"body.fc1": "weight computed", "body.fc2": "weight computed"})
class FastWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Base()
        self.fast = nn.ParameterList(0.9 * parameter for parameter in self.body.parameters())

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: fast for (name, _), fast in zip(self.body.named_parameters(), self.fast, strict=True)}
        return torch.func.functional_call(self.body, weights, (x,))
