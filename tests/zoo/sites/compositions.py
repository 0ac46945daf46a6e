"""Networks composed at random of gates, concatenations, stages and pools, with the truth about their sites.

Values flow in a *stream*: columns in segments, each of which belongs to one site (or, as inputs do, to none). A block
reads the stream and makes another one. Whatever reads the stream adds columns to the sites of its segments; whatever
is added to the stream or multiplied with it adds rows to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.sites.case import IN, OUT, Truth

BLOCKS = (
    "plain",
    "product",
    "glu",
    "maxout",
    "towers",
    "dense",
    "twice",
    "raw",
    "residual",
    "highway",
    "norm",
    "scale",
)
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (torch.relu, torch.tanh, F.gelu, F.silu, torch.sigmoid)


@dataclass
class Site:
    """A site in the making: places of every part, in the order of the units."""

    producers: dict[str, list[str]] = field(default_factory=dict)
    reads: dict[str, list[str]] = field(default_factory=dict)
    per_neuron: dict[str, list[str]] = field(default_factory=dict)

    @property
    def truth(self) -> Truth:
        def joined(parts: dict[str, list[str]]) -> dict[str, str]:
            return {name: " | ".join(places) for name, places in parts.items()}

        return Truth(joined(self.producers), joined(self.reads), joined(self.per_neuron), rows_mix=None)


@dataclass
class Segment:
    """Neighbouring columns of the stream, and the site whose units they are."""

    width: int
    site: Site | None


class Composed(nn.Module):
    """A network and the program that it runs."""

    def __init__(self, blocks: Sequence[tuple[str, int, int]], *, pooled: bool) -> None:
        """Compose blocks (name, width, number of the activation); a pooled network takes sets."""
        super().__init__()
        self.layers = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        self.steps: list[Callable[[Composed, Tensor, Tensor], Tensor]] = []
        self.pooled = pooled
        self.sites: list[Site] = []
        self.stream = [Segment(IN, None)]
        for name, width, act in blocks:
            getattr(self, f"_{name}")(width, ACTIVATIONS[act])
        if pooled:
            self.steps.append(lambda model, h, x: h.mean(dim=1))
        out = self._reader(OUT)
        self.steps.append(lambda model, h, x: model.layers[out](h))
        self.output = out

    @property
    def truths(self) -> tuple[Truth, ...]:
        return tuple(site.truth for site in self.sites)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for step in self.steps:
            h = step(self, h, x)
        return h

    @property
    def _columns(self) -> int:
        return sum(segment.width for segment in self.stream)

    def _each(self) -> list[tuple[Site, str]]:
        """The segments that belong to sites, and where they are in the stream."""
        places, start = [], 0
        for segment in self.stream:
            if segment.site is not None:
                places.append((segment.site, f"{start}:{start + segment.width}"))
            start += segment.width
        return places

    def _reader(self, rows: int) -> str:
        """A layer that reads the stream."""
        name = f"layer{len(self.layers)}"
        self.layers[name] = nn.Linear(self._columns, rows)
        for site, place in self._each():
            site.reads.setdefault(f"layers.{name}", []).append(place)
        return name

    def _site(self, producers: dict[str, str]) -> Site:
        site = Site({f"layers.{name}": [rows] for name, rows in producers.items()})
        self.sites.append(site)
        return site

    def _plain(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        name = self._reader(width)
        self.stream = [Segment(width, self._site({name: f"0:{width}"}))]
        self.steps.append(lambda model, h, x: act(model.layers[name](h)))

    def _product(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        one, two = self._reader(width), self._reader(width)
        self.stream = [Segment(width, self._site({one: f"0:{width}", two: f"0:{width}"}))]
        self.steps.append(lambda model, h, x: act(model.layers[one](h)) * model.layers[two](h))

    def _glu(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        name = self._reader(2 * width)
        self.stream = [Segment(width, self._site({name: f"0:{width} | {width}:{2 * width}"}))]
        self.steps.append(lambda model, h, x: F.glu(act(model.layers[name](h))))

    def _maxout(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        name = self._reader(2 * width)
        self.stream = [Segment(width, self._site({name: f"0:{2 * width}/2"}))]
        self.steps.append(lambda model, h, x: model.layers[name](h).unflatten(-1, (-1, 2)).amax(dim=-1))

    def _towers(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        one, two = self._reader(width), self._reader(width + 1)
        left = Segment(width, self._site({one: f"0:{width}"}))
        self.stream = [left, Segment(width + 1, self._site({two: f"0:{width + 1}"}))]
        self.steps.append(
            lambda model, h, x: torch.cat([model.layers[one](h).tanh(), act(model.layers[two](h))], dim=-1)
        )

    def _dense(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        name = self._reader(width)
        self.stream = [*self.stream, Segment(width, self._site({name: f"0:{width}"}))]
        self.steps.append(lambda model, h, x: torch.cat([h, act(model.layers[name](h))], dim=-1))

    def _twice(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        self.stream = [*self.stream, *self.stream]
        self.steps.append(lambda model, h, x: torch.cat([h, torch.tanh(1 - h)], dim=-1))

    def _raw(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        self.stream = [Segment(IN, None), *self.stream]
        self.steps.append(lambda model, h, x: torch.cat([x, h], dim=-1))

    def _joined(self, width: int) -> tuple[str, str] | None:
        """Two layers that read the stream and make one as wide; not where inputs are part of it, which stay."""
        if any(segment.site is None for segment in self.stream):
            return None
        one = self._reader(width)
        inner = self._site({one: f"0:{width}"})
        two = f"layer{len(self.layers)}"
        self.layers[two] = nn.Linear(width, self._columns)
        inner.reads[f"layers.{two}"] = [f"0:{width}"]
        for site, place in self._each():
            site.producers.setdefault(f"layers.{two}", []).append(place)
        return one, two

    def _residual(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        names = self._joined(width)
        if names is not None:
            one, two = names
            self.steps.append(lambda model, h, x: h + model.layers[two](act(model.layers[one](h))))

    def _highway(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        names = self._joined(width)
        if names is not None:
            one, two = names
            self.steps.append(lambda model, h, x: h * model.layers[two](act(model.layers[one](h))).sigmoid())

    def _norm(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        if self.pooled:
            return  # its features would have to come before the tokens
        name = f"layer{len(self.layers)}"
        self.layers[name] = nn.BatchNorm1d(self._columns)
        for site, place in self._each():
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                site.per_neuron.setdefault(f"layers.{name}.{tensor}", []).append(place)
        self.steps.append(lambda model, h, x: model.layers[name](h))

    def _scale(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        name = f"scale{len(self.scales)}"
        self.scales[name] = nn.Parameter(torch.rand(self._columns) + 0.5)
        for site, place in self._each():
            site.per_neuron.setdefault(f"scales.{name}", []).append(place)
        self.steps.append(lambda model, h, x: act(h * model.scales[name]))
