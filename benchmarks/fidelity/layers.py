"""ten hidden layers of 50, tanh (depth paper, Fig. 8): layers merged, no retraining"""

import copy
from dataclasses import replace

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.mnist import Mnist, train
from lightning_embed.graph import observe
from lightning_embed.statistics import affine_fit, minimal_pearson_correlation, tangent_fit
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.tape import record

EPOCHS, RATE, BATCH, STD, WIDTH, DEPTH = 100, 1e-3, 1000, 0.05, 50, 10
FURTHER = 10  # epochs of training on, for the original and the merged network alike
ONLY_LAYERS = le.Criteria(condensation=None, span=None)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = [784, *[WIDTH] * DEPTH]
    hidden = [one for i in range(DEPTH) for one in (nn.Linear(sizes[i], sizes[i + 1]), nn.Tanh())]
    net = nn.Sequential(*hidden, nn.Linear(WIDTH, 10))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=STD)
    return net


def run(data: Mnist, seed: int) -> list[dict]:
    net = train(network(seed), data.images, data.labels, epochs=EPOCHS, rate=RATE, batch=BATCH, seed=seed)
    calibration = data.calibration(seed)
    result = le.prune(net, calibration, criteria=ONLY_LAYERS, seed=seed)
    merged = copy.deepcopy(result.model)
    row = {
        "seed": seed,
        "MPC > .99": result.before.linear_layers(0.99),
        "merged": sum(one.done and one.kind == "layer" for one in result.records),
        "accuracy before": data.accuracy(net),
        "agreement": data.agreement(net, merged),
        "accuracy": data.accuracy(merged),
    }
    le.distill(merged, net, data.images, epochs=3, lr=3e-4, seed=seed)
    row |= {"agreement, distilled": data.agreement(net, merged), "accuracy, distilled": data.accuracy(merged)}
    row |= _rest(data, net, result.model, seed)
    return [{"network": row, "curve": [{"seed": seed, **one} for one in _curve(data, net, calibration, seed)]}]


def show(found: list[dict]) -> None:
    print("Default criteria (layers) and tolerance. The depth paper: 98.54 % agreement after retraining.")
    print(tabulate([one["network"] for one in found], headers="keys", floatfmt=".4f"))
    print("\nAgreement by number of merged layers, no retraining, no tolerance:")
    print(tabulate([row for one in found for row in one["curve"]], headers="keys", floatfmt=".4f"))


def _rest(data: Mnist, net: nn.Module, merged: nn.Module, seed: int) -> dict[str, float]:
    """Training loss now, and after both were trained on alike."""
    losses = {}
    for name, one in (("original", net), ("merged", merged)):
        later = copy.deepcopy(one)
        train(later, data.images, data.labels, epochs=FURTHER, rate=RATE / 10, batch=BATCH, seed=seed)
        losses |= {f"loss {name}": data.loss(one), f"{name} +{FURTHER}": data.loss(later)}
    return losses


def _curve(data: Mnist, net: nn.Module, calibration: torch.Tensor, seed: int) -> list[dict]:
    everything = le.Criteria(linearization=0.0, condensation=None, span=None)
    result = le.prune(net, calibration, criteria=everything, tolerance=le.Tolerance(change=1e6), seed=seed)
    steps = [step for step in result.plan if step.kind == "layer"]
    tapes = record(net, calibration[: len(calibration) // 2].split(256))
    graph = observe(net, tapes)
    features = collect_features(net, graph.layers, tapes)
    rows = []
    for count in range(1, len(steps) + 1):
        chosen = steps[:count]
        corrected = le.prune(net, calibration, widths={step.layer: 0 for step in chosen}, seed=seed).model
        pre, post = features[chosen[-1].layer].pre, features[chosen[-1].layer].post
        rows.append(
            {
                "merged": count,
                "last": chosen[-1].layer,
                "MPC": float(minimal_pearson_correlation(pre, post)),
                "ours, corrected": data.agreement(net, corrected),
                "ours, as fitted": data.agreement(net, _applied(net, chosen)),
                "least squares": data.agreement(net, _applied(net, [_plain(one, features) for one in chosen])),
                "tangent": data.agreement(net, _applied(net, [_tangent(one, features) for one in chosen])),
                "λ = 1": data.agreement(net, _applied(net, [_identity(one) for one in chosen])),
            }
        )
    return rows


def _applied(net: nn.Module, steps: list) -> nn.Module:
    merged = copy.deepcopy(net)
    le.apply(merged, le.Plan(tuple(steps)))
    return merged


def _plain(step, features):
    fit = affine_fit(features[step.layer].pre, features[step.layer].post)
    return replace(step, slope=fit.slope, intercept=fit.intercept)


def _tangent(step, features):
    fit = tangent_fit(torch.tanh, features[step.layer].pre)
    return replace(step, slope=fit.slope, intercept=fit.intercept)


def _identity(step):
    return replace(step, slope=torch.ones_like(step.slope), intercept=torch.zeros_like(step.intercept))
