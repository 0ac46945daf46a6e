"""Run the figures of both papers for some seeds, one after the other; what was run already is left out.

    python examples/papers/run_all.py runs/quick --seeds 3
    python examples/papers/run_all.py runs/full --full --data DIR
    python examples/papers/tables.py runs

Every run writes its JSON, PNG and log into RUNS/PAPER/seedN. It may be stopped and begun again at any time. One thread,
at the lowest priority.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
OF_IMAGES = {("depth_paper", "fig1"), ("depth_paper", "fig8"), ("depth_paper", "fig12"), ("width_paper", "fig5")}


def runs(folder: Path, seeds: int, only: list[str]) -> list[tuple[str, str, int, Path]]:
    """Paper, figure, seed and folder of everything that has no JSON yet, all figures of a seed before the next seed."""
    scripts = sorted(path for paper in ("depth_paper", "width_paper") for path in (EXAMPLES / paper).glob("fig*.py"))
    every = [
        (script.parent.name, script.stem, seed, folder / script.parent.name / f"seed{seed}")
        for seed in range(seeds)
        for script in scripts
        if not only or script.stem in only
    ]
    return [one for one in every if not (one[3] / f"{one[1]}.json").exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder to write into")
    parser.add_argument("--full", action="store_true", help="the papers' size")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds from 0 on; default: %(default)s")
    parser.add_argument("--only", nargs="*", default=[], metavar="FIG", help="such as fig7; all if left out")
    parser.add_argument("--data", metavar="DIR", help="folder of MNIST")
    given = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for paper, figure, seed, output in runs(given.runs, given.seeds, given.only):
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(EXAMPLES / paper / f"{figure}.py"), "--seed", str(seed), "--output", str(output)]
        command += ["--full"] * given.full
        if given.data and (paper, figure) in OF_IMAGES:
            command += ["--data", given.data]
        print(f"{paper} {figure}, seed {seed} …", flush=True)
        with (output / f"{figure}.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(  # noqa: S603  # our own scripts
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                preexec_fn=lambda: os.nice(19),
            )
        if done.returncode:
            print(f"failed; see {log.name}", flush=True)


if __name__ == "__main__":
    main()
