"""neurons tied to others (gates, concatenations, sets, attention, stages, depthwise), every site to the same share"""

import copy
import statistics

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.fidelity.networks import NETWORKS, SIDE
from benchmarks.fidelity.peers import torch_pruning
from benchmarks.mnist import Mnist, parameters, train
from lightning_embed.graph import Graph, HiddenLayer, input_rows, observe, output_weight
from lightning_embed.surgery.decide.original import Original
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.tape import record

TRAINED, RATE, BATCH = 12_000, 1e-3, 128
EPOCHS = {"sets": 12, "attention v→o": 12}
CALIBRATION, TESTED = 2048, 4000
SHARES = (2, 4)
SEEDS = {"residual": 2, "depthwise + SE": 2}


def run(data: Mnist, seed: int) -> list[dict]:
    tested = data.first(len(data.images), TESTED)
    names = [name for name in NETWORKS if seed < SEEDS.get(name, seed + 1)]
    return [row for name in names for row in _rows(tested, name, seed)]


def show(found: list[dict]) -> None:
    print(
        f"Agreement with the uncut network on {TESTED} test images, and the change of the outputs there; no retraining."
    )
    print(tabulate(sorted(found, key=lambda row: list(NETWORKS).index(row["net"])), headers="keys", floatfmt=".4f"))
    print("\nMeans over seeds, %:")
    print(tabulate(_means(found), headers="keys", floatfmt=".1f"))


def _rows(data: Mnist, name: str, seed: int) -> list[dict]:
    torch.manual_seed(seed)
    build, output = NETWORKS[name]
    net = build()
    images, labels = data.images[:TRAINED], data.labels[:TRAINED]
    train(net, images, labels, epochs=EPOCHS.get(name, 3), rate=RATE, batch=BATCH, seed=seed)
    calibration = data.calibration(seed)[:CALIBRATION]
    graph = observe(net, record(net, calibration[:256].split(128)))
    rows = []
    for share in SHARES:
        ours = le.prune(net, calibration, widths=_widths(graph, share), seed=seed).model
        students = {
            "ours": ours,
            "norm + least squares": _by_norm(net, calibration, share),
            "Torch-Pruning": _peer(net, share, output),
        }
        row = {"net": name, "seed": seed, "share": f"1/{share}", "sites": len(_sites(graph))}
        row |= {"parameters": f"{parameters(net)} → {parameters(ours)}", "accuracy before": data.accuracy(net)}
        row |= {
            method: None if student is None else data.agreement(net, student) for method, student in students.items()
        }
        rows.append(row | {"ours, change": _change(data, net, ours), "ours, accuracy": data.accuracy(ours)})
    return rows


def _sites(graph: Graph) -> list[HiddenLayer]:
    return [layer for layer in graph.layers if layer.merge_neurons is None]


def _widths(graph: Graph, share: int) -> dict[str, int]:
    return {layer.name: _width(layer, share) for layer in _sites(graph)}


def _width(layer: HiddenLayer, share: int) -> int:
    return max(1, round(layer.width / share))


def _by_norm(net: nn.Module, calibration: torch.Tensor, share: int) -> nn.Module:
    """Keep the units of largest weights, refit all that reads them, site after site; then our reconstruction."""
    cut = copy.deepcopy(net)
    tapes = record(cut, calibration[: len(calibration) // 2].split(256))
    graph = observe(cut, tapes)
    widths = [_width(layer, share) for layer in _sites(graph)]
    original, stayed = Original(cut, graph, tapes), {}
    for number, width in enumerate(widths):
        now = observe(cut, tapes)
        layer = _sites(now)[number]
        view = LayerView(cut, now, layer, collect_features(cut, [layer], tapes)[layer.name])
        step = view.keep(_largest(cut, layer, width), "norm", {})
        for name, rows in step.rows_that_stay(cut).items():
            stayed[name] = stayed[name][rows] if name in stayed else rows
        le.apply(cut, le.Plan((step,)))
    original.reconstruct(cut, attach(cut), stayed)
    return cut


def _largest(net: nn.Module, layer: HiddenLayer, width: int) -> list[int]:
    """Units by the norm of all rows that make them times that of all columns that read them."""
    made = sum(
        output_weight(net.get_submodule(name)).flatten(1)[where.index].square().sum((1, 2))
        for name, where in layer.producers.items()
    )
    read = sum(
        input_rows(output_weight(net.get_submodule(name)), where).square().sum(0) for name, where in layer.reads.items()
    )
    return (made * read).topk(width).indices.sort().values.tolist()


def _peer(net: nn.Module, share: int, output: str) -> nn.Module | None:
    """What Torch-Pruning makes of it; None where it, or its network, stops."""
    example = torch.zeros(2, SIDE * SIDE)
    try:
        cut = torch_pruning(net, example, share, output)
        cut(example)
    except Exception as error:  # noqa: BLE001  # that is its result
        print(f"Torch-Pruning: {type(error).__name__}: {error}")
        return None
    return cut


def _change(data: Mnist, net: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        was, now = (one.eval()(data.test_images).double() for one in (net, other))
    return ((now - was).norm() / (was - was.mean(0)).norm()).item()


def _means(found: list[dict]) -> list[dict]:
    means = []
    for share in SHARES:
        for method in ("ours", "norm + least squares", "Torch-Pruning", "ours, change"):
            row: dict = {"share": f"1/{share}", "": method}
            for name in NETWORKS:
                here = [one[method] for one in found if (one["net"], one["share"]) == (name, f"1/{share}")]
                known = [one for one in here if one is not None]
                row[name] = 100 * statistics.mean(known) if known else None
            means.append(row)
    return means
