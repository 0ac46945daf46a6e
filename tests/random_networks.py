"""Random small networks, with redundancy planted in them by the package's own embeddings.

`network(seed)` draws everything from its seed. A network is a chain of stages; a *stream* is what the skips of its
stages add to, so that its neurons have several producers and cannot be merged one layer at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.operators import add_null_neurons, lift_layer, split_neuron

SAMPLES = 1024
HELD_OUT = 2048

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "hardtanh": nn.Hardtanh,
}
# (segment, slope, intercept): where each is affine, or so near that a merge there changes less than 1e-3
AFFINE: dict[str, tuple[tuple[float, float], float, float]] = {
    "relu": ((0.0, math.inf), 1.0, 0.0),
    "leaky_relu": ((0.0, math.inf), 1.0, 0.0),
    "elu": ((0.0, math.inf), 1.0, 0.0),
    "hardtanh": ((-1.0, 1.0), 1.0, 0.0),
    "gelu": ((6.0, math.inf), 1.0, 0.0),
    "silu": ((20.0, math.inf), 1.0, 0.0),
    "softplus": ((20.0, math.inf), 1.0, 0.0),
    "tanh": ((-0.05, 0.05), 1.0, 0.0),
    "sigmoid": ((-0.05, 0.05), 0.25, 0.5),
}


class Draw:
    """Everything random of one network, from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < share

    def one_of(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


class Between(nn.Module):
    """Batch norm, activation and dropout, in the order of the stage; the activation a module or in the code."""

    def __init__(self, width: int, act: nn.Module, norm: str, dropout: float, *, in_code: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if norm else None
        self.first = norm == "before"
        self.drop = nn.Dropout(dropout)
        if in_code:
            self.__dict__["act"] = act  # no submodule: the model calls a function
        else:
            self.act = act

    def forward(self, z: Tensor) -> Tensor:
        if self.norm is not None and self.first:
            z = self.norm(z)
        z = self.act.forward(z) if "act" in self.__dict__ else self.act(z)
        if self.norm is not None and not self.first:
            z = self.norm(z)
        return self.drop(z)


class Plain(nn.Module):
    """σ(W x + b), a stream of its own."""

    def __init__(self, fan_in: int, width: int, between: Between, *, bias: bool) -> None:
        super().__init__()
        self.linear, self.between = nn.Linear(fan_in, width, bias=bias), between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self.linear(x))


class SkipLayer(Plain):
    """h + σ(W h + b) (000, Def. A.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class SkipBlock(nn.Module):
    """x + W₂ σ(W₁ x + b₁) + b₂."""

    def __init__(self, fan: int, width: int, between: Between, *, bias: bool) -> None:
        super().__init__()
        self.inner, self.between = nn.Linear(fan, width, bias=bias), between
        self.outer = nn.Linear(width, fan, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.between(self.inner(x)))


@dataclass
class Site:
    """Neurons that can be split: who computes them, what lies between, who reads them."""

    producers: list[nn.Linear]
    between: list[Between]
    consumers: list[nn.Linear]

    @property
    def mergeable(self) -> bool:
        """Neurons of one layer that nothing is added to."""
        return len(self.producers) == 1

    @property
    def width(self) -> int:
        return self.producers[0].out_features


@dataclass(frozen=True)
class Planted:
    """Redundancy by its kind, the Linear in which it is, and how wide that was without it (0: it was not there)."""

    kind: str
    layer: str
    width: int
    mergeable: bool


@dataclass(frozen=True, eq=False)
class Network:
    """A model, what it was before anything was planted, data, and a fresh draw of the same data."""

    model: nn.Module
    narrow: nn.Module
    data: Tensor
    held_out: Tensor
    planted: tuple[Planted, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def network(seed: int) -> Network:
    """The network of a seed; three in five have something planted."""
    draw = Draw(seed)
    while True:
        settings = _settings(draw)
        data, held_out = _data(draw, settings, SAMPLES), _data(draw, settings, HELD_OUT)
        model = _model(draw, settings)
        _settle(model, data, train=settings["trained"], draw=draw)
        if all(_varies(model, one) for one in (data, held_out)):
            break
    narrow = copy.deepcopy(model)
    done = _plant(draw, model, data, draw.one_of([1, 1, 2])) if seed % 5 < 3 else ()
    return Network(model, narrow, data, held_out, tuple(done), settings)


def _settings(draw: Draw) -> dict[str, Any]:
    return {
        "depth": draw.integer(1, 4),
        "activation": draw.one_of([*ACTIVATIONS, "mixed"]),
        "norm": draw.one_of(["", "", "before", "after"]),
        "dropout": draw.one_of([0.0, 0.2]),
        "skips": draw.chance(0.5),
        "bias": draw.chance(0.75),
        "in_code": draw.chance(0.2),
        "dtype": draw.one_of([torch.float32, torch.float64]),
        "scale": draw.one_of([1e-3, 1.0, 1.0, 1e3]),
        "offset": draw.one_of([0.0, 0.0, 2.0]),
        "fitted": draw.chance(0.5),  # first weights fit the scale of the data
        "trained": draw.chance(0.3),
        "inputs": draw.integer(2, 6),
        "outputs": draw.integer(1, 4),
    }


@torch.no_grad()
def _varies(model: nn.Module, data: Tensor) -> bool:
    """Whether the outputs are more than a constant and rounding; of others a relative change says nothing."""
    outputs = model(data)
    return bool((outputs - outputs.mean(dim=0)).norm() > 1e-3 * outputs.norm())


def _data(draw: Draw, settings: dict[str, Any], samples: int) -> Tensor:
    rows = draw.normal(samples, settings["inputs"])
    return (settings["scale"] * (rows + settings["offset"])).to(settings["dtype"])


def _model(draw: Draw, settings: dict[str, Any]) -> nn.Sequential:
    def between(width: int) -> Between:
        name = settings["activation"]
        act = ACTIVATIONS[draw.one_of([*ACTIVATIONS]) if name == "mixed" else name]()
        return Between(width, act, settings["norm"], settings["dropout"], in_code=settings["in_code"])

    stages: list[nn.Module] = []
    width = settings["inputs"]
    for number in range(settings["depth"]):
        kind = draw.one_of([Plain, SkipLayer, SkipBlock]) if number and settings["skips"] else Plain
        hidden = draw.integer(2, 16)
        inside = width if kind is SkipLayer else hidden
        stages.append(kind(width, inside, between(inside), bias=settings["bias"]))
        width = hidden if kind is Plain else width
    model = nn.Sequential(*stages, nn.Linear(width, settings["outputs"], bias=settings["bias"]))
    for one in model.modules():
        if isinstance(one, nn.Linear):
            one.weight.data = draw.normal(*one.weight.shape) * 1.5 / math.sqrt(one.in_features)
            if one.bias is not None:
                one.bias.data = draw.normal(one.out_features) / 2
        elif isinstance(one, nn.BatchNorm1d):
            one.weight.data = 1 + draw.normal(one.num_features) / 4
            one.bias.data = draw.normal(one.num_features) / 4
    if settings["fitted"]:
        model[0].linear.weight.data /= settings["scale"]
    return model.to(settings["dtype"])


def _settle(model: nn.Module, data: Tensor, *, train: bool, draw: Draw) -> None:
    """Train a little on a random target, then let batch norms take the statistics of the data."""
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.integer(0, 2**31))
        if train:
            target = torch.sin(data / data.std() @ draw.normal(data.shape[1], 1).to(data))
            optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            for _ in range(60):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(data).mean(dim=1, keepdim=True), target).backward()
                optimizer.step()
        for norm in (one for one in model.modules() if isinstance(one, nn.BatchNorm1d)):
            norm.momentum = None  # the mean of all batches
            norm.reset_running_stats()
        with torch.no_grad():
            for one in (one for one in model.modules() if isinstance(one, nn.Dropout)):
                one.eval()
            for _ in range(4):
                for batch in data[torch.randperm(len(data))].split(256):
                    model(batch)
    model.eval()


def _sites(model: nn.Sequential) -> list[Site]:
    """Every set of neurons that can be split, streams and the insides of blocks."""
    sites: list[Site] = []
    stream: Site | None = None
    for stage in model:
        if stream is not None:
            reads = stage.inner if isinstance(stage, SkipBlock) else getattr(stage, "linear", stage)
            stream.consumers.append(reads)
        if isinstance(stage, SkipBlock):
            stream.producers.append(stage.outer)
            sites.append(Site([stage.inner], [stage.between], [stage.outer]))
        elif isinstance(stage, SkipLayer):
            stream.producers.append(stage.linear)
            stream.between.append(stage.between)
        elif isinstance(stage, Plain):
            stream = Site([stage.linear], [stage.between], [])
            sites.append(stream)
    return sites


@torch.no_grad()
def _plant(draw: Draw, model: nn.Sequential, data: Tensor, count: int) -> list[Planted]:
    names = {id(one): name for name, one in model.named_modules()}
    sites = _sites(model)
    possible = ["split", "null", "lifted"] if any(one.mergeable for one in sites) else ["split", "lifted"]
    kinds = [draw.one_of(possible) for _ in range(count)]
    done: list[Planted] = []
    used: list[nn.Linear] = []
    for kind in sorted(kinds, key=["split", "null", "lifted"].index):  # what is lifted changes its name
        if kind == "lifted":
            linears = [(n, one) for n, one in model.named_modules() if isinstance(one, nn.Linear) and one not in used]
            done.append(Planted(kind, _lift(draw, model, data, *draw.one_of(linears)), 0, mergeable=True))
            break
        free = [one for one in sites if one.mergeable] if kind == "null" else sites
        if not free:
            continue
        site = draw.one_of(free)
        sites = [one for one in sites if one is not site]
        used += site.producers
        done.append(Planted(kind, names[id(site.producers[0])], site.width, site.mergeable))
        (_split if kind == "split" else _null)(draw, site)
    return done


def _put(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = nn.Parameter(weight)
    linear.bias = None if bias is None else nn.Parameter(bias)
    linear.out_features, linear.in_features = weight.shape


def _widen_norm(between: Between, source: Sequence[int]) -> None:
    norm = between.norm
    if norm is not None:
        norm.weight, norm.bias = nn.Parameter(norm.weight[source]), nn.Parameter(norm.bias[source])
        norm.running_mean, norm.running_var = norm.running_mean[source], norm.running_var[source]
        norm.num_features = len(source)


def _split(draw: Draw, site: Site) -> None:
    """One neuron becomes two to four, with random shares that sum to 1."""
    width, neuron = site.width, draw.integer(0, site.width - 1)
    shares = draw.normal(draw.integer(2, 4))
    shares = shares + (1 - shares.sum()) / len(shares)
    wide = split_neuron(torch.zeros(width, 1), None, torch.cat([c.weight for c in site.consumers]), neuron, shares)[2]
    for consumer, part in zip(site.consumers, wide.split([c.out_features for c in site.consumers]), strict=True):
        _put(consumer, part, consumer.bias)
    for producer in site.producers:
        w_in, b_in, _ = split_neuron(producer.weight, producer.bias, torch.zeros(1, width), neuron, shares)
        _put(producer, w_in, b_in)
    for between in site.between:
        _widen_norm(between, [*range(width), *[neuron] * (len(shares) - 1)])


def _null(draw: Draw, site: Site) -> None:
    """One to three neurons that are constant but read, or that vary but are not read."""
    (producer,), (between,), (consumer,) = site.producers, site.between, site.consumers
    width, count, like = site.width, draw.integer(1, 3), producer.weight
    bias = None if producer.bias is None else draw.normal(count).to(like)
    given: dict[str, Any] = {"bias": bias}
    _widen_norm(between, [*range(width), *[0] * count])
    if draw.chance(0.5):
        pre = like.new_zeros(1, width + count)
        pre[0, width:] = 0.0 if bias is None else bias
        if between.norm is not None:
            seen = pre if between.first else between.act.forward(pre.clone())
            between.norm.running_mean[width:], between.norm.running_var[width:] = seen[0, width:], 0.0
        given |= {"output_weights": draw.normal(consumer.out_features, count), "values": between(pre)[0, width:]}
    else:
        given["input_weights"] = draw.normal(count, producer.in_features)
    w_in, b_in, w_out, b_out = add_null_neurons(
        producer.weight, producer.bias, consumer.weight, consumer.bias, count, **given
    )
    _put(producer, w_in, b_in)
    _put(consumer, w_out, b_out)


def _lift(draw: Draw, model: nn.Module, data: Tensor, name: str, linear: nn.Linear) -> str:
    """A Linear becomes two with an activation between them that acts affinely on the data."""
    activation = draw.one_of([*AFFINE])
    segment, slope, intercept = AFFINE[activation]
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    model(data)
    handle.remove()
    least = min(linear.weight.shape)
    lifted = lift_layer(
        linear.weight, linear.bias, seen[0], segment=segment, slope=slope, intercept=intercept,
        width=draw.integer(least, least + 3),
    )  # fmt: skip
    first, last = (copy.deepcopy(linear) for _ in range(2))
    _put(first, *lifted[:2])
    _put(last, *lifted[2:])
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Sequential(first, ACTIVATIONS[activation](), last))
    return f"{name}.0"
