"""The examples after the width paper (004), in their quick mode: what their data must show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "width_paper"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run an example once and read its data."""
    output = tmp_path_factory.mktemp("width_paper")

    def run(name):
        command = [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((output / f"{name}.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.slow
def test_fig_1_a_wide_network_stagnates_at_the_function_of_one_neuron(results):
    data = results("fig1")
    outputs, narrow, targets = data["outputs"], data["narrow"], data["targets"]

    def apart(one, other):
        return max(abs(a - b) for a, b in zip(one, other, strict=True))

    spread = max(targets) - min(targets)
    assert apart(outputs["plateau"], narrow["1"]["outputs"]) < 0.01 * spread
    assert apart(outputs["plateau"], targets) > 0.1 * spread
    assert apart(outputs["end"], narrow["3"]["outputs"]) < 0.05 * spread
    assert data["losses"][-1] < 0.05 * narrow["1"]["loss"]
    assert data["losses"] == sorted(data["losses"], reverse=True)


def test_fig_3_each_split_adds_a_zero_and_a_negative_eigenvalue(results):
    data = results("fig3")
    assert data["gradient"] < 1e-12
    assert set(data["split"]) == {"0", "1"}
    for by_width in data["split"].values():
        assert [one["width"] for one in by_width] == [2, 3, 4]
        assert [one["zero"] for one in by_width] == [0, 1, 2]
        assert [one["negative"] for one in by_width] == [0, 1, 2]
        assert [one["positive"] for one in by_width] == [7, 8, 9]
        assert all(one["gradient"] < 1e-12 for one in by_width)
        assert all(one["gap"] > 1e6 for one in by_width)


@pytest.mark.slow
def test_fig_3b_a_split_adds_a_zero_for_one_output_and_two_for_three(results):
    found = results("fig3b")["found"]
    for coded, least in (("the number of the class", 1), ("one output a class", 2)):
        assert found[f"{coded}: its gradient"] < 1e-12
        assert found[f"{coded}: fewest and most zeros that a split adds"][0] >= least


@pytest.mark.slow
def test_fig_4_every_critical_function_of_a_narrow_network_is_one_of_the_wide_network(results):
    data = results("fig4")
    assert {point["width"] for point in data["points"] if point["found"]} >= {1, 2}
    assert min(point["loss"] for point in data["points"]) == pytest.approx(0, abs=1e-20)
    for point in data["points"]:
        embedded = point["in_width_3"]
        assert embedded["loss"] == pytest.approx(point["loss"], rel=1e-9, abs=1e-20)
        assert embedded["gradient"] < 1e-11
        assert len(point["embedded"][0][1]) == 3
        assert point["inertia"]["zero"] >= 3 - point["width"]  # the minimal degree m - m₀ (004, Thm. 2)
        if point["width"] < 3:
            assert point["inertia"]["negative"] > 0
    best = {point["width"]: point["loss"] for point in data["points"]}
    assert best == dict(sorted(best.items(), key=lambda item: -item[1]))


def test_fig_5_the_network_of_one_neuron_a_group_predicts_the_same(results):
    data = results("fig5")
    found = data["found"]
    assert 10 < found["groups"] <= 58
    assert found["agreement, trained on"] > 0.95
    assert found["agreement, output weights refitted, not trained on"] > 0.99
    pairs = data["pairs"]
    total = sum(map(sum, pairs))
    assert sum(pairs[k][k] for k in range(10)) / total == pytest.approx(found["agreement, trained on"])
    assert sum(map(sum, pairs)) == 797
    groups = data["history"]["groups"]
    assert min(groups) == 1  # the first plateau
    assert groups[-1] > found["groups"]
