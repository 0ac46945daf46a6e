"""The hidden layers of a model as they are seen in its calls, and what may be done to each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

from lightning_embed.errors import InputError, ReplayError
from lightning_embed.graph.flows import Flow, Way, follow, is_quantized, static_refusals
from lightning_embed.graph.layout import Layout, bias_can_stand, is_layer, is_sharded
from lightning_embed.graph.observer import Observation, Observer
from lightning_embed.graph.reasons import Reason, legend
from lightning_embed.graph.regions import Region, same
from lightning_embed.graph.sites import Reach, find_sites, reach_of, site_events
from lightning_embed.graph.trial import narrowed
from lightning_embed.graph.verification import Site
from lightning_embed.tape.tape import Tape, eager, modules_by_name, preserved, replay, set_modes, tensors_by_name
from lightning_embed.tape.tree import canonical_name

SAMPLES = (8, 7, 9, 11, 13, 5)  # of a tape on which a model is observed, the first that fits


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A class of units (neurons) that hang together: rows of layers and the columns of those that read them.

    Mostly the units are the neurons of one Linear, or the channels of one convolution. The two factors of a gate, or
    all layers that add to a residual stage, are producers of one hidden layer. Names only, no modules.

    Attributes:
        name: canonical qualified name of its first producer, with the rows behind it where it has only some of them.
        width: number of neurons (units); those of a convolution are its channels.
        producers: layers whose outputs hold the units, and where; `name` is the first of them.
        reads: layers that read the units, and where in their inputs these are.
        functions: names of the functions between.
        region: the program between, where one producer alone feeds the readers; run it with `Graph.run_region`.
        region_modules: modules that lie wholly between, in the order of their calls; they become identities when the
            layer is removed. Empty where there are several producers.
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
    functions: tuple[str, ...] = ()
    region: Region | None = field(default=None, repr=False)
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
        """The hidden layer of a name, or the only one that has a layer of this name among its producers."""
        named = [layer for layer in self.layers if layer.name == name]
        holding = named or [layer for layer in self.layers if name in layer.producers]
        if len(holding) != 1:
            raise KeyError(name)
        return holding[0]

    def __str__(self) -> str:
        rows = [
            [
                ", ".join([layer.name, *list(layer.producers)[1:]]),
                str(layer.width),
                " ".join(layer.functions),
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
            InputError: several consumers read different values and none was chosen, or several producers or other data
                come together between, so that there is no single value to start from.

        Differentiable with respect to `pre`; changes neither `pre` nor the model's buffers.

        >>> from lightning_embed.tape import record
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> graph = observe(net, record(net, [torch.ones(3, 2)]))
        >>> graph.run_region(net, "0", torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
        """
        region = self[layer].region
        if region is None:
            raise InputError(
                f"Between {layer!r} and its readers other data come in; there is no one value to begin with."
            )
        if consumer is None and len({post.slot for post in region.posts}) > 1:
            names = ", ".join(post.layer for post in region.posts)
            raise InputError(f"The consumers of {layer!r} read different values; pass consumer=, one of {names}.")
        buffers = {id(buffer) for buffer in model.buffers()}
        known = tensors_by_name(model)
        named = {name: known[name].clone() if id(known[name]) in buffers else known[name] for name in region.names}
        (start,) = region.starts
        middle = (1,) * (start.pre.dim() - 2)
        like = pre if pre.dim() == start.pre.dim() else pre.reshape(-1, *middle, pre.shape[-1])
        posts = dict(zip((post.layer for post in region.posts), region.run(named, {start.call: like}), strict=True))
        post = posts[consumer or region.posts[0].layer]
        return post if self[layer].producers[start.layer].positions else post.reshape(pre.shape)


def observe(model: nn.Module, tapes: Sequence[Tape], known: dict[Any, Any] | None = None) -> Graph:
    """See, in eval and in train mode, which layers are hidden and what may be done to them.

    One tape of every distinct structure is replayed, with few samples, while functions, modules and tensors are
    watched. Rows of layers are the units of a hidden layer if the weights are plain parameters used by nothing else,
    every path from the layers' outputs ends in other such layers, in every call and in both modes, and what lies
    between keeps units apart: changing some of them changes only their columns in the readers, and it can be cut to
    fewer of them. Samples and positions may mix, as pooling and attention do; then neurons may be merged, but no layer
    be removed.

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
        few = [_shortened(model, tape) for tape in distinct]
        evaluated = [_watch(model, tape, training=False) for tape in few]
        try:
            trained = [_watch(model, tape, training=True) for tape in few]
            failure = ""
        except ReplayError as error:
            trained, failure = [], str(error)
        with torch.no_grad(), preserved(model):
            return _Builder(model, few, evaluated, trained, failure).graph({} if known is None else known)


def _shortened(model: nn.Module, tape: Tape) -> Tape:
    """The tape with few samples, on which all questions are asked; as it is, if the model does not take so few.

    As many as no tensor of the model has entries: a size that the program writes down is then either the one or the
    other.
    """
    sizes = {size for tensor in tensors_by_name(model).values() for size in _shape_of(tensor)}
    for samples in SAMPLES:
        if samples < tape.samples and samples not in sizes:
            few = tape.first(samples)
            try:
                replay(model, few)
            except ReplayError:
                return tape
            return few
    return tape


def _shape_of(tensor: Tensor) -> tuple[int, ...]:
    return () if nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


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


class _Builder:
    """Puts a graph together from what was observed in both modes."""

    def __init__(
        self,
        model: nn.Module,
        tapes: Sequence[Tape],
        evaluated: Sequence[Observation],
        trained: Sequence[Observation],
        failure: str,
    ) -> None:
        self.model, self.tapes = model, tapes
        self.evaluated, self.trained, self.failure = evaluated, trained, failure
        self.plain = static_refusals(model, [*evaluated, *trained])
        self.named = tensors_by_name(model)
        self.modules = modules_by_name(model)

    def graph(self, known: dict[Any, Any]) -> Graph:
        """The graph; `known` holds what was found of regions before."""
        sites, refused = find_sites(self.evaluated, self.plain, self.named, known)
        names = [canonical_name(n) for n, one in self.model.named_modules() if is_layer(one) or is_quantized(one)]
        place = {name: number for number, name in enumerate(dict.fromkeys(names))}
        refused = {**self.plain, **refused}
        layers = []
        for site, name in self._named_sites(sites, place):
            result = self._layer(site, name)
            if isinstance(result, HiddenLayer):
                layers.append(result)
            else:
                refused.update({producer: result for producer in site.producers if producer not in refused})
        held = {producer for layer in layers for producer in layer.producers}
        alike = not self.failure and all(map(Observation.equals, self.evaluated, self.trained))
        return Graph(
            tuple(layers),
            {name: refused.get(name, Reason("no consumer")) for name in place if name not in held},
            alike,
        )

    def _named_sites(self, sites: Sequence[Site], place: Mapping[str, int]) -> list[tuple[Site, str]]:
        """The sites in the order of the modules, each with a name of its own."""
        rows = {call.layer: call.neurons for seen in self.evaluated for call in seen.calls}
        pairs = []
        for site in sites:
            whole = [name for name, layout in site.producers.items() if layout.units * layout.size == rows[name]]
            first = whole[0] if whole else next(iter(site.producers))
            name = first if whole else f"{first}[{rows_text(site.producers[first])}]"
            ordered = {first: site.producers[first], **site.producers}
            pairs.append((place[first], int(site.producers[first].index.min()), replace(site, producers=ordered), name))  # type: ignore[union-attr]  # sites have indices
        return [(site, name) for _, _, site, name in sorted(pairs, key=lambda pair: pair[:2])]

    def _layer(self, site: Site, name: str) -> HiddenLayer | Reason:
        differs = self._differs_in_training(site)
        if differs is not None:
            return differs
        neurons = self._cut_refusal(site)
        flow = self._flow(site)
        layer = flow if isinstance(flow, Reason) else self._removal_refusal(site, *flow)
        if any(is_sharded(self.modules[one]) for one in (*site.producers, *site.reads)):
            neurons = layer = Reason("weight sharded")
        elif neurons is not None and (len(site.producers) > 1 or site.fixed):
            return neurons
        if neurons is not None and layer is not None and neurons.key == layer.key != "weight sharded":
            return neurons
        modules = () if isinstance(flow, Reason) else tuple(dict.fromkeys((*flow[0].modules, *flow[1].modules)))
        return HiddenLayer(
            name=name,
            width=site.units,
            producers=dict(site.producers),
            reads=dict(site.reads),
            functions=site.functions,
            region=None if isinstance(flow, Reason) else flow[0].ways[0].region,
            region_modules=modules,
            per_neuron=site.per_neuron,
            fixed=site.fixed,
            rows_mix=site.rows_mix,
            uniform=site.uniform,
            odd=site.odd,
            homogeneous=site.homogeneous,
            intercepts={reader: bias_can_stand(self.modules[reader]) for reader in site.reads},  # type: ignore[arg-type]  # readers are layers
            merge_neurons=None if neurons is None else str(neurons),
            merge_layer=None if layer is None else str(layer),
        )

    # ---- what training does ----

    def _differs_in_training(self, site: Site) -> Reason | None:
        """Why a site is none in train mode."""
        if self.failure:
            return Reason("differs in train mode", self.failure)
        for name in site.producers:
            for seen, reaches in self._reaches["train"]:
                for call, reach in zip(seen.calls, reaches, strict=True):
                    if call.layer == name and reach.reason is not None:
                        return Reason("differs in train mode", str(reach.reason))
            readers = self._readers(name, "train")
            if readers != self._readers(name, "eval"):
                return Reason("differs in train mode", f"read by {', '.join(sorted(readers)) or 'no layer'}")
        for reader in site.reads:
            eval_feeders, train_feeders = (self._feeders(mode, reader) for mode in (self.evaluated, self.trained))
            if eval_feeders != train_feeders:
                others = ", ".join(sorted(eval_feeders ^ train_feeders))
                return Reason("differs in train mode", f"{reader!r} reads {others} in one of the modes")
        return None

    def _readers(self, layer: str, mode: str) -> set[str]:
        """The layers that read a layer in a mode."""
        return {
            seen.calls[reader].layer
            for seen, reaches in self._reaches[mode]
            for call, reach in zip(seen.calls, reaches, strict=True)
            if call.layer == layer
            for reader in reach.readers
        }

    @cached_property
    def _reaches(self) -> dict[str, list[tuple[Observation, list[Reach]]]]:
        modes = {"eval": self.evaluated, "train": self.trained}
        return {mode: [(seen, reach_of(seen)) for seen in observations] for mode, observations in modes.items()}

    @staticmethod
    def _feeders(observations: Sequence[Observation], reader: str) -> set[str]:
        """The layers whose values a layer reads."""
        return {
            seen.calls[origin].layer
            for seen in observations
            for call in seen.calls
            if call.layer == reader
            for origin in seen.values[call.read].origins
            if origin >= 0
        }

    # ---- may its neurons be merged? ----

    def _cut_refusal(self, site: Site) -> Reason | None:
        """Why the neurons of a site may not be merged."""
        if site.cut is not None:
            return site.cut
        names = [name for name, _ in site.per_neuron]
        for name in names:
            owner, _, tensor = name.rpartition(".")
            if tensor in self.modules[owner]._non_persistent_buffers_set:
                return Reason("cannot be cut", f"the buffer {name} is not persistent")
        foreign = self._foreign_use(site, names)
        if foreign is not None:
            return foreign
        return self._trial(site) if site.written_sizes else None

    def _foreign_use(self, site: Site, names: Sequence[str]) -> Reason | None:
        """Whether tensors that are to be cut with the neurons serve another layer too."""
        twice = _held_twice(self.model)
        for observations in (self.evaluated, self.trained):
            for seen in observations:
                inside = site_events(seen, site)
                for number, event in enumerate(seen.events):
                    if number in inside:
                        continue
                    for value in event.inputs:
                        if seen.values[value].name in names:
                            return Reason("activation shared", f"{seen.values[value].name} is used elsewhere too")
        shared = [name for name in names if name in twice]
        return Reason("activation shared", f"{shared[0]} is held under two names") if shared else None

    def _trial(self, site: Site) -> Reason | None:
        """Whether the model itself runs with half of the units, where its code names sizes."""
        kept = torch.arange(max(1, site.units // 2))
        try:
            with narrowed(self.model, site.producers, site.reads, site.per_neuron, kept):
                for tape in self.tapes:
                    replay(self.model, tape)
        except ReplayError as error:
            where = ", ".join(site.written_sizes)
            return Reason("cannot be cut", f"sizes are written in the code of {where}: {error.__cause__ or error}")
        return None

    # ---- may it be removed? ----

    def _flow(self, site: Site) -> tuple[Flow, Flow] | Reason:
        """What lies behind each call, in both modes, of a layer that alone feeds its readers; or why it does not."""
        if len(site.producers) > 1:
            return Reason("joined by", f"{', '.join(site.functions)} with {', '.join(list(site.producers)[1:])}")
        if site.fixed:
            return Reason("joined by", f"{', '.join(site.functions)} with {', '.join(site.fixed)}")
        (name,) = site.producers
        flow = follow(self.model, name, self.evaluated, exact=True)
        if isinstance(flow, Reason):
            return flow
        in_training = follow(self.model, name, self.trained, exact=False)
        return in_training if isinstance(in_training, Reason) else (flow, in_training)

    def _removal_refusal(self, site: Site, flow: Flow, in_training: Flow) -> Reason | None:
        """Why what lies between cannot be taken out of the way by identities in its modules' places."""
        (layout,) = site.producers.values()
        if any(read.positions for read in (layout, *site.reads.values())):
            return (
                Reason("convolution")
                if _maps(site)
                else Reason("changes size", f"of each neuron, by {', '.join(site.functions)}")
            )
        if site.rows_mix:
            return Reason("rows mix", ", ".join(site.functions))
        if site.rows_differ:
            return Reason("rows differ", site.rows_differ)
        for mode in (flow, in_training):
            if mode.shared:
                return Reason("activation shared", ", ".join(mode.shared))
            for way in mode.ways:
                if not (_passes_through(way, self.named, way.call.pre) and _passes_through(way, self.named, way.given)):
                    return Reason("activation in code", ", ".join(way.bypass.functions))
        return None


def _maps(site: Site) -> bool:
    """Whether convolutions are among the layers of a site."""
    return any(layout.dim != -1 for layout in (*site.producers.values(), *site.reads.values()))


def rows_text(layout: Layout) -> str:
    """Rows in words: 24:48, or the first and the last where they are no range."""
    assert layout.index is not None
    rows = layout.index.flatten().sort().values
    low, high = int(rows[0]), int(rows[-1]) + 1
    return f"{low}:{high}" if high - low == len(rows) else f"{low}…{high - 1}"


def _held_twice(model: nn.Module) -> set[str]:
    """The names of parameters and buffers that have several."""
    names: dict[int, set[str]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        names.setdefault(id(tensor), set()).add(canonical_name(name))
    return {name for several in names.values() if len(several) > 1 for name in several}


def _passes_through(way: Way, named: dict[str, Tensor], value: Tensor) -> bool:
    """Whether what stays in the user's code leaves a value alone.

    It must do so with the layer's output and with its input, which takes its place once the layer is gone.
    """
    copies = {name: named[name].clone() for name in way.bypass.names}
    try:
        posts = way.bypass.run(copies, {way.number: value})
    except Exception:  # noqa: BLE001  # whatever a re-executed function raises at another width
        return False
    return all(
        post.numel() == value.numel() and same(post.reshape(value.shape).to(value.dtype), value) for post in posts
    )
