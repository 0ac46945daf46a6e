"""Write docs/reproductions/outcomes.md: what every run of a figure found, one column a seed.

    python examples/papers/tables.py runs

Takes the JSON files of the runs under a folder (any depth; the folder "depth_paper" or "width_paper" above a file tells
whose figure it is), puts what they found into docs/reproductions/outcomes.json, in place of what stood there for the
same figure, size, data and seed, and writes the page from that file alone. Without a folder only the page is written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2] / "docs" / "reproductions"
PAPERS = {"depth_paper": "The depth paper", "width_paper": "The width paper"}
HEAD = """# Outcomes

What every run found that the tables speak of, one column a seed; written by `python examples/papers/tables.py` from
`outcomes.json` beside it, which holds what the scripts printed. Times are CPU seconds of one core that many shared.
"""


def collected(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of all runs under a folder."""
    found = []
    for file in sorted(folder.rglob("fig*.json")):
        paper = next((part for part in file.parts if part in PAPERS), None)
        if paper is None:
            continue
        run = json.loads(file.read_text(encoding="utf-8"))
        settings = run.get("settings")
        data = run.get("data") or (settings.get("data") if isinstance(settings, dict) else None)
        if data is None and "sets" in run and "images" in run["sets"]:
            data = run["sets"]["images"]["name"]
        kept = {key: run[key] for key in ("figure", "full", "seed", "cpu_seconds", "found")}
        found.append({"paper": paper, **kept, "data": data or ""})
    return found


def place(run: dict[str, Any]) -> tuple[Any, ...]:
    """Which run it is, in the order of the page."""
    number = "".join(letter for letter in run["figure"] if letter.isdigit())
    return run["paper"], int(number), run["figure"], run["full"], run["data"], run["seed"]


def page(runs: list[dict[str, Any]]) -> str:
    """The page of all runs."""
    parts = [HEAD]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=place):
        groups.setdefault(place(run)[:-1], []).append(run)
    paper = None
    for (whose, _, figure, full, data), group in groups.items():
        if whose != paper:
            paper = whose
            parts.append(f"## {PAPERS[whose]}\n")
        name = figure.removeprefix("fig").replace("3b", "3(b)")
        size = "full" if full else "quick"
        parts.append(f"### Fig. {name}, {size}{f', {data}' if data else ''}\n")
        parts.append("| | " + " | ".join(f"seed {run['seed']}" for run in group) + " |")
        parts.append("|---" * (len(group) + 1) + "|")
        keys = list(dict.fromkeys(key for run in group for key in run["found"]))
        parts += [f"| {key} | " + " | ".join(shown(run["found"].get(key)) for run in group) + " |" for key in keys]
        parts.append("| CPU seconds | " + " | ".join(f"{run['cpu_seconds']:.0f}" for run in group) + " |\n")
    return "\n".join(parts).rstrip("\n") + "\n"


def shown(value: Any) -> str:
    """A value as a reader wants it: four digits, no quotation marks, nothing for what there is not."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(f"({shown(one)})" if isinstance(one, (list, dict)) else shown(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the figures' JSON files")
    given = parser.parse_args()
    file = HERE / "outcomes.json"
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    if given.runs is not None:
        known = {place(run): run for run in runs} | {place(run): run for run in collected(given.runs)}
        runs = [known[key] for key in sorted(known)]
        file.write_text(json.dumps(runs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (HERE / "outcomes.md").write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
