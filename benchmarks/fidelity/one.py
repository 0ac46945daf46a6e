"""One table of one seed, in a process of its own."""

from functools import cache
from pathlib import Path

import torch

from benchmarks.fidelity import channels, layers, neurons, sites, widths
from benchmarks.mnist import Mnist

PARTS = {"layers": layers, "neurons": neurons, "widths": widths, "channels": channels, "sites": sites}


QUICK = (4000, 1000)  # training and test images: enough to see that everything runs


@cache
def data(folder: Path, *, quick: bool = False) -> Mnist:
    torch.set_num_threads(1)  # one process a core does more than two threads that wait for each other
    return Mnist.load(folder).first(*QUICK) if quick else Mnist.load(folder)


def one(part: str, seed: int, folder: Path, *, quick: bool = False) -> list[dict]:
    return PARTS[part].run(data(folder, quick=quick), seed)
