"""The examples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_runs_and_keeps_its_accuracy(path):
    done = subprocess.run([sys.executable, "-W", "error", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reached = [float(value) for value in re.findall(r"accuracy (\d\.\d+)", done.stdout)]
    assert len(reached) >= 2
    assert min(reached) > 0.85
    assert min(reached[1:]) > reached[0] - 0.02
