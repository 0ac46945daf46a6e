"""Every figure of the depth paper in its quick mode: what its data say is what the paper says, where it reproduces."""

import json
import os
import re
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
    name = getattr(request, "param", request.function.__name__.removeprefix("test_").split("_")[0])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py"), "--output", str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_every_script_has_a_test():
    tested = {number for name in globals() if name.startswith("test_fig") for number in re.findall(r"fig\d+", name)}
    assert {path.stem for path in SCRIPTS.glob("fig*.py")} == tested


def test_fig5_lifting_adds_the_zeros_and_nothing_else(figure):
    for entry in figure["sets"].values():
        shallow, *lifted = entry["stages"]
        assert shallow["positive"] >= 1
        for one in lifted:
            assert one["zero"] - shallow["zero"] == one["parameters"] - shallow["parameters"] > 0
            assert (one["positive"], one["negative"]) == (shallow["positive"], shallow["negative"])
            assert one["loss"] == pytest.approx(shallow["loss"], rel=1e-6)
            assert one["gap"] > 1e4


@pytest.mark.slow
def test_fig3_the_deep_network_rests_where_the_shallow_one_does(figure):
    shallow, deep = (figure["plateaus"][name]["loss"] for name in ("1 hidden layer", "3 hidden layers"))
    assert deep == pytest.approx(shallow, rel=0.03)
    assert min(figure["dot"]["mpc"]) > 0.99
    assert figure["mpc"][-1][0] < 0.99  # a layer bends when the deep network leaves
    assert figure["curves"]["3 hidden layers"]["loss"][-1] < 0.8 * deep
    assert figure["reduced"]["loss"][0] == pytest.approx(deep, rel=0.03)
    assert figure["reduced"]["loss"][-1] == pytest.approx(deep, rel=0.05)


@pytest.mark.slow
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
    assert before - after >= 2
    assert found["agreement right after merging"] > 0.95
    original, merged, _ = found["test accuracy before merging, right after, at the end"]
    assert original > 0.5  # of ten classes
    assert merged == pytest.approx(original, abs=0.02)
    lost = found["loss before merging, right after, at the end"]
    assert lost[1] == pytest.approx(lost[0], rel=0.1)
    assert [sum(column) for column in zip(*figure["shares"], strict=True)] == pytest.approx([1] * 10, abs=1e-5)


@pytest.mark.slow
def test_fig6_batch_norm_of_a_large_scale_leaves_no_plateau(figure):
    left, mpc = figure["left"], figure["found"]["least MPC of any layer up to a tenth of the training"]
    assert left["no batch norm"] is None
    assert left["γ = 1.5"] < left["γ = 1.0"] < (left["γ = 0.1"] or figure["settings"]["steps"])
    assert mpc["γ = 1.5"] < mpc["γ = 1.0"] < 0.99 < min(mpc["γ = 0.1"], mpc["no batch norm"])


@pytest.mark.slow
def test_fig7_more_data_bend_the_layers_and_escape_sooner(figure):
    (run,) = figure["runs"]
    for count in ("80 points", "100 points"):
        assert all(new < old for new, old in zip(run["after"][count]["mpc"][0], run["before"]["mpc"][-1], strict=True))
        assert run["escape"][count] < run["escape"]["70 points"]


@pytest.mark.slow
def test_fig10_the_upper_layers_pass_on_what_is_affine_in_their_input(figure):
    for meeting in figure["meetings"]:
        first, *upper = meeting["not affine"]
        assert first > 0.1
        assert max(upper) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["fig10", "fig11"], indirect=True)
def test_fig10_and_fig11_networks_of_all_depths_compute_the_same_at_the_same_loss(figure):
    for meeting in figure["meetings"]:
        assert len(meeting["outputs"]) == 3
        assert meeting["apart"] < 0.05


def test_fig1_networks_of_all_depths_rest_at_one_loss(figure):
    for entry in figure["sets"].values():
        rests = list(entry["plateaus"].values())
        assert len(rests) == 3
        losses = [rest["loss"] for rest in rests]
        assert max(losses) < 1.05 * min(losses)


@pytest.mark.slow
def test_fig12_larger_weights_bend_the_layers(figure):
    means = [sum(one["mpc"]) / len(one["mpc"]) for one in figure["by std"]]
    assert means[2] < means[1] - 0.01
    assert figure["by std"][1]["test accuracy"] > 0.9
