"""split_neuron, merge_neurons and group_mix: values, types and refusals."""

import pytest
import torch

from lightning_embed.errors import EmbeddingError, InputError
from lightning_embed.operators import group_mix, merge_neurons, split_neuron

NAN = float("nan")


def layer(dtype=torch.float64):
    """Width 3, fan-in 2, fan-out 2."""
    w_in = torch.arange(6, dtype=dtype).reshape(3, 2)
    w_out = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]], dtype=dtype)
    return w_in, torch.tensor([7.0, 8.0, 9.0], dtype=dtype), w_out, torch.tensor([0.5, -0.5], dtype=dtype)


def test_the_first_copy_stays_and_the_others_follow():
    w_in, b_in, w_out, _ = layer()
    wide_in, wide_bias, wide_out = split_neuron(w_in, b_in, w_out, 1, [0.5, -1.0, 1.5])
    assert wide_in.tolist() == [[0, 1], [2, 3], [4, 5], [2, 3], [2, 3]]
    assert wide_bias.tolist() == [7, 8, 9, 8, 8]
    assert wide_out.tolist() == [[1, 1, 3, -2, 3], [-4, 2.5, -6, -5, 7.5]]


@pytest.mark.parametrize("alpha", [0.25, torch.tensor(0.25), [0.75, 0.25], torch.tensor([0.75, 0.25])])
def test_a_number_means_two_shares(alpha):
    w_in, b_in, w_out, _ = layer()
    assert split_neuron(w_in, b_in, w_out, 0, alpha)[2].tolist() == [[0.75, 2, 3, 0.25], [-3, 5, -6, -1]]


def test_shares_may_be_as_exact_as_their_type():
    w_in, b_in, w_out, _ = layer()
    split_neuron(w_in, b_in, w_out, 0, [0.1] * 10)
    split_neuron(w_in, b_in, w_out, 0, torch.full((3,), 1 / 3, dtype=torch.float32))
    with pytest.raises(InputError, match="must sum to 1"):
        split_neuron(w_in, b_in, w_out, 0, [1 / 3, 1 / 3, 0.333333])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_types_are_kept_and_arguments_left_alone(dtype):
    given = layer(dtype)
    before = [tensor.clone() for tensor in given]
    w_in, b_in, w_out, b_out = given
    wide = split_neuron(w_in, b_in, w_out, 2, 0.5)
    kept, mix = group_mix([[2, 3]], 4)
    narrow = merge_neurons(*wide, b_out, kept, mix, torch.zeros(4))
    results = (*wide, *narrow)
    assert all(tensor.dtype == dtype for tensor in results)
    assert all(torch.equal(*pair) for pair in zip(narrow, before, strict=True))
    for tensor in results:
        tensor.zero_()
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


def test_a_mix_in_float32_is_used_in_float64():
    w_in, b_in, w_out, _ = layer(torch.float64)
    mix = torch.tensor([[1.0], [1 / 3], [0.0]], dtype=torch.float32)
    merged = merge_neurons(w_in, b_in, w_out, None, [0], mix, torch.zeros(3))
    assert merged[2].tolist() == (w_out @ mix.double()).tolist()
    assert merged[3] is None


def test_a_bias_is_added_only_where_the_shift_needs_it():
    w_in, b_in, w_out, _ = layer()
    mix = torch.eye(3, dtype=torch.float64)
    shift = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    merged = merge_neurons(w_in, b_in, w_out, None, [0, 1, 2], mix, shift)
    assert merged[3].tolist() == [6.0, -12.0]
    assert merge_neurons(w_in, b_in, w_out, None, [0, 1, 2], mix, 0 * shift)[3] is None


def test_gradients_flow_through_a_merge():
    w_in, b_in, w_out, _ = layer()
    w_out.requires_grad_()
    kept, mix = group_mix([[0, 2]], 3)
    merge_neurons(w_in, b_in, w_out, None, kept, mix, torch.zeros(3))[2].sum().backward()
    assert w_out.grad.tolist() == [[1, 1, 1], [1, 1, 1]]


SPLITS = {
    "w_in must be a floating": (torch.ones(3, 2, dtype=torch.int64), None, torch.ones(2, 3), 0, 0.5),
    "w_in must have shape": (torch.ones(3), None, torch.ones(2, 3), 0, 0.5),
    r"w_out must have shape \(any, 3\), not \(2, 4\)": (torch.ones(3, 2), None, torch.ones(2, 4), 0, 0.5),
    "b_in must have shape": (torch.ones(3, 2), torch.ones(2), torch.ones(2, 3), 0, 0.5),
    "b_in must be a floating-point tensor, not list": (torch.ones(3, 2), [1.0] * 3, torch.ones(2, 3), 0, 0.5),
    "b_in holds NaN": (torch.ones(3, 2), torch.full((3,), NAN), torch.ones(2, 3), 0, 0.5),
    "w_out holds NaN": (torch.ones(3, 2), None, torch.full((2, 3), float("inf")), 0, 0.5),
    r"neuron must be neurons in 0..2, not \[3\]": (torch.ones(3, 2), None, torch.ones(2, 3), 3, 0.5),
    r"neuron must be neurons in 0..2, not \[-1\]": (torch.ones(3, 2), None, torch.ones(2, 3), -1, 0.5),
    r"alpha must be one finite number or at least two, not \[1.0\]": (
        torch.ones(3, 2), None, torch.ones(2, 3), 0, [1.0],
    ),
    "alpha must be one finite number or at least two, not nan": (
        torch.ones(3, 2), None, torch.ones(2, 3), 0, NAN,
    ),
    "must sum to 1, not to 1.5": (torch.ones(3, 2), None, torch.ones(2, 3), 0, [1.0, 0.5]),
    "too large for torch.float16; convert": (
        torch.ones(3, 2), None, torch.ones(2, 3, dtype=torch.float16), 0, 1e6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", SPLITS)
def test_bad_splits_are_refused(message):
    with pytest.raises(InputError, match=message):
        split_neuron(*SPLITS[message])


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(InputError, match="w_in on cpu, w_out on meta; move them"):
        split_neuron(torch.ones(3, 2), None, torch.ones(2, 3, device="meta"), 0, 0.5)


MERGES = {
    "b_out must have shape": {"b_out": torch.ones(3)},
    "b_out holds NaN": {"b_out": torch.full((2,), NAN)},
    r"kept must be neurons in 0..2, not \[3\]": {"kept": [0, 3]},
    "kept must name every neuron at most once": {"kept": [0, 0]},
    r"in increasing order, not \[1, 0\]": {"kept": [1, 0]},
    r"at least one neuron, in increasing order, not \[\]": {"kept": []},
    r"mix must have shape \(3, 2\), not \(3, 3\)": {"mix": torch.ones(3, 3)},
    "mix holds NaN": {"mix": torch.full((3, 2), NAN)},
    r"shift must have shape \(3,\), not \(2,\)": {"shift": torch.zeros(2)},
    "shift holds NaN": {"shift": torch.full((3,), NAN)},
}


@pytest.mark.parametrize("message", MERGES)
def test_bad_merges_are_refused(message):
    w_in, b_in, w_out, b_out = layer()
    good = {"b_out": b_out, "kept": [0, 2], "mix": torch.ones(3, 2), "shift": torch.zeros(3)}
    merge_neurons(w_in, b_in, w_out, **good)
    with pytest.raises(InputError, match=message):
        merge_neurons(w_in, b_in, w_out, **{**good, **MERGES[message]})


def test_an_overflowing_bias_is_refused():
    half = torch.float16
    with pytest.raises(InputError, match="the new output bias is too large"):
        merge_neurons(
            torch.ones(1, 1, dtype=half), None, torch.full((1, 1), 6e4, dtype=half), None,
            [0], torch.ones(1, 1), torch.ones(1) * 10,
        )  # fmt: skip


def test_neurons_in_no_group_represent_themselves():
    kept, mix = group_mix([[3, 0], [1, 4]], 5)
    assert kept == [1, 2, 3]
    assert mix.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert group_mix([], 2)[1].tolist() == [[1, 0], [0, 1]]


GROUPINGS = {
    "empty group": ([[0], []], 2, None),
    r"groups must be neurons in 0..1, not \[2\]": ([[0, 2]], 2, None),
    "groups must name every neuron at most once": ([[0, 1], [1, 2]], 3, None),
    r"ratio must have shape \(2,\)": ([[0, 1]], 2, torch.ones(3)),
    "ratio holds NaN": ([[0, 1]], 2, torch.tensor([1.0, NAN])),
    "ratio must be 1 at every kept neuron": ([[0, 1]], 2, torch.tensor([-1.0, 1.0])),
}


@pytest.mark.parametrize("message", GROUPINGS)
def test_bad_groupings_are_refused(message):
    with pytest.raises(InputError, match=message):
        group_mix(*GROUPINGS[message])


def test_the_error_is_the_package_s_and_a_value_error():
    assert issubclass(InputError, EmbeddingError)
    with pytest.raises(ValueError, match="empty group"):
        group_mix([[]], 1)
