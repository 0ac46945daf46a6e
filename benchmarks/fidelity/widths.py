"""784-512-256-10, every hidden layer cut to the same share, no retraining; then three epochs of distillation"""

import copy
import statistics

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.fidelity.peers import torch_pruning
from benchmarks.mnist import Mnist, parameters, train
from lightning_embed.statistics import refit

SIZES = (784, 512, 256)
SHARES = (2, 4, 8, 16)
DISTILLED = (8, 16)
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
EPOCHS, RATE, BATCH = 3, 1e-3, 128


def network(activation: type[nn.Module], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(784, 512), activation(), nn.Linear(512, 256), activation(), nn.Linear(256, 10))


def run(data: Mnist, seed: int) -> list[dict]:
    found = []
    for name, activation in ACTIVATIONS.items():
        net = network(activation, seed)
        train(net, data.images, data.labels, epochs=EPOCHS, rate=RATE, batch=BATCH, seed=seed)
        calibration = data.calibration(seed)
        for share in SHARES:
            row = {"net": name, "seed": seed, "share": f"1/{share}"}
            students = _cut(net, calibration, share, seed)
            row |= {method: data.agreement(net, student) for method, student in students.items()}
            for method in ("Torch-Pruning", "L2 + refit", "ours") if share in DISTILLED else ():
                le.distill(students[method], net, data.images, epochs=3, lr=3e-4, seed=seed)
                row[f"{method}, distilled"] = data.agreement(net, students[method])
            found.append(row)
    return found


def show(found: list[dict]) -> None:
    print("Agreement with the uncut network on the test images; `budget`: as many parameters, dealt out by us.")
    print(tabulate(sorted(found, key=lambda row: list(ACTIVATIONS).index(row["net"])), headers="keys", floatfmt=".4f"))
    print("\nDisagreement of `ours` as a share of the others', mean over seeds:")
    print(tabulate(_ratios(found), headers="keys", floatfmt=".2f"))


def _cut(net: nn.Sequential, calibration: torch.Tensor, share: int, seed: int) -> dict[str, nn.Module]:
    widths = {"0": 512 // share, "2": 256 // share}
    ours = le.prune(net, calibration, widths=widths, seed=seed).model
    budget = parameters(_refitted(net, calibration, widths)) / parameters(net)
    return {
        "Torch-Pruning": torch_pruning(net, torch.zeros(1, 784), share, "4"),
        "L2 + refit": _refitted(net, calibration, widths),
        "ours": ours,
        "budget": le.prune(net, calibration, budget=budget, seed=seed).model,
    }


def _refitted(net: nn.Sequential, calibration: torch.Tensor, widths: dict[str, int]) -> nn.Module:
    """Keep the neurons of largest input weights; fit what the next layer reads by least squares, layer after layer."""
    cut = copy.deepcopy(net)
    fit = calibration[: len(calibration) // 2]
    with torch.no_grad():
        for name, width in widths.items():
            at = int(name)
            features = cut[: at + 2](fit)
            kept = cut[at].weight.norm(dim=1).topk(width).indices.sort()[0]
            mix, shift = refit(features, kept.tolist())
            narrow, reader = nn.Linear(cut[at].in_features, width), nn.Linear(width, cut[at + 2].out_features)
            narrow.weight.copy_(cut[at].weight[kept])
            narrow.bias.copy_(cut[at].bias[kept])
            reader.weight.copy_(cut[at + 2].weight.double() @ mix)
            reader.bias.copy_(cut[at + 2].bias + cut[at + 2].weight.double() @ shift)
            cut[at], cut[at + 2] = narrow, reader
    return cut


def _ratios(found: list[dict]) -> list[dict]:
    rows = []
    for name in ACTIVATIONS:
        for share in SHARES:
            here = [row for row in found if row["net"] == name and row["share"] == f"1/{share}"]

            def missing(method: str, rows: list[dict] = here) -> float:
                return 1 - statistics.mean(row[method] for row in rows)

            row = {"net": name, "share": f"1/{share}", "ours": 1 - missing("ours")}
            for suffix in ("", ", distilled") if share in DISTILLED else ("",):
                for other in ("Torch-Pruning", "L2 + refit"):
                    row[f"of {other}{suffix}"] = missing(f"ours{suffix}") / missing(f"{other}{suffix}")
            rows.append(row)
    return rows
