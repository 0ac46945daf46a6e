"""Measure every architecture, each step in a process of its own, and write docs/architectures.md.

`python -m benchmarks.architectures`; with --only, rows of the others are kept as they were measured before.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.architectures import page, rows
from tests.architectures import ARCHITECTURES

STEPS = {
    "observed": rows.observed,
    "halved": rows.halved,
    "planted": lambda title: rows.halved(title, planted=True),
    "peer": rows.peer,
}
FIGURES = Path(__file__).with_name("figures.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a step is given up")
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the page from the figures there are"
    )
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)  # what the processes are called with
    options = parser.parse_args()
    if options.step:
        torch.set_num_threads(1)
        step, title = options.step
        print(json.dumps(STEPS[step](title)))
        return
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    if not options.page:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for title, row in pool.map(lambda title: (title, _row(title, options.steps, options.limit)), options.only):
                figures[title] = figures.get(title, {}) | row
                print(title, json.dumps(row, ensure_ascii=False), flush=True)
    figures = {title: figures[title] for title in ARCHITECTURES if title in figures}
    FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.PAGE.write_text(page.page(figures), encoding="utf-8")


def _row(title: str, steps: list[str], limit: float) -> dict[str, Any]:
    if not ARCHITECTURES[title].available:
        return {"skipped": f"needs the package {ARCHITECTURES[title].package}"}
    row: dict[str, Any] = {"skipped": None}
    for step in steps:
        row |= {f"{step} failed": None} | _apart(step, title, limit)
    return row


def _apart(step: str, title: str, limit: float) -> dict[str, Any]:
    """What a step measures in a fresh process; why it did not, if so."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.architectures", "--step", step, title]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)  # noqa: S603  # this file
    except subprocess.TimeoutExpired:
        return {f"{step} failed": f"not done after {limit:g} s"}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()
        return {f"{step} failed": last[-1] if last else f"the process ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
