"""Fidelity of merging on MNIST, each table with its peers in one run: `python -m benchmarks.fidelity --data DIR`."""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.fidelity import channels, layers, neurons, widths
from benchmarks.mnist import Mnist

PARTS = {"layers": layers, "neurons": neurons, "widths": widths, "channels": channels}


@cache
def _data(folder: Path) -> Mnist:
    torch.set_num_threads(1)  # one process a core does more than two threads that wait for each other
    return Mnist.load(folder)


def _one(part: str, seed: int, folder: Path) -> list[dict]:
    return PARTS[part].run(_data(folder), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for torchvision's MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    _data(options.data)  # downloaded before two processes want it
    found, start = {}, time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        waiting = {
            part: [pool.submit(_one, part, seed, options.data) for seed in range(options.seeds)]
            for part in options.only
        }
        for part, futures in waiting.items():
            found[part] = [row for future in futures for row in future.result()]
            print(f"\n== {part}: {PARTS[part].__doc__}\n", flush=True)
            PARTS[part].show(found[part])
            print(f"\n({time.perf_counter() - start:.0f} s since the start)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
