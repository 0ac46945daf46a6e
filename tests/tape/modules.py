"""Models and helpers for the tests of tapes."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from lightning_embed.tape import Recorder, Tape
from tests.zoo import IN, OUT, WIDTH


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Dropout(0.5), nn.Linear(WIDTH, OUT))


class Parts(nn.Module):
    """Layers, a loss and a metric, as a LightningModule holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT), nn.BatchNorm1d(WIDTH)
        self.loss = nn.CrossEntropyLoss()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.fc1(x)).relu())


def taped(recorder: Recorder) -> Tape:
    assert recorder.tape is not None, recorder.reason
    return recorder.tape


def names(tape: Tape) -> list[str]:
    return [step.name for step in tape.steps]


def clean(model: nn.Module) -> bool:
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooked and not _get_current_function_mode_stack()


class Noisy(nn.Module):
    """Draws from every generator, counts its calls, keeps what it saw and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(IN, OUT), nn.BatchNorm1d(OUT)
        self.register_buffer("count", torch.zeros(()))
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen = self.fc(x)
        noise = torch.rand(()) + random.random() + np.random.rand()
        self.norm.train()
        if self.fails:
            raise ValueError("on purpose")
        return self.norm(self.seen) + noise
