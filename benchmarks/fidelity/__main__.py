"""Fidelity of merging on MNIST, each table with its peers in one run: `python -m benchmarks.fidelity --data DIR`."""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.fidelity.one import PARTS, data, one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for torchvision's MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="one seed and few images: whether it runs, not how well")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    data(options.data)  # downloaded before two processes want it
    found, start = {}, time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        waiting = {
            part: [pool.submit(one, part, seed, options.data, quick=options.quick) for seed in seeds]
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
