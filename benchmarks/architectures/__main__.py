"""Measure every architecture, each step in a process of its own, and write docs/architectures.md.

`python -m benchmarks.architectures`; with --only or --steps, the other figures stay as they were measured before.
"""

import argparse
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.architectures import page, rows
from tests.architectures import ARCHITECTURES

OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGKILL)
FIGURES = Path(__file__).with_name("figures.json")


WARM = ["benchmarks.architectures.rows", "transformers", "torchvision", "torch_pruning"]  # imported once for all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--steps", nargs="+", choices=list(rows.STEPS), default=list(rows.STEPS))
    parser.add_argument("--limit", type=int, default=900, help="CPU seconds after which a step is given up")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the page from the figures there are"
    )
    options = parser.parse_args()
    figures = page.read(FIGURES)
    for title, row in [] if options.page else _measured(options.only, options.steps, options.limit):
        figures[title] = figures.get(title, {}) | row
        print(title, json.dumps(row, ensure_ascii=False), flush=True)
        _write({title: figures[title] for title in ARCHITECTURES if title in figures})
    if options.page:
        _write(figures)


def _write(figures: dict[str, dict[str, Any]]) -> None:
    FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.PAGE.write_text(page.page(figures), encoding="utf-8")


def _measured(titles: list[str], steps: list[str], limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    context = get_context("forkserver")
    context.set_forkserver_preload(WARM)

    def measure(title: str) -> tuple[str, dict[str, Any]]:
        if not ARCHITECTURES[title].available:
            return title, {"skipped": f"needs the package {ARCHITECTURES[title].package}"}
        row: dict[str, Any] = {"skipped": None}
        for step in steps:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=rows.step, args=(theirs, step, title, limit))
            process.start()
            theirs.close()
            try:
                row |= {f"{step} failed": None} | mine.recv()
            except EOFError:
                process.join()
                row[f"{step} failed"] = (
                    f"not done after {limit} CPU s" if process.exitcode in OUT_OF_TIME else "process died"
                )
            process.join()
        return title, row

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(measure, titles)


if __name__ == "__main__":
    main()
