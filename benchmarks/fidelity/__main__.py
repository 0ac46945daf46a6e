"""Fidelity of merging on MNIST, each table with its peers in one run: `python -m benchmarks.fidelity --data DIR`."""

import argparse
import json
import time
from pathlib import Path

from benchmarks.fidelity import channels, layers, neurons, widths
from benchmarks.mnist import Mnist

PARTS = {"layers": layers, "neurons": neurons, "widths": widths, "channels": channels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder for torchvision's MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    data = Mnist.load(options.data)
    found, start = {}, time.perf_counter()
    for name in options.only:
        print(f"\n== {name}: {PARTS[name].__doc__}\n", flush=True)
        found[name] = PARTS[name].run(data, range(options.seeds))
        print(f"\n({time.perf_counter() - start:.0f} s since the start)", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
