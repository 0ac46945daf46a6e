"""Models that differ in what lies between a layer and its consumers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import IN, OUT, ROWS, WIDTH, Base, between, case


@case("0 2", **{"4": "is the model's output"})
def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))


@case("0")
def linear_directly_on_linear() -> nn.Module:
    return between()


@case("fc1", "", fc1__layer="activation in code", fc2="is the model's output")
class FunctionalMLP(Base):
    def middle(self, h: Tensor) -> Tensor:
        return F.relu(h)


@case("fc1", "", fc1__layer="activation in code")
class TensorMethodMLP(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h.clamp(min=0) * torch.sigmoid(1.5 * h) - 0.25


@case("fc1", "", fc1__layer="activation in code")
class InPlaceCode(Base):
    def middle(self, h: Tensor) -> Tensor:
        h += 1
        h.relu_()
        h[h > 2.0] = 2.0
        return h


@case("0 2")
def in_place_module() -> nn.Module:
    return nn.Sequential(
        nn.Linear(IN, WIDTH),
        nn.ReLU(inplace=True),
        nn.Linear(WIDTH, WIDTH),
        nn.ELU(inplace=True),
        nn.Linear(WIDTH, OUT),
    )


@case("fc1 fc2", "", fc1__layer="activation shared", fc2__layer="activation shared")
class SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


class Scale(nn.Module):
    """A custom activation with a scale for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, WIDTH))
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, WIDTH)[None])

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z * F.softplus(self.scale)) + self.shift


class Swish(nn.Module):
    """A custom activation."""

    def forward(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(z)


@case("0")
def custom_activation() -> nn.Module:
    return between(Swish())


@case("0")
def per_channel_activation() -> nn.Module:
    return between(Scale())


class PlainTensor(nn.Module):
    """One value per neuron in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0.5, 2.0, WIDTH)

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale


@case("", "0", **{"0__neurons": "cannot be cut"})
def unregistered_scale() -> nn.Module:
    return between(PlainTensor())


@case("0")
def prelu_one() -> nn.Module:
    return between(nn.PReLU())


@case("0")
def prelu_per_neuron() -> nn.Module:
    return between(nn.PReLU(WIDTH))


@case("0 3")
def dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(IN, WIDTH),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(WIDTH, WIDTH),
        nn.Dropout(0.2),
        nn.Linear(WIDTH, OUT),
    )


@case("fc1", "", fc1__layer="activation in code")
class FunctionalDropout(Base):
    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, self.training)


@case("0")
def batch_norm_before() -> nn.Module:
    return between(nn.BatchNorm1d(WIDTH), nn.Tanh())


@case("0")
def batch_norm_after() -> nn.Module:
    return between(nn.ReLU(), nn.BatchNorm1d(WIDTH, affine=False))


@case("", **{"0": "columns mix"})
def layer_norm() -> nn.Module:
    return between(nn.LayerNorm(WIDTH), nn.ReLU())


@case("", **{"0": "columns mix"})
def softmax() -> nn.Module:
    return between(nn.Softmax(-1))


@case("fc1", "", fc1__layer="rows mix")
class RowsMix(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h - h.mean(0)


@case("", fc1="random in eval")
class RandomInEval(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h)


@case("fc1", "", fc1__layer="changes size")
class ChangesSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(IN, 2 * WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.glu(self.fc1(x)))


@case("fc1", "", fc1__layer="rows mix", batch=lambda: torch.randn(4, 3, IN))
class Transposed(Base):
    def middle(self, h: Tensor) -> Tensor:
        return h.transpose(0, 1)


@case("fc1", "", fc1__layer="rows differ")
class PositionalParameter(Base):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(2 * ROWS, WIDTH))

    def middle(self, h: Tensor) -> Tensor:
        return h + self.position[: h.shape[0]]


@case("", fc1="differs in train mode")
class LoggedInTraining(Base):
    def middle(self, h: Tensor) -> Tensor:
        self.size = h.norm().item() if self.training else 0.0
        return h


@case("fc1", "", fc1__layer="activation in code", batch=lambda: torch.randn(WIDTH, IN))
class SizesInCode(Base):
    """As many rows as neurons, and both written down."""

    def middle(self, h: Tensor) -> Tensor:
        b, w = h.shape
        return h.view(b, 1, w).view(-1, w).tanh() + h.new_zeros(b, 1)
