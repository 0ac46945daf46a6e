"""a VGG-like convolutional network on MNIST images, channels and neurons cut to the same share, no retraining"""

import copy

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from benchmarks.fidelity.peers import torch_pruning
from benchmarks.mnist import Mnist, train
from lightning_embed.graph import observe
from lightning_embed.statistics import refit
from lightning_embed.surgery import NeuronMerge
from lightning_embed.surgery.change.neuron_merge import one_fit
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.tape import record

TRAINED, EPOCHS, RATE, BATCH = 12_000, 2, 1e-3, 128
CALIBRATION = 1024
SHARES = (2, 4)


def network(seed: int) -> nn.Module:
    """torchvision's VGG with batch norm, narrow and short enough for images of 28 × 28 on two cores."""
    from torchvision.models.vgg import VGG, make_layers

    torch.manual_seed(seed)
    net = VGG(make_layers([16, "M", 32, "M", 64, 64, "M"], batch_norm=True), num_classes=10)
    net.features[0] = nn.Conv2d(1, 16, 3, padding=1)
    net.avgpool = nn.AdaptiveAvgPool2d(3)
    net.classifier = nn.Sequential(nn.Linear(64 * 9, 256), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(256, 10))
    return net


def run(data: Mnist, seed: int) -> list[dict]:
    images, net, found = data.as_images(), network(seed), []
    train(net, images.images[:TRAINED], data.labels[:TRAINED], epochs=EPOCHS, rate=RATE, batch=BATCH, seed=seed)
    calibration = images.calibration(seed)[:CALIBRATION]
    for share in SHARES:
        ours = le.prune(net, calibration, widths=_widths(net, share), seed=seed)
        students = {
            "Torch-Pruning": torch_pruning(net, torch.zeros(2, 1, 28, 28), share, "classifier.3"),
            "L2 + refit": _refitted(net, calibration, share),
            "ours": ours.model,
        }
        row = {"seed": seed, "share": f"1/{share}", "parameters": ours.size[1].parameters}
        row |= {method: images.agreement(net, student) for method, student in students.items()}
        found.append(row | {"accuracy before": images.accuracy(net), "accuracy": images.accuracy(ours.model)})
    return found


def show(found: list[dict]) -> None:
    print("Agreement with the uncut network on the test images.")
    print(tabulate(found, headers="keys", floatfmt=".4f"))


def _widths(net: nn.Module, share: int) -> dict[str, int]:
    layers = {name: one for name, one in net.named_modules() if isinstance(one, (nn.Conv2d, nn.Linear))}
    return {name: len(one.weight) // share for name, one in layers.items() if name != "classifier.3"}


def _refitted(net: nn.Module, calibration: torch.Tensor, share: int) -> nn.Module:
    """Keep the channels of largest kernels; fit what the next layer reads by least squares, layer after layer."""
    cut = copy.deepcopy(net)
    tapes = record(cut, calibration[: len(calibration) // 2].split(256))
    for name, width in _widths(net, share).items():
        layer = observe(cut, tapes)[name]
        features = collect_features(cut, [layer], tapes)[name]
        kept = cut.get_submodule(name).weight.flatten(1).norm(dim=1).topk(width).indices.sort()[0].tolist()
        mix, shift = refit(features.post, kept, intercept=layer.intercept)
        fits = one_fit(layer.consumers, mix, shift)
        step = NeuronMerge(name, layer.producers, layer.reads, layer.per_neuron, tuple(kept), fits, "size")
        le.apply(cut, le.Plan((step,)))
    return cut
