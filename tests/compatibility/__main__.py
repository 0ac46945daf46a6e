"""Run every compatibility test, the slow ones too, and write docs/compatibility.md: `python -m tests.compatibility`.

With arguments, they are passed to pytest in place of the marker expression that takes in the slow tests.
"""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
HEAD = """# Compatibility

Every row is a test that ran; `python -m tests.compatibility` runs them and writes this page. *Untested* rows say why.
A row that stands for several tests holds only where all of them do. Last written with torch {torch}, Lightning
{lightning}, Python {python}{device}.
"""
FOOT = """
## What is refused, and why

- **Sharded parameters** (FSDP, DeepSpeed, ModelParallel, XLA) and **sharded optimizer state**
  (ZeroRedundancyOptimizer): merging raises at setup. Monitoring goes on: with FSDP2 (`fully_shard`) correlations and
  gradients, without kept widths and without snapshots in the report; with tensor parallel layers gradients alone, which
  a warning says. The others need a GPU or a TPU and were not run.
- **Masks and unfreezing schedules** (ModelPruning, BaseFinetuning): merging raises at setup.
- **DDP communication hooks with a state** (PowerSGD, post-local SGD): merging raises at setup.
- **A forward that communicates between processes**: merges replay the model in the first process alone, so such a
  forward would wait there for ever. It is not detected. Synchronized batch norm is seen to: it is observed without
  its synchronization.
- **A `configure_optimizers` that names a layer which has been merged away**, or has an optimizer for such layers alone:
  on resume it runs on the merged model, finds no such parameter and fails. Ask for what is there: `self.parameters()`,
  or groups made with `for name, one in self.named_parameters()`.
- **torch's own DataLoader, resumed in mid-epoch**, begins the epoch's data anew, in Lightning itself; a loader with
  `state_dict` (torchdata's `StatefulDataLoader`) goes on where it was.
"""


class Matrix:
    """A pytest plugin: outcomes of the tests that carry the marker `cell`, by area and row."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self.cells: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items) -> None:
        for item in items:
            marker = item.get_closest_marker("cell")
            if marker is not None:
                area, row = marker.args
                self.cells[item.nodeid] = area, row.format(**{k: _say(v) for k, v in _parameters(item).items()})

    def pytest_runtest_logreport(self, report) -> None:
        if report.nodeid in self.cells and (report.when == "call" or report.outcome != "passed"):
            why = ""
            if report.skipped and isinstance(report.longrepr, tuple):
                why = report.longrepr[2].removeprefix("Skipped: ")
            self.rows.setdefault(self.cells[report.nodeid], []).append((report.outcome, why))

    def page(self) -> str:
        """The page as Markdown."""
        import lightning  # after pytest, which rewrites the plugins that these bring in
        import torch

        device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
        lines = [
            HEAD.format(
                torch=torch.__version__.partition("+")[0],
                lightning=lightning.__version__,
                python=sys.version.partition(" ")[0],
                device=device,
            )
        ]
        for area in dict.fromkeys(area for area, _ in self.rows):
            lines += [f"## {area}", "", "| what | outcome |", "|---|---|"]
            lines += [
                f"| {row.replace('|', chr(92) + '|')} | {_outcome(found)} |"
                for (where, row), found in self.rows.items()
                if where == area
            ]
            lines.append("")
        return "\n".join(lines) + FOOT


def _parameters(item) -> dict:
    return getattr(item, "callspec", None).params if hasattr(item, "callspec") else {}


def _say(value) -> str:
    if isinstance(value, (str, int, float, bool)):
        return str(value)
    return getattr(value, "__name__", type(value).__name__)


def _outcome(found) -> str:
    outcomes = {one for one, _ in found}
    if "failed" in outcomes:
        return "**does not hold**"
    if outcomes == {"passed"}:
        return "holds"
    return f"{'partly ' if 'passed' in outcomes else ''}untested ({next(why for _, why in found if why)})"


if __name__ == "__main__":
    matrix = Matrix()
    selection = sys.argv[1:] or ["-m", "slow or not slow"]
    status = pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", *selection], plugins=[matrix])
    if not sys.argv[1:]:
        PAGE.write_text(matrix.page(), encoding="utf-8")
    sys.exit(status)
