"""Stages, depthwise convolutions, concatenated maps, and the ways in which maps become columns."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import OUT, PARTNER, Net, Truth, conv, images, linear, norm, site_case


def maps(producers: dict[str, str], reads: dict[str, str], *args: Any, **how: Any) -> Truth:
    return Truth(producers, reads, *args, **{"rows_mix": None, **how})


@site_case(
    maps({"c1": "0:10", "c3": "0:10"}, {"c2": "0:10", "out": "0:10"}, {**norm("n1", "0:10"), **norm("n3", "0:10")}),
    maps({"c2": "0:8"}, {"c3": "0:8"}, norm("n2", "0:8")),
    output="out",
    batch=images(),
)
class ResidualStage(Net):
    def __init__(self) -> None:
        super().__init__(
            c1=conv(3, 10, bias=False),
            n1=nn.BatchNorm2d(10),
            c2=conv(10, 8, bias=False),
            n2=nn.BatchNorm2d(8),
            c3=conv(8, 10, bias=False),
            n3=nn.BatchNorm2d(10),
            relu=nn.ReLU(inplace=True),
            out=linear(10, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.n1(self.c1(x)))
        y = self.n3(self.c3(self.relu(self.n2(self.c2(h)))))
        y += h
        return self.out(self.relu(y).mean(dim=(2, 3)))


@site_case(
    maps({"stem": "0:8", "b": "0:8"}, {"a": "0:8", "c": "0:8", "short": "0:8"}, norm("norm", "0:8")),
    maps({"a": "0:6"}, {"b": "0:6"}),
    maps({"c": "0:9"}, {"d": "0:9"}),
    maps({"d": "0:11", "short": "0:11"}, {"out": "0:11"}),
    output="out",
    batch=images(),
)
class TwoStages(Net):
    """The second stage begins with a strided projection of the first."""

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8),
            norm=nn.BatchNorm2d(8),
            a=conv(8, 6),
            b=conv(6, 8),
            c=conv(8, 9, stride=2),
            d=conv(9, 11),
            short=conv(8, 11, 1, stride=2),
            out=linear(11, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.stem(x)).relu()
        h = F.relu(h + self.b(self.a(h).relu()))
        h = F.relu(self.short(h) + self.d(self.c(h).relu()))
        return self.out(F.adaptive_avg_pool2d(h, 1).flatten(1))


@site_case(
    maps({"stem": "0:8", "b": "0:8"}, {"a": "0:8", "out": "0:8"}, {**norm("n1", "0:8"), **norm("n3", "0:8")}),
    maps({"a": "0:10"}, {"b": "0:10"}, norm("n2", "0:10")),
    output="out",
    batch=images(),
)
class PreActivation(Net):
    """The stream itself has no activation; whoever reads it norms it for itself."""

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 8),
            n1=nn.BatchNorm2d(8),
            a=conv(8, 10),
            n2=nn.BatchNorm2d(10),
            b=conv(10, 8),
            n3=nn.BatchNorm2d(8),
            out=linear(8, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.b(self.n2(self.a(self.n1(h).relu())).relu())
        return self.out(self.n3(h).relu().amax(dim=(2, 3)))


@site_case(
    maps(
        {"expand": "0:12", "excite": "0:12"},
        {"squeeze": "0:12", "project": "0:12"},
        {"depth.weight": "0:12", **norm("n1", "0:12"), **norm("n2", "0:12")},
    ),
    maps({"squeeze": "0:5"}, {"excite": "0:5"}),
    maps({"stem": "0:6", "project": "0:6"}, {"expand": "0:6", "out": "0:6"}, norm("n3", "0:6")),
    output="out",
    batch=images(),
)
class MobileBlock(Net):
    """An inverted residual: expansion, depthwise convolution, squeeze and excitation, projection, skip."""

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 6),
            expand=conv(6, 12, 1, bias=False),
            n1=nn.BatchNorm2d(12),
            depth=conv(12, 12, groups=12, bias=False),
            n2=nn.BatchNorm2d(12),
            squeeze=conv(12, 5, 1),
            excite=conv(5, 12, 1),
            project=conv(12, 6, 1, bias=False),
            n3=nn.BatchNorm2d(6),
            out=linear(6, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = F.hardswish(self.n1(self.expand(x)))
        h = F.hardswish(self.n2(self.depth(h)))
        h = h * F.hardsigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(h, 1)).relu()))
        return self.out((x + self.n3(self.project(h))).mean(dim=(2, 3)))


@site_case(
    maps({"body": "0:9", "excite": "0:9"}, {"squeeze": "0:9", "out": "0:9"}),
    maps({"squeeze": "0:4"}, {"excite": "0:4"}, rows_mix=False),
    output="out",
    batch=images(),
)
class SqueezeByLinears(Net):
    def __init__(self) -> None:
        super().__init__(body=conv(3, 9), squeeze=linear(9, 4), excite=linear(4, 9), out=conv(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        gate = self.excite(self.squeeze(h.mean(dim=(2, 3))).relu()).sigmoid()
        return self.out(h * gate[:, :, None, None])


@site_case(
    maps({"a": "0:8"}, {"out": "0:16/2"}, {"depth.weight": "0:16/2", "depth.bias": "0:16/2"}),
    output="out",
    batch=images(),
)
class DepthwiseTwofold(Net):
    """A channel becomes two: the groups follow the channels that come in."""

    def __init__(self) -> None:
        super().__init__(a=conv(3, 8, 1), depth=conv(8, 16, groups=8), out=conv(16, OUT, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.depth(self.a(x).relu()).relu())


@site_case(
    maps(
        {"a": "0:8"},
        {"out": "0:8"},
        {"one.weight": "0:8", "one.bias": "0:8", "two.weight": "0:8", **norm("norm", "0:8")},
    ),
    output="out",
    batch=images(),
)
class DepthwiseChain(Net):
    def __init__(self) -> None:
        super().__init__(
            a=conv(3, 8, 1),
            one=conv(8, 8, groups=8),
            norm=nn.BatchNorm2d(8),
            two=conv(8, 8, 5, groups=8, stride=2, bias=False),
            out=conv(8, OUT, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.norm(self.one(self.a(x).relu())).relu()).relu())


@site_case(
    maps({"a": "0:12/3"}, {"out": "0:8/2"}, {"grouped.weight": "0:8/2", "grouped.bias": "0:8/2"}),
    output="out",
    batch=images(),
)
class Grouped(Net):
    """Channels of a group mix, so whole groups are the units."""

    def __init__(self) -> None:
        super().__init__(a=conv(3, 12, 1), grouped=conv(12, 8, groups=4), out=conv(8, OUT, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.grouped(self.a(x).relu()).relu())


@site_case(
    maps({"a": "0:8"}, {"b": "0:8"}, norm("norm", "0:8")),
    maps({"b": "0:10"}, {"out": "0:10"}),
    output="out",
    batch=lambda rows: torch.randn(rows, 2, 24),
)
class OneDimension(Net):
    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv1d(2, 8, 5, stride=2), norm=nn.BatchNorm1d(8), b=nn.Conv1d(8, 10, 3), out=linear(10, OUT)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(F.max_pool1d(self.norm(self.a(x)).relu(), 2)).relu().mean(dim=-1))


@site_case(
    maps({"filter": "0:9", "gate": "0:9"}, {"mix": "0:9"}),
    maps({"stem": "0:8", "mix": "0:8"}, {"filter": "0:8", "gate": "0:8", "out": "0:8"}),
    output="out",
    batch=lambda rows: torch.randn(rows, 2, 16),
)
class WaveNetBlock(Net):
    def __init__(self) -> None:
        super().__init__(
            stem=nn.Conv1d(2, 8, 1),
            filter=nn.Conv1d(8, 9, 2, dilation=2),
            gate=nn.Conv1d(8, 9, 2, dilation=2),
            mix=nn.Conv1d(9, 8, 1),
            out=nn.Conv1d(8, OUT, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        before = F.pad(h, (2, 0))
        return self.out((h + self.mix(self.filter(before).tanh() * self.gate(before).sigmoid())).relu())


@site_case(
    maps({"begin": "0:96/16"}, {"one": "0:6"}, rows_mix=None),
    maps({"one": "0:7"}, {"two": "0:7"}, norm("norm", "0:7")),
    output="two",
    batch=lambda rows: torch.randn(rows, 5),
)
class Generator(Net):
    """Columns become maps, which transposed convolutions enlarge."""

    def __init__(self) -> None:
        super().__init__(
            begin=linear(5, 96),
            one=nn.ConvTranspose2d(6, 7, 4, stride=2, padding=1),
            norm=nn.BatchNorm2d(7),
            two=nn.ConvTranspose2d(7, OUT, 3),
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.begin(z).relu().unflatten(1, (-1, 4, 4))
        return self.two(self.norm(self.one(h)).relu()).tanh()


@site_case(maps({"a": "0:6"}, {"out": "0:96%6"}), output="out", batch=images(side=4))
class ChannelsLastFlattened(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 6), out=linear(96, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x).relu().permute(0, 2, 3, 1).flatten(1))


@site_case(maps({"a": "0:7"}, {"out": "0:63/9"}), output="out", batch=images(side=6))
class FlattenedMaps(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 7), out=linear(63, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.a(x).relu(), 2)
        return self.out(h.view(h.size(0), -1))


@site_case(maps({"a": "0:20/4"}, {"out": "0:5"}), output="out", batch=images(side=5))
class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 20), up=nn.PixelShuffle(2), out=conv(5, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.up(self.a(x)).relu())


@site_case(maps({"a": "0:5"}, {"out": "0:20/4"}), output="out", batch=images(side=6))
class PixelUnshuffle(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 5), out=conv(20, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.pixel_unshuffle(self.a(x).relu(), 2))


@site_case(maps({"a": "0:12%6"}, {"out": "0:12/2"}), output="out", batch=images(side=5))
class ChannelShuffle(Net):
    """Two blocks are interleaved: both must keep the same channels."""

    def __init__(self) -> None:
        super().__init__(a=conv(3, 12), out=conv(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.out(h.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))


@site_case(
    maps({"down1": "0:6"}, {"down2": "0:6", "up1": "8:14"}, fixed=("up2",)),
    maps({"down2": "0:7"}, {"middle": "0:7", "up2": "9:16"}, fixed=("middle",)),
    maps({"middle": "0:9"}, {"up2": "0:9"}, fixed=("down2",)),
    maps({"up2": "0:8"}, {"up1": "0:8"}, fixed=("down1",)),
    maps({"up1": "0:5"}, {"out": "0:5"}),
    output="out",
    batch=images(),
)
class UNet(Net):
    def __init__(self) -> None:
        super().__init__(
            down1=conv(3, 6),
            down2=conv(6, 7),
            middle=conv(7, 9),
            up2=conv(16, 8),
            up1=conv(14, 5),
            out=conv(5, OUT, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x).relu()
        two = self.down2(F.max_pool2d(one, 2)).relu()
        h = self.middle(F.max_pool2d(two, 2)).relu()
        h = self.up2(torch.cat([F.interpolate(h, scale_factor=2), two], dim=1)).relu()
        h = self.up1(torch.cat([F.interpolate(h, scale_factor=2), one], dim=1)).relu()
        return self.out(h)


@site_case(
    maps({"a": "0:9"}, {"b": "0:9", "out": "0:9"}, {**norm("n1", "0:9"), **norm("n2", "0:9")}, fixed=("b",)),
    maps({"b": "0:6"}, {"out": "9:15"}, norm("n2", "9:15"), fixed=("a",)),
    output="out",
    batch=images(),
)
class DenseBlock(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 9), n1=nn.BatchNorm2d(9), b=conv(9, 6), n2=nn.BatchNorm2d(15), out=linear(15, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = torch.cat([h, self.b(self.n1(h).relu())], dim=1)
        return self.out(self.n2(h).relu().mean(dim=(2, 3)))


@site_case(
    maps({"one": "0:5"}, {"out": "0:5"}, fixed=("three", "input")),
    maps({"reduce": "0:4"}, {"three": "0:4"}),
    maps({"three": "0:6"}, {"out": "5:11"}, fixed=("one", "input")),
    output="out",
    batch=images(),
)
class Inception(Net):
    """Branches side by side, one of which is the pooled input itself."""

    def __init__(self) -> None:
        super().__init__(one=conv(3, 5, 1), reduce=conv(3, 4, 1), three=conv(4, 6), out=conv(14, OUT, 1))

    def forward(self, x: Tensor) -> Tensor:
        three = self.three(self.reduce(x).relu())
        return self.out(torch.cat([self.one(x), three, F.max_pool2d(x, 3, 1, 1)], dim=1).relu())


@site_case(
    maps({"body": "0:8", "film": "0:8 | 8:16"}, {"out": "0:8"}, norm("norm", "0:8")),
    output="out",
    batch=lambda rows: (torch.randn(rows, 3, 6, 6), torch.randn(rows, 4)),
    call=lambda model, batch: model(*batch),
)
class ModulatedMaps(Net):
    """A Linear modulates the channels of a convolution."""

    def __init__(self) -> None:
        super().__init__(body=conv(3, 8), norm=nn.BatchNorm2d(8), film=linear(4, 16), out=conv(8, OUT))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return self.out((self.norm(self.body(x)) * (1 + gain) + shift).relu())


@site_case(maps({"a": "0:9"}, {"out": "0:9"}, {"mask@1": "0:9"}), output="out", batch=images(side=5))
class ChannelMask(Net):
    """A learned value of each channel, before the maps are pooled."""

    def __init__(self) -> None:
        super().__init__(a=conv(3, 9), mask=nn.Parameter(torch.rand(1, 9, 1, 1)), out=linear(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.a(x) * self.mask).amax(dim=(2, 3)))


@site_case(
    maps({"a": "0:9"}, {"out": "0:9"}, {"norm.weight": "0:9", "norm.bias": "0:9"}), output="out", batch=images(side=5)
)
class InstanceNorm(Net):
    def __init__(self) -> None:
        super().__init__(a=conv(3, 9), norm=nn.InstanceNorm2d(9, affine=True), out=conv(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.a(x)).relu())


@site_case(output="out", why={"a": ("columns mix", "cannot be cut")}, batch=images(side=5))
class GroupNorm(Net):
    """The number of groups is written down, so neither channels nor whole groups may go."""

    def __init__(self) -> None:
        super().__init__(a=conv(3, 12), norm=nn.GroupNorm(3, 12), out=conv(12, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.a(x)).relu())


@site_case(output="out", why={"body": "columns mix", "attend": ()}, batch=images())
class AttentionOverChannels(Net):
    """A convolution over the channels' means mixes neighbours."""

    def __init__(self) -> None:
        super().__init__(body=conv(3, 9), attend=nn.Conv1d(1, 1, 3, padding=1), out=conv(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        gate = self.attend(h.mean(dim=(2, 3))[:, None])[:, 0].sigmoid()
        return self.out(h * gate[:, :, None, None])


@site_case(maps({"body": "0:9"}, {"out": "0:9"}, fixed=("attend",)), output="out", why={"attend": ()}, batch=images())
class AttentionOverPositions(Net):
    """One map, made of the input, gates all channels."""

    def __init__(self) -> None:
        super().__init__(body=conv(3, 9), attend=conv(3, 1), out=conv(9, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).relu() * self.attend(x).sigmoid())


@site_case(
    Truth({"one": "0:14"}, {"two": "0:14"}),
    output="out",
    why={"stem": "columns mix", "two": PARTNER},
    batch=images(),
)
class ConvNeXtBlock(Net):
    """A layer norm over the channels mixes those of the stream; the Linears between are as ever."""

    def __init__(self) -> None:
        super().__init__(
            stem=conv(3, 6, 2, stride=2, padding=0),
            depth=conv(6, 6, groups=6),
            norm=nn.LayerNorm(6),
            one=linear(6, 14),
            two=linear(14, 6),
            scale=nn.Parameter(torch.rand(6)),
            out=linear(6, OUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        y = self.norm(self.depth(h).permute(0, 2, 3, 1))
        y = self.scale * self.two(F.gelu(self.one(y)))
        return self.out((h + y.permute(0, 3, 1, 2)).mean(dim=(2, 3)))
