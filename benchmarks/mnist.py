"""MNIST in memory, plain training and comparing, for the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CALIBRATION = 4096


@dataclass(frozen=True)
class Mnist:
    """Images as rows of 784 numbers in 0..1 (or one channel of 28 × 28), and their labels."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @staticmethod
    def load(folder: Path) -> Mnist:
        """All 60 000 and 10 000; downloaded by torchvision if absent."""
        from torchvision.datasets import MNIST

        parts = []
        for training in (True, False):
            data = MNIST(root=str(folder), train=training, download=not (folder / "MNIST" / "raw").exists())
            parts += [data.data.float().flatten(1) / 255, data.targets]
        return Mnist(*parts)

    def first(self, images: int, test_images: int) -> Mnist:
        """Some of them."""
        return Mnist(
            self.images[:images],
            self.labels[:images],
            self.test_images[:test_images],
            self.test_labels[:test_images],
        )

    def as_images(self) -> Mnist:
        """The same with images of one channel."""
        images, test_images = (rows.reshape(-1, 1, 28, 28) for rows in (self.images, self.test_images))
        return Mnist(images, self.labels, test_images, self.test_labels)

    def calibration(self, seed: int) -> Tensor:
        """Training images, without labels."""
        chosen = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        return self.images[chosen]

    def agreement(self, net: nn.Module, other: nn.Module) -> float:
        """Share of the test images on which two networks choose the same class."""
        same = predictions(net, self.test_images) == predictions(other, self.test_images)
        return same.double().mean().item()

    def accuracy(self, net: nn.Module) -> float:
        """Share of the test images that are classified rightly."""
        return (predictions(net, self.test_images) == self.test_labels).double().mean().item()

    def loss(self, net: nn.Module) -> float:
        """Cross entropy on the training images."""
        with torch.no_grad():
            return nn.functional.cross_entropy(net.eval()(self.images), self.labels).item()


def train(
    net: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float, batch: int, seed: int
) -> nn.Module:
    """Adam on the cross entropy, in place."""
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=shuffle).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


def predictions(net: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(images).argmax(1)


def parameters(net: nn.Module) -> int:
    return sum(one.numel() for one in net.parameters())
