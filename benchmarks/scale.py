"""What merging costs as layers get wider, and what the user gains: `python -m benchmarks.scale`.

Every figure of memory is the peak of a process of its own, less what it held before the step.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery import merge
from lightning_embed.surgery.nominate.condensation import Condensation
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.surgery.nominate.measure import measure_layers
from lightning_embed.surgery.nominate.size import Size
from lightning_embed.surgery.persist.snapshot import size_of
from lightning_embed.tape import Tape, deal, record

WIDTHS = (256, 1024, 4096, 16384, 65536)
FAN_IN, FAN_OUT, SAMPLES, BATCH = 128, 64, 4096, 256
MOST_KEPT = 1024  # half of the calibration samples fit, and the refit needs two for every neuron that stays
CRITERIA = {"cosine": le.Criteria(None, 0.9, None), "span": le.Criteria(None, None, 0.01)}
TARGET_WIDTH, TARGET_SECONDS, TARGET_MIB, TARGET_PASSES = 4096, 10.0, 2048.0, 10.0
DEPTH, DEEP_WIDTHS = 10, (64, 256)


def network(width: int) -> nn.Sequential:
    """A wide hidden layer in which every direction occurs several times."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FAN_IN, width), nn.ReLU(), nn.Linear(width, FAN_OUT))
    kept = kept_of(width)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[torch.arange(width) % kept] * (1 + torch.rand(width, 1)))
        net[0].bias.zero_()
    return net


def kept_of(width: int) -> int:
    return min(width // 4, MOST_KEPT)


def linear_network(width: int) -> nn.Sequential:
    """Ten hidden tanh layers, so small in their values that all are linearized."""
    torch.manual_seed(0)
    layers = [
        one for at in range(DEPTH) for one in (nn.Linear(FAN_IN if at == 0 else width, width, bias=False), nn.Tanh())
    ]
    net = nn.Sequential(*layers, nn.Linear(width, FAN_OUT))
    for one in net[:-1:2]:
        nn.init.orthogonal_(one.weight)
    with torch.no_grad():
        net[0].weight *= 0.1
    return net


def tapes_of(net: nn.Module, samples: torch.Tensor) -> tuple[list[Tape], list[Tape]]:
    return deal(record(net, samples.split(BATCH)))


def forward_seconds(net: nn.Module, samples: torch.Tensor) -> float:
    """One pass over the calibration data, the best of five."""

    def run() -> None:
        with torch.no_grad():
            for batch in samples.split(BATCH):
                net(batch)

    return min(seconds(run)[0] for _ in range(5))


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peak() -> float:
    """Most memory that this process has held so far, in MiB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)


# ---- one row, in a process of its own ----


def measuring(width: int, criterion: str) -> dict[str, Any]:
    net, samples = network(width), torch.randn(SAMPLES, FAN_IN)
    fit, _ = tapes_of(net, samples)
    graph = observe(net, fit)
    forward, held = forward_seconds(net, samples), peak()
    took, found = seconds(lambda: measure_layers(net, graph, fit, CRITERIA[criterion]))
    kept = found.layers[0].width_cosine if criterion == "cosine" else found.layers[0].width_span
    return {"forward": forward, "measure": took, "measure MiB": peak() - held, "width kept": kept}


def cutting(width: int, criterion: str) -> dict[str, Any]:
    net, samples = network(width), torch.randn(SAMPLES, FAN_IN)
    fit, _ = tapes_of(net, samples)
    graph = observe(net, fit)
    (layer,) = graph.layers
    cut = copy.deepcopy(net)
    forward, held = forward_seconds(net, samples), peak()

    def propose() -> Any:
        view = LayerView(net, graph, layer, collect_features(net, [layer], fit)["0"])
        by = Size(kept_of(width)) if criterion == "span" else Condensation(CRITERIA[criterion].condensation or 0.9)
        return by.nominate(view)[0]

    took, step = seconds(propose)
    applied, _ = seconds(lambda: le.apply(cut, le.Plan((step,))))
    found = {"forward": forward, "propose": took, "apply": applied, "cut MiB": peak() - held, "kept": len(step.kept)}
    return found | gains(net, cut, samples, fit[0])


def gains(net: nn.Module, cut: nn.Module, samples: torch.Tensor, tape: Tape) -> dict[str, float]:
    """Operations, milliseconds at batch 1 and samples a second at batch 256, of the original and of the cut network."""
    cut = le.export(cut)
    flops = [size_of(one, tape, ()).flops for one in (net, cut)]
    found = {"flops": flops[1] / flops[0]}
    for batch in (1, 256):
        times = [one_call(model, samples[:batch]) for model in (net, cut)]
        found |= {
            f"ms {batch}": 1e3 * times[0],
            f"ms {batch} cut": 1e3 * times[1],
            f"faster {batch}": times[0] / times[1],
        }
    return found


def one_call(net: nn.Module, batch: torch.Tensor) -> float:
    with torch.no_grad():
        for _ in range(5):
            net(batch)
        return statistics.median(seconds(lambda: net(batch))[0] for _ in range(50))


def layers(width: int) -> dict[str, Any]:
    net, samples = linear_network(width), torch.randn(SAMPLES, FAN_IN)
    fit, decide = tapes_of(net, samples)
    forward, held = forward_seconds(net, samples), peak()
    only = le.Criteria(condensation=None, span=None)
    took, done = seconds(
        lambda: merge(copy.deepcopy(net), fit, decide, criteria=only, tolerance=le.Tolerance(change=0.2))
    )
    merged = sum(one.done and one.kind == "layer" for one in done.records)
    return {
        "forward": forward,
        "merged": merged,
        "seconds": took,
        "passes a merge": took / forward / max(1, merged),
        "MiB": peak() - held,
    }


# ---- all rows ----


def apart(row: str, *arguments: str, limit: float) -> dict[str, Any]:
    """A row that is measured in a fresh process; why it was not, if so."""
    command = [sys.executable, "-m", "benchmarks.scale", "--row", row, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)  # noqa: S603  # this file
    except subprocess.TimeoutExpired:
        return {"refused": f"not done after {limit:g} s"}
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()
        return {"refused": last[-1] if last else f"the process ended with {done.returncode} (out of memory?)"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "measure": lambda width, criterion: measuring(int(width), criterion),
    "cut": lambda width, criterion: cutting(int(width), criterion),
    "layers": lambda width: layers(int(width)),
}


def costs(widths: list[int], limit: float) -> list[dict[str, Any]]:
    rows = []
    for width in widths:
        for criterion in CRITERIA:
            found = {"width": width, "criterion": criterion}
            for row in ("measure", "cut"):
                here = apart(row, str(width), criterion, limit=limit)
                if "refused" in here:
                    here = {f"{row} refused": here["refused"]}
                found |= here
            rows.append(found)
            print(f"{width} {criterion}", file=sys.stderr, flush=True)
    return rows


def cost_table(rows: list[dict[str, Any]]) -> str:
    shown = []
    for row in rows:
        ratios = {name: _ratio(row, name) for name in ("measure", "propose", "apply")}
        why = "; ".join(f"{name}: {row[f'{name} refused']}" for name in ("measure", "cut") if f"{name} refused" in row)
        shown.append(
            {
                "width": row["width"],
                "kept": row.get("kept"),
                "criterion": row["criterion"],
                "forward s": row.get("forward"),
                **ratios,
                "measure MiB": _whole(row.get("measure MiB")),
                "propose, apply MiB": _whole(row.get("cut MiB")),
                "refused": why,
            }
        )
    return tabulate(shown, headers="keys", floatfmt=".4g")


def _ratio(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f} s ({row[name] / row['forward']:.0f}×)" if name in row else ""


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def gain_table(rows: list[dict[str, Any]]) -> str:
    shown = [
        {
            "width": f"{row['width']} → {row['kept']}",
            "FLOPs": f"1/{1 / row['flops']:.1f}",
            **{
                f"batch {batch}, ms": "{:.3f} → {:.3f} (1/{:.1f})".format(
                    row[f"ms {batch}"], row[f"ms {batch} cut"], row[f"ms {batch}"] / row[f"ms {batch} cut"]
                )
                for batch in (1, 256)
            },
            "samples/s, batch 256": f"{256e3 / row['ms 256']:,.0f} → {256e3 / row['ms 256 cut']:,.0f}",
        }
        for row in rows
        if row["criterion"] == "span" and "flops" in row
    ]
    return tabulate(shown, headers="keys")


def targets(rows: list[dict[str, Any]], deep: list[dict[str, Any]]) -> str:
    shown = []
    for row in rows:
        if (row["width"], row["criterion"]) == (TARGET_WIDTH, "span") and "propose" in row:
            what = f"{TARGET_WIDTH} neurons to {row['kept']} by span: propose and apply"
            shown.append([what, f"{row['propose'] + row['apply']:.1f} s", f"{TARGET_SECONDS:g} s"])
            shown.append(["the same: peak memory", f"{row['cut MiB']:.0f} MiB", f"{TARGET_MIB:g} MiB"])
    for row in (one for one in deep if "merged" in one):
        what = f"one of {row['merged']} layer merges ({DEPTH} layers of {row['width']}), checks included"
        shown.append([what, f"{row['passes a merge']:.1f} forward passes", f"{TARGET_PASSES:g}"])
    return tabulate(shown, headers=["", "measured", "at most"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a row is given up")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--row", nargs="+", help=argparse.SUPPRESS)  # what the processes of the rows are called with
    options = parser.parse_args()
    if options.row:
        le.prune(network(16), torch.randn(64, FAN_IN))  # what is imported and allocated once is no cost of a row
        print(json.dumps(ROWS[options.row[0]](*options.row[1:])))
        return
    rows = costs(options.widths, options.limit)
    deep = [{"width": width} | apart("layers", str(width), limit=options.limit) for width in DEEP_WIDTHS]
    print(
        f"{FAN_IN} → width → {FAN_OUT}, ReLU, {SAMPLES} calibration samples, {torch.get_num_threads()} threads; "
        f"(×): passes over the calibration data\n\n{cost_table(rows)}\n"
    )
    print(f"The network that span leaves:\n\n{gain_table(rows)}\n")
    print(targets(rows, deep))
    if options.json:
        options.json.write_text(json.dumps({"costs": rows, "layers": deep}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
