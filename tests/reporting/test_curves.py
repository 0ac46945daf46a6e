"""Thinned curves lose no dip; plateaus are where the loss rests."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_embed.reporting.curves import Curve, plateaus, thin, total

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=300)


@given(VALUES, st.integers(1, 40))
def test_a_thinned_curve_is_part_of_the_curve_with_its_extremes_and_ends(values, buckets):
    curve = Curve.of(range(0, 3 * len(values), 3), values)
    found = thin(curve, buckets)
    assert len(found) <= max(2 * buckets, 2 * buckets + 2)
    points = dict(zip(curve.steps, curve.values, strict=True))
    assert list(found.steps) == sorted(set(found.steps))
    for step, value in zip(found.steps, found.values, strict=True):
        assert value == points[step] or (math.isnan(value) and math.isnan(points[step]))
    known = [value for value in values if not math.isnan(value)]
    if known:
        seen = [value for value in found.values if not math.isnan(value)]
        assert (min(seen), max(seen)) == (min(known), max(known))
    if values:
        assert (found.steps[0], found.steps[-1]) == (curve.steps[0], curve.steps[-1])


@pytest.mark.parametrize("at", [0, 1, 4_999, 5_000, 9_998, 9_999])
def test_a_dip_of_one_point_survives_wherever_it_is(at):
    values = [1.0] * 10_000
    values[at] = 0.0
    assert 0.0 in thin(Curve.of(range(10_000), values), 50).values


def test_a_value_at_the_last_step_is_replaced_and_one_before_it_left_out():
    curve = Curve()
    for step, value in ((1, 1.0), (5, 2.0), (5, 3.0), (4, 9.0)):
        curve.set(step, value)
    assert (list(curve.steps), list(curve.values)) == ([1, 5], [1.0, 3.0])
    curve.cut(5)
    assert list(curve.steps) == [1]


def stairs(levels, length, fall):
    values = []
    for level, below in zip(levels, [*levels[1:], levels[-1]], strict=True):
        values += [level] * length
        values += [level + (below - level) * (k + 1) / fall for k in range(fall)]
    return Curve.of(range(len(values)), values)


@pytest.mark.parametrize("levels", [[3.0, 2.0, 1.0], [1.0, 1e-2, 1e-4], [2.0, 0.0, -2.0]])
def test_every_stair_of_a_loss_is_a_plateau_and_no_fall_is(levels):
    length, fall = 400, 200
    found = plateaus(stairs(levels, length, fall))
    assert len(found) == len(levels)
    window = (length + fall) * len(levels) / 60
    for number, (first, last) in enumerate(found):
        begin = number * (length + fall)
        assert abs(first - begin) <= 2 * window
        assert begin + length - 2 * window <= last <= begin + length + fall


def test_a_steady_fall_has_no_plateau_and_a_few_points_have_none():
    assert plateaus(Curve.of(range(1000), (math.exp(-k / 100) for k in range(1000)))) == []
    assert plateaus(Curve.of(range(3), [1.0, 1.0, 1.0])) == []
    assert plateaus(Curve()) == []


def test_nan_is_passed_over():
    curve = stairs([3.0, 2.0], 400, 200)
    holed = Curve.of(curve.steps, (math.nan if k % 7 == 0 else value for k, value in enumerate(curve.values)))
    assert len(plateaus(holed)) == 2


def test_the_total_counts_what_is_there():
    one, other = Curve.of([0, 10, 20], [1.0, 2.0, 3.0]), Curve.of([0, 10], [10.0, math.nan])
    assert list(total([one, other]).values) == [11.0, 2.0, 3.0]
