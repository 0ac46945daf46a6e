"""Models whose neurons are the channels of convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import OUT, WIDTH, case

SIDE, CHANNELS = 10, 2


def images() -> Tensor:
    return torch.randn(6, CHANNELS, SIDE, SIDE)


def convolution(width: int = WIDTH, channels: int = CHANNELS, **how) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, **how)


@case("0 4 9", "9", images, **{"0__layer": "convolution", "4__layer": "convolution"})
def vgg_like() -> nn.Module:
    return nn.Sequential(
        convolution(padding=1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.MaxPool2d(2),
        convolution(channels=WIDTH),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(WIDTH, WIDTH),
        nn.Tanh(),
        nn.Linear(WIDTH, OUT),
    )


@case("conv", "", images, fc="is the model's output")
class FlattenedMaps(nn.Module):
    """Every channel arrives as 64 columns of the Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = convolution(), nn.Linear(64 * WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).sigmoid()
        return self.fc(h.view(h.size(0), -1))


@case("conv", "", images)
class FlattenedByItsOwnSizes(FlattenedMaps):
    def forward(self, x: Tensor) -> Tensor:
        h = F.softplus(self.conv(x))
        size = 1
        for one in h.shape[1:]:
            size *= one
        return self.fc(h.view(-1, size))


@case("conv", "", images)
class GlobalMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = convolution(stride=2, bias=False), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.gelu(self.conv(x)).mean((2, 3)))


@case("a stem", "", images, stem__layer="joined by", a__layer="convolution")
class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(padding=1)
        self.a = convolution(channels=WIDTH, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.b = convolution(channels=WIDTH, padding=1, padding_mode="reflect")
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.b(F.relu(self.norm(self.a(h))))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


@case("conv", "", images, point="is the model's output")
class ConvolutionalOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = convolution(padding="same"), nn.Conv2d(WIDTH, OUT, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(F.interpolate(self.conv(x).tanh(), scale_factor=2.0))


@case("0", "", lambda: torch.randn(6, CHANNELS, 20), **{"0__layer": "convolution"})
def one_dimension() -> nn.Module:
    return nn.Sequential(nn.Conv1d(CHANNELS, WIDTH, 3), nn.PReLU(WIDTH), nn.Conv1d(WIDTH, OUT, 5))


@case("0", "", lambda: torch.randn(4, CHANNELS, 6, 6, 6))
def three_dimensions() -> nn.Module:
    return nn.Sequential(nn.Conv3d(CHANNELS, WIDTH, 3), nn.MaxPool3d(2), nn.ELU(), nn.Conv3d(WIDTH, OUT, 2))


@case("0", "", images)
def depthwise() -> nn.Module:
    return nn.Sequential(convolution(), nn.ReLU(), convolution(channels=WIDTH, groups=WIDTH), nn.Conv2d(WIDTH, OUT, 1))


@case("", "", images, **{"0": "columns mix"})
def normed_over_channels() -> nn.Module:
    return nn.Sequential(convolution(), nn.GroupNorm(1, WIDTH), nn.Conv2d(WIDTH, OUT, 3))


@case("0 2", "", images)
def transposed() -> nn.Module:
    return nn.Sequential(convolution(), nn.ReLU(), nn.ConvTranspose2d(WIDTH, OUT, 3), nn.Conv2d(OUT, 1, 1))


@case("", "", images, conv="columns mix")
class PositionsAsFeatures(nn.Module):
    """The Linear reads the columns of the maps, as many as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = convolution(), nn.Linear(8, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu())


@case("", "", lambda: torch.randn(CHANNELS, SIDE, SIDE), **{"0": "no batch dimension"})
def single_image() -> nn.Module:
    return nn.Sequential(convolution(), nn.ReLU(), nn.Conv2d(WIDTH, OUT, 3))


@case("conv", "", images, conv__layer="joined by")
class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = convolution(padding=1), nn.Conv2d(WIDTH + CHANNELS, OUT, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(torch.cat([self.conv(x).relu(), x], dim=1))
