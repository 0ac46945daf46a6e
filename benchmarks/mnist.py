"""MNIST in memory, and plain training, for the benchmarks."""

from pathlib import Path

import torch
from torch import Tensor, nn


def images(folder: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """All images as rows of 784 numbers in 0..1, and their labels; downloaded by torchvision if absent."""
    from torchvision.datasets import MNIST

    data = MNIST(root=str(folder), train=train, download=not (folder / "MNIST" / "raw").exists())
    return data.data.float().flatten(1) / 255, data.targets


def train(
    net: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
) -> float:
    """Adam on the cross entropy, in place; the loss on the whole data at the end."""
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    loss = nn.CrossEntropyLoss()
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=shuffle).split(batch):
            optimizer.zero_grad()
            loss(net(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        return loss(net(inputs), labels).item()


def predictions(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(inputs).argmax(1)


def agreement(net: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    return (predictions(net, inputs) == predictions(other, inputs)).double().mean().item()


def accuracy(net: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    return (predictions(net, inputs) == labels).double().mean().item()
