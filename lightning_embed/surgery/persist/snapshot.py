"""What a model looks like at one moment: layers, speed, directions of its neurons, predictions. For reports."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, HiddenLayer, is_layer, output_weight
from lightning_embed.statistics import cosine_groups, cosine_similarity
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.decide.scale import outputs_of
from lightning_embed.surgery.nominate.weights import condensation_vectors
from lightning_embed.tape import Tape, replay
from lightning_embed.tape.tape import bind, eager, execute, model_device, modules_by_name, preserved, set_modes

SHOWN = 128  # neurons of a similarity matrix, at most: more are no more than texture
CLASSES = 100  # more outputs are hardly scores of classes that a reader could tell apart
RUNS, SECONDS = 20, 0.1  # of a latency, whichever comes first, but three runs at least


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: number of parameters.
        hidden_layers: number of hidden layers that are observed.
        neurons: number of neurons in them.
        flops: floating-point operations of one forward pass for one sample, as torch's FlopCounterMode counts.
    """

    parameters: int
    hidden_layers: int
    neurons: int
    flops: int


@dataclass(frozen=True)
class LayerShape:
    """A Linear or convolution as it stands in the model.

    Attributes:
        name: qualified name.
        kind: its class.
        inputs: number of values or channels that it reads.
        width: number of neurons.
        hidden: whether it is a hidden layer that could be observed.
        consumers: the layers that read it; empty where it is not hidden.
        between: functions between it and them.
        reason: why it is left alone; empty where it is hidden.
        merge_neurons: why its neurons may not be merged; empty when they may.
        merge_layer: why it may not be removed; empty when it may.
        beside: other layers that make the same neurons, such as the gate of what it makes; they are cut together.
    """

    name: str
    kind: str
    inputs: int
    width: int
    hidden: bool
    consumers: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    reason: str = ""
    merge_neurons: str = ""
    merge_layer: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Similarity:
    """Cosine similarity of the neurons of a layer, ordered by group (as 004, Fig. 5 (b)).

    Attributes:
        layer: qualified name.
        neurons: width of the layer; at most 128 of them, evenly spaced, are shown.
        groups: sizes of the groups among those shown, the largest first.
        absolute: whether they are grouped by |cosine|, as the activation is odd.
        cosine: in hundredths, int8, shape (shown, shown).
    """

    layer: str
    neurons: int
    groups: tuple[int, ...]
    absolute: bool
    cosine: Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A model at one moment.

    Attributes:
        size: how large it is.
        layers: every Linear and convolution, in the order of the modules.
        latency: median time of one recorded call, in eval mode, in milliseconds.
        samples: how many samples the call has.
        device: where it ran.
        similarity: of the hidden layers whose neurons can be compared by their weights.
        predictions: arg-max of the outputs on the deciding data, shape (rows,); None if they are no class scores.
        classes: number of their columns.
    """

    size: Size
    layers: tuple[LayerShape, ...]
    latency: float
    samples: int
    device: str
    similarity: tuple[Similarity, ...] = ()
    predictions: Tensor | None = None
    classes: int = 0


def snapshot(
    model: nn.Module, graph: Graph, fit: Sequence[Tape], decide: Sequence[Tape] = (), *, threshold: float | None = None
) -> Snapshot:
    """Take a snapshot of a model on recorded tapes; nothing is changed.

    Args:
        model: as it is now.
        graph: what was observed of it.
        fit: the first of them is timed.
        decide: tapes on which predictions are taken.
        threshold: smallest similarity within a group of neurons; 0.9 if None.

    Raises:
        ReplayError: the tapes do not run on the model.
    """
    modules = modules_by_name(model)
    hidden: dict[str, list[HiddenLayer]] = {}
    for layer in graph.layers:
        for producer in layer.producers:
            hidden.setdefault(producer, []).append(layer)
    shapes = tuple(_shape(name, module, hidden, graph) for name, module in modules.items() if is_layer(module))
    found = [similarity(model, layer, 0.9 if threshold is None else threshold) for layer in graph.layers]
    predictions, classes = _predictions(model, decide)
    return Snapshot(
        size=size_of(model, fit[0], [layer.width for layer in graph.layers]),
        layers=shapes,
        latency=latency(model, fit[0]),
        samples=fit[0].samples,
        device=device_name(model_device(model)),
        similarity=tuple(one for one in found if one is not None),
        predictions=predictions,
        classes=classes,
    )


def size_of(model: nn.Module, tape: Tape, widths: Sequence[int]) -> Size:
    """Parameters, hidden layers of these widths, and FLOPs for one sample of a recorded call."""
    from torch.utils.flop_counter import FlopCounterMode  # brings in the compiler's packages

    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path of transformers counts as no operation at all
    try:
        with FlopCounterMode(display=False) as counter:
            replay(model, tape)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return Size(
        parameters=parameter_count(model),
        hidden_layers=len(widths),
        neurons=sum(widths),
        flops=round(counter.get_total_flops() / max(1, tape.samples)),
    )


def _shape(name: str, module: nn.Module, hidden: Mapping[str, Sequence[HiddenLayer]], graph: Graph) -> LayerShape:
    lazy = is_lazy(module.weight)  # type: ignore[arg-type]  # layers have one
    width, inputs = (0, 0) if lazy else output_weight(module).shape[:2]
    layers = hidden.get(name, ())
    whole = sum(layer.producers[name].size * layer.width for layer in layers) == width
    neurons = next((layer.merge_neurons for layer in layers if layer.merge_neurons), None)
    removal = next((layer.merge_layer for layer in layers if layer.merge_layer), None)
    return LayerShape(
        name=name,
        kind=type(module).__name__,
        inputs=inputs,
        width=width,
        hidden=bool(layers),
        consumers=tuple(dict.fromkeys(reader for layer in layers for reader in layer.consumers)),
        between=layers[0].functions if layers else (),
        reason=str(graph.refused.get(name, "")) if not whole else "",
        merge_neurons=neurons or "",
        merge_layer=removal or "",
        beside=tuple(dict.fromkeys(other for layer in layers for other in layer.producers if other != name)),
    )


def similarity(model: nn.Module, layer: HiddenLayer, threshold: float) -> Similarity | None:
    """Cosine similarity of a layer's augmented input weights; None where weights do not tell features apart."""
    vectors = condensation_vectors(model, layer)
    if vectors is None or layer.width < 2 or not all(bool(torch.isfinite(rows).all()) for rows in vectors):
        return None
    if layer.width > SHOWN:
        shown = torch.linspace(0, layer.width - 1, SHOWN).round().long()
        vectors = [rows[shown.to(rows.device)] for rows in vectors]
    groups = sorted(cosine_groups(vectors, threshold, absolute=layer.odd), key=len, reverse=True)
    order = torch.tensor([neuron for group in groups for neuron in group], device=vectors[0].device)
    cosine = cosine_similarity(torch.cat(vectors, dim=1)[order]).nan_to_num().mul(100).round().to(torch.int8).cpu()
    return Similarity(layer.name, layer.width, tuple(map(len, groups)), layer.odd, cosine)


def latency(model: nn.Module, tape: Tape, runs: int = RUNS) -> float:
    """Median time of the calls of a tape in eval mode, in milliseconds, after one call that is not timed.

    Args:
        model: as it is now.
        tape: recorded calls.
        runs: how often it is called at most.

    Raises:
        ReplayError: the tape does not run on the model.
    """
    device = model_device(model)
    times: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager())
        stack.enter_context(preserved(model))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the model's own warnings were shown when it was recorded
        set_modes(model, training=False)
        begin = time.perf_counter()
        while len(times) < min(4, runs + 1) or (len(times) <= runs and time.perf_counter() - begin < SECONDS):
            arguments = bind(model, tape)
            _wait(device)
            start = time.perf_counter()
            execute(model, tape, arguments, lambda output: output)
            _wait(device)
            times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What a device is, in words: of a GPU its model, of the CPU the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads != 1)}"


def _predictions(model: nn.Module, tapes: Sequence[Tape]) -> tuple[Tensor | None, int]:
    """Arg-max of the first output that may be scores of classes, and how many."""
    for output in outputs_of(model, tapes):
        if 2 <= output.shape[1] <= CLASSES:
            return output.argmax(1).cpu(), output.shape[1]
    return None, 0


def agreement(before: Snapshot, after: Snapshot) -> Tensor | None:
    """How often two models predict which pair of classes (000, Fig. 8 (d), there as shares).

    Args:
        before: snapshot of the original.
        after: of the smaller model, on the same data.

    Returns:
        Counts, int64, shape (classes, classes): rows are the original's classes, columns the smaller model's. None
        where the outputs are no class scores.

    Raises:
        InputError: the snapshots are of different data.

    >>> size = Size(0, 0, 0, 0)
    >>> shots = [Snapshot(size, (), 0.0, 3, "cpu", (), torch.tensor(of), 2) for of in ([0, 0, 1], [0, 1, 1])]
    >>> agreement(*shots)
    tensor([[1, 1],
            [0, 1]])
    """
    if before.predictions is None or after.predictions is None:
        return None
    if (before.classes, len(before.predictions)) != (after.classes, len(after.predictions)):
        raise InputError("The two snapshots hold predictions of different data and cannot be compared.")
    pairs = before.predictions * before.classes + after.predictions
    return torch.bincount(pairs, minlength=before.classes**2).reshape(before.classes, before.classes)
