"""The hidden layers of a model as they are seen in its calls, and what may be done to each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.graph.flows import Flow, Site, follow, is_quantized, static_refusals
from lightning_embed.graph.layout import Layout, is_layer, is_sharded, pads_zeros
from lightning_embed.graph.observer import Observation, Observer
from lightning_embed.graph.reasons import Reason, legend
from lightning_embed.graph.regions import Probe, Region, Traits, same
from lightning_embed.tape.tape import Tape, eager, modules_by_name, preserved, set_modes, tensors_by_name
from lightning_embed.tape.tree import canonical_name


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A Linear or convolution, the region behind it, and the layers that read it. Names only, no modules.

    Attributes:
        name: canonical qualified name of the Linear or convolution.
        width: number of neurons (units); those of a convolution are its channels.
        producers: layers whose outputs hold the units, and where; `name` is the first of them.
        reads: layers that read the units, and where in their inputs these are.
        region: the program between; run it with `Graph.run_region`.
        region_modules: modules that lie wholly between, in the order of their calls; they become identities when the
            layer is removed.
        per_neuron: (qualified tensor name, layout) of parameters and buffers between that are cut with the neurons:
            batch norm, per-channel activations.
        uniform: the same function in every column.
        odd: uniform, and f(-z) = -f(z).
        homogeneous: uniform, and f(cz) = c f(z) for c > 0.
        fixed: other layers, or "input", whose values what lies between uses and nobody cuts.
        rows_mix: whether pooling, attention or scattering lies between, which mixes samples or positions.
        intercepts: for every reader, whether its bias can stand for a neuron that is constant; not where it pads zeros.
        merge_neurons: why its neurons may not be merged; None when they may.
        merge_layer: why it may not be removed; None when it may.
    """

    name: str
    width: int
    producers: Mapping[str, Layout]
    reads: Mapping[str, Layout]
    region: Region = field(repr=False)
    region_modules: tuple[str, ...] = ()
    per_neuron: tuple[tuple[str, Layout], ...] = ()
    fixed: tuple[str, ...] = ()
    rows_mix: bool = False
    uniform: bool = False
    odd: bool = False
    homogeneous: bool = False
    intercepts: Mapping[str, bool] = field(default_factory=dict)
    merge_neurons: str | None = None
    merge_layer: str | None = None

    @property
    def consumers(self) -> tuple[str, ...]:
        """The layers that read it."""
        return tuple(self.reads)

    @property
    def intercept(self) -> bool:
        """Whether the biases of all readers can stand for a neuron that is constant."""
        return all(self.intercepts.values())


@dataclass(frozen=True, eq=False)
class Graph:
    """The hidden layers of a model, in the order of its modules, and the layers that were refused, with reasons.

    It holds names and no modules, so it fits every copy of the model. `print(graph)` shows it as a table.

    Attributes:
        layers: the hidden layers.
        refused: why the other Linears and convolutions are none.
        modeless: whether the model computes the same in train as in eval mode, so that a training step's own forward
            pass shows what a replay would.
    """

    layers: tuple[HiddenLayer, ...]
    refused: dict[str, Reason]
    modeless: bool = False

    def __getitem__(self, name: str) -> HiddenLayer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def __str__(self) -> str:
        rows = [
            [
                layer.name,
                str(layer.width),
                " ".join(layer.region.functions),
                ", ".join(layer.consumers),
                layer.merge_neurons or "yes",
                layer.merge_layer or "yes",
            ]
            for layer in self.layers
        ]
        rows += [[name, "", "", "", str(reason), str(reason)] for name, reason in self.refused.items()]
        heads = ["layer", "width", "between", "read by", "neurons may merge", "layer may go"]
        table = str(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
        return "\n".join([table, *legend(reason for row in rows for reason in row[4:])])

    def run_region(self, model: nn.Module, layer: str, pre: Tensor, consumer: str | None = None) -> Tensor:
        """Re-execute what lies between a layer and a consumer, as in eval mode.

        Args:
            model: where parameters and buffers are looked up by name.
            layer: name of a layer of this graph.
            pre: values in place of the layer's output, shape (…, width), of a convolution (samples, channels, …); any
                number of samples.
            consumer: whose input is wanted; needed only where consumers read different values.

        Returns:
            The consumer's input, of a Linear in the shape of `pre`.

        Raises:
            InputError: several consumers read different values and none was chosen.

        Differentiable with respect to `pre`; changes neither `pre` nor the model's buffers.

        >>> from lightning_embed.tape import record
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> graph = observe(net, record(net, [torch.ones(3, 2)]))
        >>> graph.run_region(net, "0", torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
        """
        region = self[layer].region
        if consumer is None and len({slot for _, slot in region.posts}) > 1:
            names = ", ".join(name for name, _ in region.posts)
            raise InputError(f"The consumers of {layer!r} read different values; pass consumer=, one of {names}.")
        buffers = {id(buffer) for buffer in model.buffers()}
        known = tensors_by_name(model)
        named = {name: known[name].clone() if id(known[name]) in buffers else known[name] for name in region.names}
        middle = (1,) * (len(region.shape) - 2)
        like = pre if pre.dim() == len(region.shape) else pre.reshape(-1, *middle, pre.shape[-1])
        post = region.run(named, like)[consumer or region.posts[0][0]]
        return post if region.layout.positions else post.reshape(pre.shape)


def observe(model: nn.Module, tapes: Sequence[Tape], known: dict[Any, Traits] | None = None) -> Graph:
    """See, in eval and in train mode, which layers are hidden and what may be done to them.

    One tape of every distinct structure is replayed while functions, modules and tensors are watched. A Linear or
    convolution is a hidden layer if its weights are plain parameters used by nothing else, every path from its output
    ends in other such layers that it alone feeds, in every call and in both modes, and what lies between keeps neurons
    apart: changing some of them (or some samples) changes only those, and it can be cut to fewer neurons. Positions
    of a convolution's channels may mix, as pooling does; those behind a Linear may not.

    Args:
        model: the recorded module, or a copy.
        tapes: from `record` or `Recorder`.
        known: what was found of regions in the same model before a merge; used where a region is still the same, and
            added to.

    Returns:
        The graph. Its permissions hold for the architecture: names and shapes, not values.

    Raises:
        InputError: there is no tape.
        ReplayError: the tapes do not run on the model.

    The model's parameters, buffers and modes and all random state are left as they were.

    >>> from lightning_embed.tape import record
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    >>> graph = observe(net, record(net, [torch.ones(3, 2)]))
    >>> graph["0"].consumers, graph["0"].odd, str(graph.refused["2"])
    (('2',), True, "is the model's output")
    """
    if not tapes:
        raise InputError("tapes is empty: record at least one call of the model first.")
    # of tapes alike the first counts; one sample alone would show neither rows that mix nor a batch's statistics
    by_structure: dict[tuple[Any, ...], Tape] = {}
    for tape in sorted(tapes, key=lambda tape: tape.samples < 2):
        by_structure.setdefault(tape.structure, tape)
    distinct = list(by_structure.values())
    with torch.inference_mode(mode=False), warnings.catch_warnings(), eager():
        warnings.simplefilter("ignore")  # the model's own warnings were shown when it was recorded
        evaluated = [_watch(model, tape, training=False) for tape in distinct]
        try:
            trained = [_watch(model, tape, training=True) for tape in distinct]
            failure = ""
        except ReplayError as error:
            trained, failure = [], str(error)
        with torch.no_grad(), preserved(model):
            return _graph(model, evaluated, trained, failure, {} if known is None else known)


def _watch(model: nn.Module, tape: Tape, *, training: bool) -> Observation:
    with ExitStack() as stack:
        stack.enter_context(preserved(model))
        sharded = any(map(is_sharded, model.modules()))
        stack.enter_context(torch.set_grad_enabled(training and not sharded))  # else it prepares for a backward pass
        if not (training and model.training):  # in training the user's mixture of modes is the train mode
            set_modes(model, training=training)
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):  # it would wait for processes that do not look on
                vars(module)["forward"] = partial(nn.modules.batchnorm._BatchNorm.forward, module)
        return Observer(model).run(tape, training=training)


def _graph(
    model: nn.Module,
    evaluated: Sequence[Observation],
    trained: Sequence[Observation],
    failure: str,
    known: dict[Any, Traits],
) -> Graph:
    plain = static_refusals(model, [*evaluated, *trained])
    names = [canonical_name(n) for n, one in model.named_modules() if is_layer(one) or is_quantized(one)]
    layers, refused = [], {}
    for name in dict.fromkeys(names):
        found = _layer(model, name, plain, evaluated, trained, failure, known)
        if isinstance(found, Reason):
            refused[name] = found
        else:
            layers.append(found)
    alike = not failure and all(map(Observation.equals, evaluated, trained))
    return Graph(tuple(layers), refused, alike)


def _layer(
    model: nn.Module,
    name: str,
    plain: dict[str, Reason],
    evaluated: Sequence[Observation],
    trained: Sequence[Observation],
    failure: str,
    known: dict[Any, Traits],
) -> HiddenLayer | Reason:
    if name in plain:
        return plain[name]
    flow = follow(model, name, plain, evaluated, exact=True)
    if isinstance(flow, Reason):
        return flow
    if failure:
        return Reason("differs in train mode", failure)
    in_training = follow(model, name, plain, trained, exact=False)
    if isinstance(in_training, Reason):
        return Reason("differs in train mode", str(in_training))
    if set(in_training.consumers) != set(flow.consumers):
        return Reason("differs in train mode", f"read by {', '.join(in_training.consumers)}")
    named = tensors_by_name(model)
    site = flow.sites[0]
    if type(site.call.pre) is not Tensor:
        return Reason("not measurable", f"a {type(site.call.pre).__name__}")
    if not site.call.pre.is_floating_point() or not site.call.pre.shape[-1]:
        return Reason("not measurable", f"{site.call.pre.shape[-1]} neurons of {site.call.pre.dtype}")
    traits = _traits(name, site, named, known)
    if isinstance(traits, Reason):
        return traits
    neurons, layer = _permissions(model, name, flow, in_training, traits)
    if neurons is not None and layer is not None and neurons.key == layer.key != "weight sharded":
        return neurons
    return HiddenLayer(
        name=name,
        width=site.call.neurons,
        producers={name: Layout.blocks(site.call.layout.dim, site.call.neurons)},
        reads=dict(zip(flow.consumers, site.region.reads, strict=True)),
        region=site.region,
        region_modules=tuple(dict.fromkeys((*flow.modules, *in_training.modules))),
        per_neuron=tuple((tensor, Layout.blocks(dim, site.call.neurons)) for tensor, dim in traits.per_neuron),
        uniform=traits.uniform,
        odd=traits.odd,
        homogeneous=traits.homogeneous,
        intercepts={
            one.layer: not pads_zeros(one.module)
            for seen in evaluated
            for one in seen.calls
            if one.layer in flow.consumers
        },
        merge_neurons=None if neurons is None else str(neurons),
        merge_layer=None if layer is None else str(layer),
    )


def _permissions(
    model: nn.Module, name: str, flow: Flow, in_training: Flow, traits: Traits
) -> tuple[Reason | None, Reason | None]:
    """Why the neurons of a layer may not be merged, and why it may not be removed; None where they may."""
    modules = modules_by_name(model)
    if any(is_sharded(modules[one]) for one in (name, *flow.consumers)):
        return Reason("weight sharded"), Reason("weight sharded")
    cut = [one for one, _ in traits.per_neuron]
    neurons = traits.cut or _foreign_use(name, [flow, in_training], cut) or _unsaved(model, cut)
    return neurons, _removable(flow, in_training, tensors_by_name(model))


def _traits(name: str, site: Site, named: dict[str, Tensor], known: dict[Any, Traits]) -> Traits | Reason:
    """What the region behind a layer is, found by running it unless it is known; or why it is no such region."""
    calls, posts = site.region.signature
    key = (name, calls, tuple(slot for _, slot in posts), site.region.shape)  # whoever reads it now
    if key in known:
        return known[key]
    probe = Probe(site.region, named, site.call.pre)
    try:
        reason = probe.refusal(site.given)
        if reason is not None:
            return reason
        known[key] = probe.traits()
    except Exception as error:  # noqa: BLE001  # whatever a re-executed function raises
        return Reason("cannot be cut", f"re-executing it fails: {error}")
    return known[key]


def _foreign_use(name: str, flows: Iterable[Flow], tensors: Iterable[str]) -> Reason | None:
    """Whether tensors that are to be cut with the neurons serve another layer too."""
    for flow in flows:
        for tensor in tensors:
            if tensor in flow.foreign:
                return Reason("activation shared", f"{tensor} is used outside {name!r} too")
    return None


def _unsaved(model: nn.Module, tensors: Iterable[str]) -> Reason | None:
    """Whether cut tensors would be missing in a checkpoint, from which the cut could not be repeated."""
    for tensor in tensors:
        owner, _, name = tensor.rpartition(".")
        if name in modules_by_name(model)[owner]._non_persistent_buffers_set:
            return Reason("cannot be cut", f"the buffer {tensor} is not persistent")
    return None


def _removable(flow: Flow, in_training: Flow, named: dict[str, Tensor]) -> Reason | None:
    """Why what lies between cannot be taken out of the way by identities in its modules' places."""
    if flow.sites[0].region.layout.positions or any(one.positions for one in flow.sites[0].region.reads):
        return Reason("convolution")
    for one in (flow, in_training):
        if one.shared:
            return Reason("activation shared", ", ".join(one.shared))
        for site in one.sites:
            if not (_passes_through(site, named, site.call.pre) and _passes_through(site, named, site.call.given)):
                return Reason("activation in code", ", ".join(site.bypass.functions))
    return None


def _passes_through(site: Site, named: dict[str, Tensor], value: Tensor) -> bool:
    """Whether what stays in the user's code leaves a value alone.

    It must do so with the layer's output and with its input, which takes its place once the layer is gone.
    """
    copies = {name: named[name].clone() for name in site.bypass.names}
    try:
        posts = site.bypass.run(copies, value).values()
    except Exception:  # noqa: BLE001  # whatever a re-executed function raises at another width
        return False
    return all(
        post.numel() == value.numel() and same(post.reshape(value.shape).to(value.dtype), value) for post in posts
    )
