"""The page of outcomes is what its data say, and runs are collected from their files."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "examples" / "papers" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_outcomes():
    folder = ROOT / "docs" / "reproductions"
    runs = json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))
    assert tables().page(runs) == (folder / "outcomes.md").read_text(encoding="utf-8")


def test_runs_are_collected_and_told_apart(tmp_path):
    for seed, full in ((1, False), (0, False), (0, True)):
        folder = tmp_path / str(full) / "width_paper" / f"seed{seed}"
        folder.mkdir(parents=True)
        run = {
            "figure": "fig3b",
            "full": full,
            "seed": seed,
            "cpu_seconds": 1.0,
            "found": {"zeros": [0, 1], "loss": 0.123456},
        }
        (folder / "fig3b.json").write_text(json.dumps(run), encoding="utf-8")
    page = tables().page(tables().collected(tmp_path))
    assert "### Fig. 3(b), quick\n" in page
    assert "| | seed 0 | seed 1 |\n" in page
    assert "| zeros | 0, 1 | 0, 1 |\n| loss | 0.1235 | 0.1235 |\n" in page
    assert page.count("### Fig. 3(b), full\n") == 1
