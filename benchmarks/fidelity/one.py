"""One table of one seed, in a process of its own."""

from functools import cache
from pathlib import Path

import torch

from benchmarks.fidelity import channels, layers, neurons, widths
from benchmarks.mnist import Mnist

PARTS = {"layers": layers, "neurons": neurons, "widths": widths, "channels": channels}


@cache
def data(folder: Path) -> Mnist:
    torch.set_num_threads(1)  # one process a core does more than two threads that wait for each other
    return Mnist.load(folder)


def one(part: str, seed: int, folder: Path) -> list[dict]:
    return PARTS[part].run(data(folder), seed)
