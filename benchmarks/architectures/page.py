"""The page docs/architectures.md, from the figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tabulate import tabulate

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"

HEAD = """# Which of my layers can merge?

`print(le.measure(model, data))` answers for your network. This page answers for the usual ones: written by
`python -m benchmarks.architectures` from networks of the usual structure and small sizes, with random weights (those of
batch norms from random data), built by transformers or torchvision where these have them.

*Layers* are Linears and convolutions of any kind, the depthwise ones among them; recurrent layers and packed attention
projections are none. A layer *may merge* when its neurons may be merged and cut, alone or together with those that
they are tied to: both halves of a gate, all that adds to a residual stage, a depthwise convolution behind.
*May merge, parameters* is the share of all parameters that lie in such rows, in the columns that read them, or in
tensors with one entry for each. *Removed* is the share that is gone once every group of tied neurons is cut to half.

Beside it stands Torch-Pruning 1.6.1 (`MetaPruner`, ratio 0.5, every layer but the outputs), with nothing told or mended
by hand (numbers of heads, reshapes). It also cuts residual streams and through normalisations over neurons, which
changes what the network computes in a way that no refit of the next layer takes back; here those are refused for that
reason.

"""

COPIES = """## What the cut changes

Every group is cut to half its neurons, all at once; the change is ‖f′ − f‖ / ‖f − mean f‖ of the outputs on samples
that the fit has not seen. *Random weights*: nothing was trained and no neuron repeats another, so much is lost; what
trained networks lose is in the [benchmarks](benchmarks.md). *Planted copies*: in float64 every second neuron of every
group is first made a copy of the one before it, in all tensors that hold it; then half of the neurons suffice and the
outputs must stay, but for neurons that were constant on the calibration data, are dropped and move on others. This is
the proof that the groups were found right.

"""

REASONS = """## Why the others may not

Layers of all networks above by reason, from the list in [troubleshooting](troubleshooting.md).

"""


def read(figures: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    return found


def page(figures: dict[str, dict[str, Any]]) -> str:
    here = {title: row for title, row in figures.items() if not row.get("skipped")}
    skipped = [f"{title} ({row['skipped']})" for title, row in figures.items() if row.get("skipped")]
    parts = [HEAD, _table([_reach(title, row) for title, row in here.items()])]
    if skipped:
        parts.append(f"\n\nNot measured: {', '.join(skipped)}.")
    parts += ["\n\n", COPIES, _table([_change(title, row) for title, row in here.items()])]
    parts += ["\n\n", REASONS, _table(_reasons(here))]
    return "".join(parts) + "\n"


def _reach(title: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "network": title,
        "parameters": f"{row['parameters']:,}" if "parameters" in row else row.get("observed failed") or "",
        "layers": str(row.get("layers", "")),
        "may merge": str(row.get("merging", "")),
        "may merge, parameters": _share(row.get("share")),
        "removed": _share(row.get("removed")),
        "Torch-Pruning removed": _share(row.get("peer removed")),
        "and its network": row.get("peer") or row.get("peer failed") or "",
    }


def _change(title: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "network": title,
        "random weights": f"{row['change']:.2f}" if "change" in row else row.get("halved failed") or "",
        "planted copies": f"{row['planted']:.0e}" if "planted" in row else row.get("planted failed") or "",
        "seeing it, CPU s": f"{row['observing']:.1f}" if "observing" in row else "",
        "in forward passes of 64 samples": f"{row['passes']:.0f}" if "passes" in row else "",
        "cutting it, CPU s": f"{row['cutting']:.0f}" if "cutting" in row else "",
    }


def _reasons(figures: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    total: Counter[str] = Counter()
    where: dict[str, list[str]] = {}
    for title, row in figures.items():
        for reason, count in row.get("reasons", {}).items():
            total[reason] += count
            where.setdefault(reason, []).append(f"{title} {count}")
    return [{"reason": key, "layers": str(count), "in": ", ".join(where[key])} for key, count in total.most_common()]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _table(rows: list[dict[str, str]]) -> str:
    return str(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
