"""lift_layer and merge_layers: values, types and refusals."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_embed.errors import InputError
from lightning_embed.operators import lift_layer, merge_layers
from tests.tolerances import tolerance

NAN, INF = float("nan"), math.inf
RELU = {"segment": (0.0, INF), "slope": 1.0, "intercept": 0.0}
HARDTANH = {"segment": (-1.0, 1.0), "slope": 1.0, "intercept": 0.0}


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(2, 4), (4, 2), (3, 3)])
def test_the_default_width_is_the_smaller_one(fan_in, fan_out):
    w1, b1, w2, b2 = lift_layer(normal(fan_out, fan_in), None, normal(9, fan_in), **RELU)
    least = min(fan_in, fan_out)
    assert [tuple(t.shape) for t in (w1, b1, w2, b2)] == [
        (least, fan_in),
        (least,),
        (fan_out, least),
        (fan_out,),
    ]


def test_padding_neurons_have_no_weights_and_sit_inside_the_segment():
    w1, b1, w2, _ = lift_layer(normal(2, 3), None, normal(9, 3), **RELU, width=5)
    assert not w1[2:].any()
    assert not w2[:, 2:].any()
    assert (b1[2:] > 0).all()


def test_data_fill_the_middle_half_of_a_bounded_segment():
    w1, b1, _, _ = lift_layer(torch.eye(1), None, torch.tensor([[-30.0], [10.0]]), **HARDTANH)
    assert_close(torch.tensor([[-30.0], [10.0]]) @ w1.T + b1, torch.tensor([[-0.5], [0.5]]))
    small = lift_layer(torch.eye(1), None, torch.tensor([[-0.1], [0.1]]), **HARDTANH)
    assert small[0].item() == 1.0  # small data are not blown up


@pytest.mark.parametrize("value", [0.0, -5.0, 1e6])
def test_constant_inputs_are_lifted_too(value):
    x, w = torch.full((4, 3), value, dtype=torch.float64), normal(2, 3)
    w1, b1, w2, b2 = lift_layer(w, None, x, **RELU)
    wanted = F.linear(x, w)
    assert_close(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2), wanted, **tolerance(x.dtype, abs(value)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("skip", [False, True])
def test_types_are_kept_and_arguments_left_alone(dtype, skip):
    given = normal(3, 3, dtype=dtype), normal(3, dtype=dtype, seed=1), normal(20, 3, dtype=dtype, seed=2)
    before = [tensor.clone() for tensor in given]
    deep = lift_layer(*given, **RELU, skip=skip)
    slope, intercept = torch.ones(3), torch.zeros(3)
    merged = merge_layers(*deep, slope, intercept, skip=skip)
    for result, wanted in zip(merged, before, strict=False):
        assert_close(result, wanted, **tolerance(dtype, 10.0))
    for tensor in (*deep, *merged):
        assert tensor.dtype == dtype
        tensor.zero_()
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


def test_merging_needs_no_bias_where_nothing_stands_in_it():
    w1, w2, ones = normal(3, 2), normal(4, 3), torch.ones(3)
    assert merge_layers(w1, None, w2, None, ones, 0 * ones)[1] is None
    assert merge_layers(w1, torch.zeros(3).double(), w2, None, ones, 0 * ones)[1] is None
    assert merge_layers(w1, None, w2, torch.zeros(4).double(), ones, 0 * ones)[1].tolist() == [0] * 4
    assert merge_layers(w1, None, w2, None, ones, ones)[1].tolist() == w2.sum(dim=1).tolist()
    assert merge_layers(w1, ones.double(), w2, None, 0 * ones, 0 * ones)[1] is None


def test_a_layer_of_constants_merges_with_slope_zero():
    w, b = merge_layers(normal(3, 2), None, torch.ones(1, 3), None, torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    assert w.tolist() == [[0, 0]]
    assert b.tolist() == [6]


def test_a_skip_adds_the_second_weight():
    w1, w2, ones = torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 10.0]]), torch.ones(2)
    assert merge_layers(w1, None, w2, None, ones, 0 * ones)[0].tolist() == [[30, 2]]
    assert merge_layers(w1, None, w2, None, ones, 0 * ones, skip=True)[0].tolist() == [[31, 12]]


LIFTS = {
    "w must have shape": {"w": torch.ones(3)},
    "w holds NaN": {"w": torch.full((2, 3), NAN)},
    r"b must have shape \(2,\)": {"b": torch.ones(3)},
    r"inputs must have shape \(any, 3\), not \(5, 2\)": {"inputs": torch.ones(5, 2)},
    "inputs holds no sample": {"inputs": torch.ones(0, 3)},
    "inputs holds NaN": {"inputs": torch.full((5, 3), INF)},
    "inputs must be a floating-point tensor, not torch.int64": {"inputs": torch.ones(5, 3).long()},
    "on one device": {"inputs": torch.ones(5, 3, device="meta")},
    r"segment must be \(low, high\) with low < high, not \(1.0, 1.0\)": {"segment": (1.0, 1.0)},
    r"segment must be \(low, high\)": {"segment": (NAN, 1.0)},
    "slope must be finite and not zero, not 0.0; choose a segment that is not flat": {"slope": 0.0},
    "slope must be finite and not zero, not nan": {"slope": NAN},
    "intercept must be finite, not inf": {"intercept": INF},
    r"width must be at least min\(fan_in, fan_out\) = 2, not 1": {"width": 1},
    "width must be fan_in = 3 with skip=True, because the skip adds them, not 4": {"width": 4, "skip": True},
    "the lifted w2 is too large for torch.float16": {"w": torch.ones(2, 3).half(), "slope": 1e-6},
    "torch.float16 is too coarse to move inputs into the segment": {
        "w": torch.ones(2, 3).half(),
        "inputs": torch.linspace(1, 2, 5)[:, None].expand(5, 3),
        "segment": (1.0, 1.0001),
    },
}


@pytest.mark.parametrize("message", LIFTS)
def test_bad_liftings_are_refused(message):
    good = {"w": torch.ones(2, 3), "b": None, "inputs": normal(5, 3, dtype=torch.float32), **RELU}
    lift_layer(**good)
    with pytest.raises(InputError, match=message):
        lift_layer(**{**good, **LIFTS[message]})


MERGES = {
    "w1 must have shape": {"w1": torch.ones(3)},
    "w1 holds NaN": {"w1": torch.full((3, 2), NAN)},
    r"w2 must have shape \(any, 3\), not \(4, 2\)": {"w2": torch.ones(4, 2)},
    r"b1 must have shape \(3,\)": {"b1": torch.ones(2)},
    r"b2 must have shape \(4,\)": {"b2": torch.ones(3)},
    r"slope must have shape \(3,\)": {"slope": torch.ones(2)},
    "slope holds NaN": {"slope": torch.full((3,), NAN)},
    "slope must be a floating-point tensor, not float": {"slope": 1.0},
    r"intercept must have shape \(3,\)": {"intercept": torch.ones(2)},
    "intercept holds NaN": {"intercept": torch.full((3,), NAN)},
    r"w1 must be square with skip=True, because the skip adds it to its input, not \(3, 2\)": {"skip": True},
    "the merged weight is too large for torch.float16": {
        "w2": torch.full((4, 3), 6e4).half(),
        "slope": torch.full((3,), 10.0),
    },
    "on one device": {"w2": torch.ones(4, 3, device="meta")},
}


@pytest.mark.parametrize("message", MERGES)
def test_bad_merges_are_refused(message):
    good = {"w1": torch.ones(3, 2), "b1": None, "w2": torch.ones(4, 3), "b2": None}
    good |= {"slope": torch.ones(3), "intercept": torch.zeros(3)}
    merge_layers(**good)
    with pytest.raises(InputError, match=message):
        merge_layers(**{**good, **MERGES[message]})
