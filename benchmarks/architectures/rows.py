"""What is measured of one architecture, by us and by Torch-Pruning."""

from __future__ import annotations

import copy
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lightning_embed as le
from benchmarks.mnist import parameters
from lightning_embed.graph import REASONS, Graph, observe
from lightning_embed.tape import record
from tests.architectures import ARCHITECTURES
from tests.architectures.architecture import Architecture
from tests.architectures.planting import halves, layers_of, merging_layers, merging_share, plant_copies, sites

UNSEEN = 256  # samples on which the change is measured
PASSES = 10  # forward passes that are timed together


def observed(title: str) -> dict[str, Any]:
    """Layers and parameters that may merge, reasons of the others, and what seeing that costs."""
    kind = ARCHITECTURES[title]
    net = kind.build()
    batches = kind.batches(64, like=net)
    tapes = record(net, batches, call=lambda batch: kind.run(net, batch))
    passing = _seconds(lambda: [kind.outcome(net, batches) for _ in range(PASSES)])[0] / PASSES
    took, graph = _seconds(lambda: observe(net, tapes))
    merging = merging_layers(net, graph)
    return {
        "parameters": parameters(net),
        "layers": len(layers_of(net)),
        "merging": len(merging),
        "sites": len(sites(graph)),
        "share": merging_share(net, graph),
        "reasons": dict(Counter(_reason(graph, name) for name in layers_of(net) if name not in merging).most_common()),
        "observing": took,
        "passes": took / passing,
    }


def halved(title: str) -> dict[str, Any]:
    """Every site cut to half of its units: what it removes, and how much it changes outputs on other samples."""
    kind = ARCHITECTURES[title]
    net = kind.build()
    kind.settle(net)
    graph = graph_of(kind, net)
    if not halves(graph):
        return {"removed": 0.0}
    took, result = _seconds(lambda: cut_to_half(kind, net, graph))
    removed = 1 - parameters(result.model) / parameters(net)
    return {"removed": removed, "change": change_of(kind, net, result.model), "cutting": took}


def planted(title: str) -> dict[str, Any]:
    """The same where every second unit was made a copy of the one before it, in float64."""
    kind = ARCHITECTURES[title]
    net = kind.build().double()
    graph = graph_of(kind, net)
    if not halves(graph):
        return {}
    plant_copies(net, graph)
    kind.settle(net)
    return {"planted": change_of(kind, net, cut_to_half(kind, net, graph).model)}


def graph_of(kind: Architecture, net: nn.Module) -> Graph:
    return observe(net, record(net, kind.batches(64, like=net), call=lambda batch: kind.run(net, batch)))


def cut_to_half(kind: Architecture, net: nn.Module, graph: Graph) -> le.Result:
    batches = kind.batches(kind.samples, like=net, seed=3)
    return le.prune(
        net,
        batches,
        widths=halves(graph),
        call=lambda batch: kind.run(net, batch),
        output=kind.output,
        match=False,  # what one fit of each reader keeps
        seed=0,
    )


def change_of(kind: Architecture, net: nn.Module, other: nn.Module) -> float:
    """‖f′ − f‖ / ‖f − mean f‖ on samples that neither saw."""
    unseen = kind.batches(UNSEEN, like=net, seed=4)
    was, now = (kind.outcome(one, unseen).double() for one in (net, other))
    return ((now - was).norm() / (was - was.mean(0)).norm()).item()


def peer(title: str) -> dict[str, Any]:
    """Torch-Pruning's MetaPruner by the L2 norm, every layer but the outputs to half; the call of its README."""
    kind = ARCHITECTURES[title]
    net = kind.build()
    (batch,) = kind.batches(8, like=net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        import torch_pruning

        cut = copy.deepcopy(net)
        try:
            torch_pruning.pruner.MetaPruner(
                cut,
                batch,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=0.5,
                ignored_layers=[cut.get_submodule(name) for name in kind.outputs],
                output_transform=kind.output,
            ).step()
        except Exception as error:  # noqa: BLE001  # what it makes of this network is the result
            return {"peer": f"stops: {type(error).__name__}"}
    found = {"peer removed": 1 - parameters(cut) / parameters(net)}
    try:
        same = kind.outcome(cut, [batch]).shape == kind.outcome(net, [batch]).shape
    except Exception as error:  # noqa: BLE001
        return found | {"peer": f"its network stops: {type(error).__name__}"}
    return found | {"peer": "runs" if same else "its outputs have another shape"}


def _reason(graph: Graph, name: str) -> str:
    """The kind of reason for which a layer's units may not merge."""
    if name in graph.refused:
        return graph.refused[name].key
    for layer in graph.layers:
        if name in layer.producers and layer.merge_neurons is not None:
            return next(key for key in REASONS if layer.merge_neurons.startswith(key))
    return "lies behind such a layer"  # a convolution with groups


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


STEPS = {"observed": observed, "halved": halved, "planted": planted, "peer": peer}


def step(answer: Any, name: str, title: str, limit: int) -> None:
    """Send what a step measures, or why it does not; the process ends after so many CPU seconds."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    torch.set_num_threads(1)
    try:
        answer.send(STEPS[name](title))
    except Exception as error:  # noqa: BLE001  # a row tells it
        held = str(error).partition("What holds it back: ")[2].partition(";")[0]  # of a size: the first of its reasons
        answer.send({f"{name} failed": held or f"{type(error).__name__}: {error}"})
