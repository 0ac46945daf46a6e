"""The rows of the scale benchmark, at a width that takes no time."""

import pytest

from benchmarks import scale


@pytest.mark.parametrize("criterion", ["cosine", "span"])
def test_what_is_planted_is_cut_and_what_that_costs_and_gains_is_told(criterion):
    row = {"width": 64, "criterion": criterion} | scale.measuring(64, criterion) | scale.cutting(64, criterion)
    assert row["kept"] == 16
    assert row["width kept"] <= 16
    assert row["flops"] == 16 / 64
    assert min(row[name] for name in ("forward", "measure", "propose", "apply", "ms 1", "ms 256 cut")) > 0
    assert "64" in scale.cost_table([row])
    assert ("64 → 16" in scale.gain_table([row])) == (criterion == "span")


def test_all_layers_of_the_linear_network_merge():
    assert scale.layers(64)["merged"] == scale.DEPTH


def test_rows_that_cannot_be_measured_say_why():
    assert scale.apart("cut", "64", "no criterion", limit=600)["refused"] == "KeyError: 'no criterion'"
    assert scale.apart("cut", "64", "span", limit=0.01)["refused"] == "not done after 0.01 s"
    assert "not done" in scale.cost_table([{"width": 64, "criterion": "span", "cut refused": "not done after 1 s"}])
