"""Imports go one way, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lightning_embed"
# rooms in the order of the direction of imports: a room may import those before it
ORDER = ["errors", "operators", "statistics", "tape", "graph", "surgery", "analysis"]
ORDER += ["reporting", "", "callbacks", "demo", "cli"]
HEAVY = {"lightning", "pytorch_lightning", "sklearn", "tensorboard", "matplotlib", "jinja2"}
SLOW = HEAVY | {"torchmetrics", "scipy", "triton", "curvlinops"}


def room(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    return "" if part == "__init__" else part


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = room(path)
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "lightning_embed":
            other = rest.split(".")[0] if rest.split(".")[0] in ORDER else ""
            assert ORDER.index(other) <= ORDER.index(own), f"{own} must not import {name}"
        elif package in HEAVY:
            drawing = own in {"analysis", "reporting"} and package in {"matplotlib", "jinja2"}
            assert drawing or own in {"callbacks", "cli", "demo"}, f"{own} must not import {name}"


def test_only_one_file_touches_the_inside_of_a_trainer():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "_trainer.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not (private and owner in {"trainer", "strategy", "fit_loop", "epoch_loop"}), (path, node.attr)


def test_importing_the_package_is_light():
    code = f"import sys, lightning_embed; print(sorted({SLOW!r} & {{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
