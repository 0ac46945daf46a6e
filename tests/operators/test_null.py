"""add_null_neurons and drop_null_neurons: values, types and refusals."""

import pytest
import torch

from lightning_embed.errors import InputError
from lightning_embed.operators import add_null_neurons, drop_null_neurons

NAN = float("nan")


def layer(dtype=torch.float64):
    """Width 2, fan-in 3, fan-out 1."""
    return (
        torch.arange(6, dtype=dtype).reshape(2, 3),
        torch.tensor([1.0, -1.0], dtype=dtype),
        torch.tensor([[2.0, 3.0]], dtype=dtype),
        torch.tensor([4.0], dtype=dtype),
    )


def test_the_one_step_null_embedding_has_zero_weights_and_any_bias():
    w_in, b_in, w_out, b_out = add_null_neurons(*layer(), 2, bias=torch.tensor([5.0, 6.0]))
    assert w_in[2:].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert b_in.tolist() == [1, -1, 5, 6]
    assert w_out.tolist() == [[2, 3, 0, 0]]
    assert b_out.tolist() == [4]


def test_constant_features_are_taken_from_the_output_bias():
    new = {"output_weights": torch.tensor([[10.0, 1.0]]), "values": torch.tensor([0.5, 2.0])}
    assert add_null_neurons(*layer(), 2, **new)[3].tolist() == [4 - 5 - 2]


def test_dropping_moves_the_constants_in_the_order_of_the_neurons():
    wide = add_null_neurons(*layer(), 2)
    w_in, b_in, w_out, b_out = drop_null_neurons(*wide, [3, 0], torch.tensor([7.0, 0.5]))
    assert w_in.tolist() == [[3, 4, 5], [0, 0, 0]]
    assert b_in.tolist() == [-1, 0]
    assert w_out.tolist() == [[3, 0]]
    assert b_out.tolist() == [4 + 2 * 0.5]


def test_a_layer_without_biases_gets_one_only_if_it_needs_it():
    w_in, _, w_out, _ = layer()
    wide = add_null_neurons(w_in, None, w_out, None, 1)
    assert wide[1] is None
    assert wide[3] is None
    assert drop_null_neurons(w_in, None, w_out, None, [1], torch.zeros(1))[3] is None
    assert drop_null_neurons(w_in, None, w_out, None, [1], torch.ones(1))[3].tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_are_kept_and_arguments_left_alone(dtype):
    given = layer(dtype)
    before = [tensor.clone() for tensor in given]
    wide = add_null_neurons(*given, 1, output_weights=torch.ones(1, 1), values=torch.ones(1))
    narrow = drop_null_neurons(*wide, [2], torch.ones(1))
    same = drop_null_neurons(*given, [], torch.ones(0))
    assert all(torch.equal(*pair) for pair in zip(narrow, before, strict=True))
    assert all(torch.equal(*pair) for pair in zip(same, before, strict=True))
    for tensor in (*wide, *narrow, *same):
        assert tensor.dtype == dtype
        tensor.zero_()
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


ADDITIONS = {
    "count must be at least 1, not 0": {"count": 0},
    r"bias must have shape \(1,\), not \(2,\)": {"bias": torch.ones(2)},
    "bias holds NaN": {"bias": torch.full((1,), NAN)},
    "bias was given but the layer has no b_in; give zeros": {"b_in": None, "bias": torch.ones(1)},
    r"input_weights must have shape \(1, 3\), not \(3, 1\)": {"input_weights": torch.ones(3, 1)},
    r"output_weights must have shape \(1, 1\)": {"output_weights": torch.ones(2, 1), "values": torch.ones(1)},
    "values is needed with output_weights": {"output_weights": torch.ones(1, 1)},
    r"values must have shape \(1,\)": {"output_weights": torch.ones(1, 1), "values": torch.ones(2)},
    "values must be a floating-point tensor, not list": {"values": [1.0]},
    r"new neurons \[0\] have input_weights and output_weights": {
        "input_weights": torch.ones(1, 3),
        "output_weights": torch.ones(1, 1),
        "values": torch.ones(1),
    },
    "b_in must have shape": {"b_in": torch.ones(3)},
    "b_out must have shape": {"b_out": torch.ones(2)},
    "w_in holds NaN": {"w_in": torch.full((2, 3), NAN)},
    "w_out must have shape": {"w_out": torch.ones(1, 3)},
    "all tensors must be on one device": {"b_out": torch.ones(1, device="meta")},
}


@pytest.mark.parametrize("message", ADDITIONS)
def test_bad_additions_are_refused(message):
    good = {**dict(zip(("w_in", "b_in", "w_out", "b_out"), layer(), strict=True)), "count": 1}
    add_null_neurons(**good)
    with pytest.raises(InputError, match=message):
        add_null_neurons(**{**good, **ADDITIONS[message]})


DROPS = {
    r"neurons must be neurons in 0..1, not \[2\]": {"neurons": [2]},
    "neurons must name every neuron at most once": {"neurons": [0, 0], "values": torch.ones(2)},
    r"values must have shape \(1,\), not \(2,\)": {"values": torch.ones(2)},
    "values holds NaN": {"values": torch.full((1,), NAN)},
    "neurons names the whole layer; remove it with merge_layers": {
        "neurons": [0, 1],
        "values": torch.ones(2),
    },
    "b_in must have shape": {"b_in": torch.ones(3)},
    "b_out must have shape": {"b_out": torch.ones(2)},
    "w_in must have shape": {"w_in": torch.ones(2)},
    "w_out holds NaN": {"w_out": torch.full((1, 2), NAN)},
    "all tensors must be on one device": {"b_in": torch.ones(2, device="meta")},
}


@pytest.mark.parametrize("message", DROPS)
def test_bad_drops_are_refused(message):
    good = dict(zip(("w_in", "b_in", "w_out", "b_out"), layer(), strict=True))
    good |= {"neurons": [1], "values": torch.ones(1)}
    drop_null_neurons(**good)
    with pytest.raises(InputError, match=message):
        drop_null_neurons(**{**good, **DROPS[message]})
