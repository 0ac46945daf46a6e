"""Whether a wider network could lower the loss here, and the network that does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.analysis.risk import Data, Loss, checked
from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, observe
from lightning_embed.statistics import splitting_eigenvalues
from lightning_embed.surgery.change.edit import submodule
from lightning_embed.surgery.change.embedding import Null, Split, embed
from lightning_embed.surgery.change.enlarging import hidden_layer, in_blocks, tapes_of
from lightning_embed.tape.tape import preserved, set_modes

FLAT = 1e-9  # share of the largest magnitude up to which an eigenvalue counts as zero
CANDIDATES = 256  # new neurons that are tried where no split lowers the loss
STEPS = [4.0**power for power in range(-9, 6)]  # lengths that are tried, of the scale of the weights
NOTICEABLE = 1e-10  # share of the loss by which it must fall at least


@dataclass(frozen=True, eq=False)
class SplittingCurvature:
    """How the loss bends when a neuron of a layer is split and its copies move apart.

    Attributes:
        layer: name of the Linear.
        values: least eigenvalue of every neuron's splitting matrix, shape (width,), float64. Negative: split that
            neuron into two equal shares, move the copies' input weights by ±ε along the eigenvector, and the loss
            changes by ε²/2 times the value, at any point, critical or not.
        directions: the unit eigenvectors, shape (width, fan_in + 1), the last entry for the bias where there is one.
    """

    layer: str
    values: Tensor
    directions: Tensor

    @property
    def least(self) -> float:
        """The most negative value; 0 where the layer has no neuron."""
        return min(self.values.tolist(), default=0.0)


def splitting_curvature(
    model: nn.Module, loss: Loss, data: Data, *, layers: Sequence[str] | None = None
) -> tuple[SplittingCurvature, ...]:
    r"""Per neuron, the least eigenvalue of its splitting matrix: whether widening can lower the loss here.

    $S_j = \mathbb E_S\,[\partial\ell/\partial f \cdot a_j\, \sigma''(w_j \cdot \tilde x)\, \tilde x \tilde x^\top]$
    (splitting steepest descent, arXiv 1910.02366). It is the block of neuron j in $H^{(2)}$ (001, eq. 3.10), as
    `escape` uses it, but needs no critical point and nothing of the size of all parameters. A negative eigenvalue says
    that a split of neuron j, which keeps the output, lies above lower loss: the loss falls with the square of the
    distance of the copies. Where all are at least zero, splitting one neuron does not help. Of piecewise linear
    activations (ReLU) σ'' is zero and so is all of it: there it says nothing.

    Args:
        model: any module that maps the inputs to what the loss takes; not changed, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.
        layers: names of hidden layers; all Linears among them whose neurons may be split if None.

    Returns:
        One for every layer, in the order of the graph.

    Raises:
        InputError: a name is no such layer, or there is none; the data are no pair of tensors.

    One tanh neuron of slope zero at x = ±1, where the loss wants less: σ''(z) = -2 t (1 - t²) with t = tanh(z):

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    >>> for parameter, value in zip(net.parameters(), (1.0, 0.0, 1.0, 0.0)):
    ...     _ = nn.init.constant_(parameter, value)
    >>> x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    >>> (found,) = splitting_curvature(net, nn.MSELoss(), (x, 0 * x))
    >>> t = torch.tensor(1.0, dtype=torch.float64).tanh()
    >>> torch.allclose(found.values, 2 * t * -2 * t * (1 - t**2))
    True
    """
    inputs, targets = checked(data)
    double = copy.deepcopy(model).double().eval()
    graph = observe(double, tapes_of(double, [inputs], None, 0))
    return layer_curvatures(double, splittable(double, graph, layers), lambda: loss(double(inputs), targets))


def splittable(model: nn.Module, graph: Graph, names: Sequence[str] | None) -> list[HiddenLayer]:
    """The hidden layers that are Linears, whose neurons may be split and keep to their rows."""
    layers = list(graph.layers) if names is None else [hidden_layer(graph, name) for name in names]
    reasons = {
        layer.name: str(layer.merge_neurons)
        if layer.merge_neurons
        else "it is no nn.Linear"
        if not isinstance(linear := submodule(model, layer.name), nn.Linear)
        else "its weights are frozen"
        if not all(one.requires_grad for one in linear.parameters())
        else "its neurons' places are shared with other values"
        if len(layer.producers) != 1 or not in_blocks(model, layer)
        else "rows mix behind it"
        if layer.rows_mix
        else ""
        for layer in layers
    }
    bad = {name: reason for name, reason in reasons.items() if reason}
    if names is not None and bad:
        name, reason = next(iter(bad.items()))
        raise InputError(f"{name!r} has no splitting curvature: {reason}.")
    found = [layer for layer in layers if layer.name not in bad]
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in (bad or graph.refused).items())
        raise InputError(f"No hidden layer is a Linear whose neurons may be split ({why or 'there is none'}).")
    return found


@torch.inference_mode(mode=False)
def layer_curvatures(
    model: nn.Module, layers: Sequence[HiddenLayer], value: Callable[[], Tensor]
) -> tuple[SplittingCurvature, ...]:
    """Splitting curvatures of a model's layers for a function that runs the model and gives the loss.

    Modes, buffers, gradients and random state are preserved.
    """
    seen: dict[str, _Seen] = {layer.name: _Seen() for layer in layers}
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(preserved(model))
        set_modes(model, training=False)
        for layer in layers:
            hooks = seen[layer.name]
            stack.callback(submodule(model, layer.name).register_forward_hook(hooks.produced).remove)
            for reader in layer.consumers:
                stack.callback(submodule(model, reader).register_forward_pre_hook(hooks.read).remove)
        total = value()
        return tuple(seen[layer.name].curvature(layer.name, total, submodule(model, layer.name)) for layer in layers)


class _Seen:
    """What a layer was given and gave, and what its readers were given, call by call."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.pre: list[Tensor] = []
        self.post: dict[int, Tensor] = {}

    def produced(self, _: nn.Module, given: tuple[Tensor, ...], pre: Tensor) -> Tensor:
        if not pre.requires_grad:  # of frozen weights: nothing before has a gradient
            pre = pre.detach().requires_grad_()
        self.inputs.append(given[0])
        self.pre.append(pre)
        return pre.clone()  # an activation in place may come next

    def read(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.post[id(given[0])] = given[0]  # one tensor may have several readers

    def curvature(self, name: str, total: Tensor, linear: nn.Module) -> SplittingCurvature:
        """With q = ⟨∂ℓ/∂h held fixed, h⟩, ∂q/∂z is (∂ℓ/∂h) σ'(z), and its derivative (∂ℓ/∂h) σ''(z)."""
        assert isinstance(linear, nn.Linear)
        posts = list(self.post.values())
        slopes = torch.autograd.grad(total, posts, retain_graph=True, allow_unused=True)
        pairs = [(slope, post) for slope, post in zip(slopes, posts, strict=True) if slope is not None]
        weights = [torch.zeros_like(pre) for pre in self.pre]
        if pairs:
            held = torch.stack([(slope.detach() * post).sum() for slope, post in pairs]).sum()
            first = torch.autograd.grad(held, self.pre, create_graph=True, allow_unused=True)
            bent = [one.sum() for one in first if one is not None and one.requires_grad]
            if bent:
                second = torch.autograd.grad(torch.stack(bent).sum(), self.pre, retain_graph=True, allow_unused=True)
                weights = [zero if one is None else one for zero, one in zip(weights, second, strict=True)]
        x = torch.cat([one.detach().flatten(0, -2) for one in self.inputs]).double()
        if linear.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        values, directions = splitting_eigenvalues(x, torch.cat([one.flatten(0, -2) for one in weights]))
        return SplittingCurvature(name, values, directions)


@dataclass(frozen=True, eq=False)
class Widened:
    """A network that has left a plateau by one more neuron.

    Attributes:
        model: the wider network, with lower loss; of the given model's type and dtype.
        layer: the hidden layer that has one neuron more.
        neuron: the neuron that was split; None where a new one was added.
        curvature: the splitting curvature of that neuron; NaN where a new one was added.
        loss: before, and after the step.
    """

    model: nn.Module
    layer: str
    neuron: int | None
    curvature: float
    loss: tuple[float, float]

    def __str__(self) -> str:
        how = "a new neuron" if self.neuron is None else f"neuron {self.neuron} split (curvature {self.curvature:.2e})"
        return f"{self.layer}: {how}; loss {self.loss[0]:.6g} → {self.loss[1]:.6g}"


def escape_by_widening(
    model: nn.Module, loss: Loss, data: Data, *, layers: Sequence[str] | None = None, seed: int = 0
) -> Widened:
    """From a plateau to a network that leaves it: one neuron more, and the step that lowers the loss.

    `widen` alone leaves a critical point critical (001, Thm. 4.1 and 5.1). Here two ways out are tried in every layer,
    and what lowers the loss most is taken. Where a splitting curvature is negative, that neuron is split into two equal
    shares, and the copies' input weights move apart along the eigenvector. And a null neuron is added, with input
    weights, so that the point is no longer critical: of random ones those whose output weights have the steepest
    gradient, and these step down it. The lengths of both steps are the best of powers of four. Nothing else moves;
    train on from there.

    Args:
        model: any module that maps the inputs to what the loss takes; it is left untouched, and run in eval mode.
        loss: outputs, targets → scalar, the mean over the samples.
        data: inputs and targets.
        layers: names of hidden layers that may be widened; all Linears whose neurons may be split if None.
        seed: of the random input weights.

    Returns:
        The wider network, and what was done. Its state dict describes its widths (`attach`).

    Raises:
        InputError: no layer may be widened, or nothing that was tried lowers the loss: then the point may be a global
            minimum, or as good as one.

    At zero weights a tanh network is at a critical point, whose splitting matrix is zero too:

    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    >>> for parameter in net.parameters():
    ...     _ = nn.init.zeros_(parameter)
    >>> x = torch.linspace(-1, 1, 9)[:, None]
    >>> found = escape_by_widening(net, nn.MSELoss(), (x, x))
    >>> found.model[0].out_features, found.neuron, found.loss[1] < found.loss[0] / 2
    (2, None, True)
    """
    inputs, targets = _as_given(model, data)
    graph = observe(model, tapes_of(model, [inputs], None, seed))
    free = splittable(model, graph, layers)

    def of(network: nn.Module) -> float:
        with torch.no_grad(), preserved(network):
            set_modes(network, training=False)
            return float(loss(network(inputs), targets))

    before = of(model)
    bent = splitting_curvature(model, loss, data, layers=[layer.name for layer in free])
    largest = max(float(one.values.abs().max()) for one in bent)
    found = []
    for layer, one in zip(free, bent, strict=True):
        if one.least < -FLAT * largest:
            neuron = int(one.values.argmin())
            parted = _split_apart(model, one, neuron, inputs, of)
            found.append(Widened(parted, layer.name, neuron, one.least, (before, of(parted))))
        grown = _with_new_neuron(model, layer, loss, (inputs, targets), of, seed)
        if grown is not None:
            found.append(Widened(grown, layer.name, None, math.nan, (before, of(grown))))
    lower = [one for one in found if one.loss[1] < before - NOTICEABLE * abs(before)]
    if lower:
        return min(lower, key=lambda one: one.loss[1])
    raise InputError(
        f"one more neuron lowers the loss {before:.6g} in no layer: no splitting curvature is negative, and of "
        f"{CANDIDATES} new neurons none helps. The point may be a global minimum; another seed= tries other neurons"
    )


def _as_given(model: nn.Module, data: Data) -> Data:
    """The data in the model's own precision."""
    inputs, targets = checked(data)
    like = next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))

    def cast(one: Tensor) -> Tensor:
        return one.to(like.dtype) if one.is_floating_point() else one

    return cast(inputs), cast(targets)


def _best(
    model: nn.Module, move: Callable[[float], None], lengths: Sequence[float], of: Callable[[nn.Module], float]
) -> None:
    """Make the move of the length that gives the least loss; lengths whose loss is not finite count as none."""
    losses = []
    for length in lengths:
        move(length)
        losses.append(of(model))
    comparable = [math.inf if math.isnan(value) else value for value in losses]
    move(lengths[comparable.index(min(comparable))])


def _split_apart(
    model: nn.Module, curvature: SplittingCurvature, neuron: int, inputs: Tensor, of: Callable[[nn.Module], float]
) -> nn.Module:
    wide = embed(model, {curvature.layer: Split(neuron, 0.5)}, [inputs])
    linear = submodule(wide, curvature.layer)
    assert isinstance(linear, nn.Linear)
    row = linear.weight[neuron].detach().clone()
    bias = None if linear.bias is None else linear.bias[neuron].detach().clone()
    along = curvature.directions[neuron].to(row)
    scale = max(float(row.norm()), 1e-2)

    def move(length: float) -> None:
        with torch.no_grad():
            for place, sign in ((neuron, 1.0), (-1, -1.0)):
                linear.weight[place] = row + sign * length * along[: len(row)]
                if bias is not None:
                    linear.bias[place] = bias + sign * length * along[-1]

    _best(wide, move, [scale * step for step in STEPS], of)
    return wide


def _with_new_neuron(
    model: nn.Module, layer: HiddenLayer, loss: Loss, data: Data, of: Callable[[nn.Module], float], seed: int
) -> nn.Module | None:
    """Of many null neurons the one whose output weights have the steepest gradient, and a step down it."""
    inputs, targets = data
    linear = submodule(model, layer.name)
    assert isinstance(linear, nn.Linear)
    readers = [submodule(model, reader) for reader in layer.consumers]
    if not all(isinstance(one, nn.Linear) and one.in_features == layer.width for one in readers):
        return None  # a neuron has several columns there
    given: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: given.append(args[0].detach().flatten(0, -2)))
    try:
        of(model)
    finally:
        handle.remove()
    rows, bias = _random_neurons(torch.cat(given), linear.bias is not None, seed)
    wide = embed(model, {layer.name: Null(CANDIDATES, bias, rows)}, [inputs])
    place, columns = _steepest(wide, layer, lambda: loss(wide(inputs), targets))
    size = sum(float(column.square().sum()) for column in columns) ** 0.5
    if not 0 < size < math.inf:
        return None
    one = slice(place, place + 1)
    found = embed(model, {layer.name: Null(1, None if bias is None else bias[one], rows[one])}, [inputs])
    weights = [submodule(found, reader).weight for reader in layer.consumers]

    def move(length: float) -> None:
        with torch.no_grad():
            for weight, column in zip(weights, columns, strict=True):
                assert isinstance(weight, Tensor)
                weight[:, -1] = -length / size * column

    _best(found, move, STEPS, of)
    return found


def _random_neurons(x: Tensor, biased: bool, seed: int) -> tuple[Tensor, Tensor | None]:
    """Input weights of random directions and steepnesses, with biases such that each neuron bends at a sample."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(CANDIDATES, x.shape[1], generator=generator, dtype=torch.float64).to(x)
    steep = 4.0 ** torch.randint(0, 3, (CANDIDATES, 1), generator=generator).to(x)
    spread = x.std(0, correction=0).clamp_min(1e-3 * float(x.abs().max()) + 1e-12)
    rows = steep * raw / spread / x.shape[1] ** 0.5
    samples = x[torch.randint(0, len(x), (CANDIDATES,), generator=generator).to(x.device)]
    return rows, -(rows * samples).sum(1) if biased else None


def _steepest(wide: nn.Module, layer: HiddenLayer, value: Callable[[], Tensor]) -> tuple[int, list[Tensor]]:
    """Which of the last neurons promises most, and the gradients of its output weights, one for every reader.

    A step down a gradient g along a feature φ lowers the loss by about |g|² / E φ².
    """
    readers = [submodule(wide, reader) for reader in layer.consumers]
    weights = [one.weight for one in readers if isinstance(one, nn.Linear)]
    power: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(preserved(wide))
        set_modes(wide, training=False)
        hook = readers[0].register_forward_pre_hook(lambda _, args: power.append(args[0].detach().flatten(0, -2)))
        stack.callback(hook.remove)
        gradients = [one[:, -CANDIDATES:] for one in torch.autograd.grad(value(), weights)]
    size = torch.cat(power)[:, -CANDIDATES:].square().mean(0)
    steepness = torch.stack([one.square().sum(0) for one in gradients]).sum(0) / (size + 1e-12 * size.max() + 1e-30)
    place = int(steepness.nan_to_num(0.0).argmax())
    return place, [one[:, place] for one in gradients]
