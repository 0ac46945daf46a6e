"""Train through the packages that people use, each in an environment of its own, and write docs/packages.md.

    python -m tests.packages                 # all; installs several GB
    python -m tests.packages darts pina      # these; the rows of the others stay as they were last written

The environments are made with venv and pip below LIGHTNING_EMBED_ENVIRONMENTS (a temporary folder if unset) and used
again where they are there. LIGHTNING_EMBED_BASE_PYTHON names a Python whose packages (torch and Lightning above all)
they start from, in place of installing those anew.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROWS = HERE / "rows.json"
PAGE = ROOT / "docs" / "packages.md"

# module here -> distribution, what is installed, family
PACKAGES = {
    "pytorch_tabular": ("pytorch-tabular", "pytorch-tabular", "Tables"),
    "pytorch_forecasting": ("pytorch-forecasting", "pytorch-forecasting", "Forecasts"),
    "neuralforecast": ("neuralforecast", "neuralforecast", "Forecasts"),
    "darts": ("darts", "darts[torch]", "Forecasts"),
    "gluonts": ("gluonts", "gluonts[torch]", "Forecasts"),
    "scvi": ("scvi-tools", "scvi-tools", "Single cells"),
    "chemprop": ("chemprop", "chemprop", "Molecules"),
    "pina": ("pina-mathlab", "pina-mathlab", "Physics"),
}

FAMILIES = {
    "Tables": "The layers of a multilayer perceptron merge; a gated feed-forward block (TabTransformer) is left alone "
    "as long as gates are. Give the callbacks to `fit`, not to the configuration: they are objects.",
    "Forecasts": "Packages that train in full batches, one step an epoch, are watched at little cost: a step is "
    "sampled every fifty, and nothing is counted in between. neuralforecast trains with copies of the callbacks that "
    "it is given, darts saves them with the model: look for those that saw the training in `trainer.callbacks`. "
    "Models that return distributions are compared by the parameters of these.",
    "Single cells": "scvi's batch norms average slowly (momentum 0.01), so that in a short training eval mode lags "
    "behind. Where the statistics of the calibration data settle that, they are taken over with the first merge of an "
    "event, and a record says so. scvi saves the module inside of what Lightning trains; its state dict describes "
    "itself.",
    "Molecules": "The feed-forward head merges; message passing shares one weight among its steps and is left alone.",
    "Physics": "Labelled tensors are recorded as plain ones, and a loss that differentiates the network is looked "
    "through. A bound on the outputs says little of the derivatives that such a training needs: ask for a small one "
    "(`Tolerance(change=0.005)`), or give `le.prune` the residual as `Tolerance(metric=…)`.",
}

HEAD = """# Packages

Trainings that come with a package need two callbacks and, to load what was merged, one context. Every row was run by
`python -m tests.packages`: small data made on the spot, the package's own way to train, save, load and predict. Each
training is run without callbacks, with `EmbeddingMonitor(every_n_steps=20)` alone, with `EmbeddingPruner()` beside it
at its defaults, and with generous settings (`Criteria(linearization=0.95, condensation=0.8, span=0.05)`,
`Tolerance(change=0.1)`, an event every three epochs from the third tenth on).

- *bit-equal*: whether all weights are the same bits with the monitor and without.
- *layers*: those that could be hidden layers, of which so many may lose neurons, with their share of the parameters.
- *merges*: parameters before → after (number of records done), and the package's own metric on data it has not seen,
  without → with. Where nothing was merged, the reasons.
- *saved*: whether the package's own load, inside `le.loading()`, gives the same predictions: monitor alone, defaults,
  generous.
- *CPU*: process time of the training with the monitor, and with both at the pruner's defaults, as a ratio to none. The
  trainings take seconds, so what is done once (observing the network) weighs more than it will for you.

Callbacks are copied and pickled with their options and records, never with a training that is under way.
"""


def python_of(environment: Path) -> Path:
    """The interpreter of an environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment(name: str, requirement: str) -> Path:
    """Make an environment and install a package into it; its Python.

    Raises:
        RuntimeError: pip could not install it; the message is the end of what it said.
    """
    where = os.environ.get("LIGHTNING_EMBED_ENVIRONMENTS")
    folder = (Path(where) if where else Path(tempfile.gettempdir()) / "lightning-embed-packages") / name
    python, base = python_of(folder), os.environ.get("LIGHTNING_EMBED_BASE_PYTHON")
    if (folder / "installed").exists():
        return python
    subprocess.run([base or sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [requirement]
    if base:
        [site] = (folder / "lib").glob("python*/site-packages")
        paths = _run([base, "-c", "import json, site; print(json.dumps(site.getsitepackages()))"])
        (site / "base.pth").write_text("\n".join(json.loads(paths)) + "\n")
        frozen = _run([base, "-m", "pip", "freeze"]).splitlines()
        fixed = [line for line in frozen if line.startswith(("torch==", "lightning==", "pytorch-lightning=="))]
        (folder / "constraints.txt").write_text("\n".join(fixed) + "\n")
        wanted += ["--constraint", str(folder / "constraints.txt")]
    else:
        wanted.append(f"{ROOT}[lightning]")
    told = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise RuntimeError(told.stderr.strip()[-400:])
    (folder / "installed").touch()
    return python


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def trained(name: str) -> list[dict[str, Any]]:
    """The rows of a package."""
    distribution, requirement, _ = PACKAGES[name]
    try:
        python = environment(name, requirement)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        return [{"package": name, "model": "", "version": "", "failed": f"could not be installed: {error}"}]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(python), "-W", "ignore", "-m", "tests.packages.training", name, distribution]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False)
    rows = [json.loads(line.removeprefix("ROW ")) for line in told.stdout.splitlines() if line.startswith("ROW ")]
    if not rows:
        return [{"package": name, "model": "", "version": "", "failed": told.stderr.strip().splitlines()[-1][:200]}]
    return rows


def keep(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put new rows in the place of those of the same packages, and write the page."""
    known = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    new = {row["package"] for row in rows}
    rows = [*(row for row in known if row["package"] not in new), *rows]
    order = list(PACKAGES)
    rows.sort(key=lambda row: order.index(row["package"]))
    for row in rows:
        row.pop("tracebacks", None)
    ROWS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for family, text in FAMILIES.items():
        parts += [f"## {family}", "", text, ""]
        mine = [row for row in rows if PACKAGES[row["package"]][2] == family]
        for name in dict.fromkeys(row["package"] for row in mine):
            parts += [f"**{PACKAGES[name][0]}**", "", "```py", *_lines(name), "```", ""]
        parts += [
            "| package, model | bit-equal | layers | defaults | generous | saved | CPU |",
            "|---|---|---|---|---|---|---|",
            *(_row(row) for row in mine),
            "",
        ]
        said = {f"{row['model']}: {one}" for row in mine for one in row.get("said", ())}
        parts += [f"- *Said as a warning:* {one}" for one in sorted(said)]
        parts.append("")
    torch = sorted({row["torch"] for row in rows if row.get("torch")})
    lightning = sorted({row["lightning"] for row in rows if row.get("lightning")})
    parts.append(f"Last written with torch {', '.join(torch)}, Lightning {', '.join(lightning)}.")
    return "\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def _lines(name: str) -> list[str]:
    """The lines that a user of a package adds, which stand in its module here."""
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [line.removeprefix("    ") for line in ast.literal_eval(values["LINES"]).strip("\n").splitlines()]


def _row(row: dict[str, Any]) -> str:
    what = f"{PACKAGES[row['package']][0]} {row['version']}" + (f", {row['model']}" if row["model"] else "")
    if "failed" in row or "without" in row:
        why = row.get("failed") or row["without"]
        return f"| {what} | {' '.join(str(why).split())[:200].replace('|', '/')} | | | | | |"
    equal = {True: "yes", False: "**no**" if row["repeats"] else "does not repeat by itself"}.get(
        row.get("bit-equal"), str(row.get("bit-equal"))
    )
    share = row.get("share")
    layers = f"{row.get('may merge', 0)} of {row.get('layers', 0)}" + ("" if share is None else f", {share:.0%}")
    saves = [row.get("monitor saves"), *(one.get("saves") if isinstance(one, dict) else None for one in _kinds(row))]
    cpu = [row.get("monitor cpu"), *(one.get("cpu") if isinstance(one, dict) else None for one in _kinds(row)[:1])]
    cells = [
        what,
        equal,
        layers,
        *(_merges(row, one) for one in _kinds(row)),
        ", ".join("–" if one is None else one for one in saves),
        " / ".join("–" if one is None else f"{one:.2f}" for one in cpu),
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _kinds(row: dict[str, Any]) -> list[Any]:
    return [row.get("defaults"), row.get("generous")]


def _merges(row: dict[str, Any], found: Any) -> str:
    if not isinstance(found, dict):
        return str(found)
    if not found["merges"]:
        return "none: " + ("; ".join(found["refused"]) or "nothing may merge")
    return (
        f"{row['parameters']:,} → {found['parameters']:,} ({found['merges']}), "
        f"{row['score']:.4g} → {found['score']:.4g}"
    )


if __name__ == "__main__":
    names = sys.argv[1:] or list(PACKAGES)
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        sys.exit(f"Unknown: {', '.join(unknown)}; there are {', '.join(PACKAGES)}.")
    every: list[dict[str, Any]] = []
    for each in names:
        print(f"{each} …", flush=True)
        every += trained(each)
        keep(every)
    print(PAGE)
