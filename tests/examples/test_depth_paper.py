"""Every figure of the depth paper in its quick mode: what its data say is what the paper says, where it reproduces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "depth_paper"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("depth_paper")


@pytest.fixture
def figure(folder, request):
    name = request.function.__name__.removeprefix("test_").split("_")[0]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py"), "--output", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_every_script_has_a_test():
    scripts = {path.stem for path in SCRIPTS.glob("fig*.py")}
    tested = {name.removeprefix("test_").split("_")[0] for name in globals() if name.startswith("test_fig")}
    assert scripts == tested


def test_fig5_lifting_adds_the_zeros_and_nothing_else(figure):
    for entry in figure["sets"].values():
        shallow, *lifted = entry["stages"]
        assert shallow["positive"] >= 1
        for one in lifted:
            assert one["zero"] - shallow["zero"] == one["parameters"] - shallow["parameters"] > 0
            assert (one["positive"], one["negative"]) == (shallow["positive"], shallow["negative"])
            assert one["loss"] == pytest.approx(shallow["loss"], rel=1e-6)
            assert one["gap"] > 1e4


def test_fig3_the_deep_network_rests_where_the_shallow_one_does(figure):
    shallow, deep = (figure["plateaus"][name]["loss"] for name in ("1 hidden layer", "3 hidden layers"))
    assert deep == pytest.approx(shallow, rel=0.03)
    assert min(figure["dot"]["mpc"]) > 0.99
    assert figure["mpc"][-1][0] < 0.99  # a layer bends when the deep network leaves
    assert figure["curves"]["3 hidden layers"]["loss"][-1] < 0.8 * deep
    assert figure["reduced"]["loss"][0] == pytest.approx(deep, rel=0.03)
    assert figure["reduced"]["loss"][-1] == pytest.approx(deep, rel=0.05)


def test_fig4_the_deep_network_rests_where_the_shallow_one_does(figure):
    shallow, deep = (figure["plateaus"][name]["loss"] for name in ("1 hidden layer", "3 hidden layers"))
    assert deep == pytest.approx(shallow, rel=0.05)
    assert sorted(figure["dot"]["mpc"])[1] > 0.99
    assert figure["reduced"]["loss"][0] == pytest.approx(deep, rel=0.03)
    for reached in figure["accuracy"].values():
        assert reached["train"] == pytest.approx(2 / 3, abs=0.05)  # two of three classes


def test_fig8_merging_the_linearized_layers_keeps_the_classes(figure):
    found = figure["found"]
    before, after = found["hidden layers before and after"]
    assert before == 10
    assert 2 <= before - after
    assert found["agreement right after merging"] > 0.95
    original, merged, _ = found["test accuracy before merging, right after, at the end"]
    assert original > 0.5  # of ten classes
    assert merged == pytest.approx(original, abs=0.02)
    lost = found["loss before merging, right after, at the end"]
    assert lost[1] == pytest.approx(lost[0], rel=0.1)
    assert [sum(column) for column in zip(*figure["shares"], strict=True)] == pytest.approx([1] * 10, abs=1e-5)
