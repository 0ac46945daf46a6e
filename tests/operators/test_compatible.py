"""Embeddings against the definitions written out entry by entry; types; refusals."""

import pytest
import torch

from lightning_embed.errors import InputError
from lightning_embed.operators import (
    NULL,
    compatible_embedding,
    compose,
    from_vector,
    global_null,
    global_splitting,
    null_embedding,
    parameter_count,
    predicted_dimension,
    random_embedding,
    splitting_embedding,
    to_vector,
)
from tests.oracles import general_embedding, one_step_null, one_step_splitting
from tests.tolerances import tolerance

WIDTHS = (2, 3, 2, 1)
INDEX = [(0, 1), (2, NULL, 0, 1, 0), (1, 1, 0, NULL), (0,)]


@pytest.fixture
def theta():
    generator = torch.Generator().manual_seed(0)
    return from_vector(torch.randn(parameter_count(WIDTHS), dtype=torch.float64, generator=generator), WIDTHS)


def close(left, right, dtype=torch.float64):
    torch.testing.assert_close(to_vector(left).double(), to_vector(right).double(), **tolerance(dtype))


def test_the_general_embedding_is_the_printed_one(theta):
    one = random_embedding(INDEX, torch.Generator().manual_seed(1), torch.sigmoid)
    close(one(theta), general_embedding(theta, INDEX, one.alpha, one.alpha_bias))


@pytest.mark.parametrize(("layer", "neuron"), [(1, 0), (1, 2), (2, 1)])
def test_one_step_splitting_is_the_printed_one(theta, layer, neuron):
    (w_in, b_in), (w_out, b_out) = theta[layer - 1], theta[layer]
    t_in, t_bias, t_out = one_step_splitting(w_in, b_in, w_out, neuron, -1.3)
    printed = (*theta[: layer - 1], (t_in, t_bias), (t_out, b_out), *theta[layer + 1 :])
    close(splitting_embedding(WIDTHS, layer, neuron, -1.3)(theta), printed)


@pytest.mark.parametrize("layer", [1, 2])
def test_one_step_null_is_the_printed_one(theta, layer):
    close(null_embedding(WIDTHS, layer, 0.7, torch.tanh)(theta), one_step_null(theta, layer, 0.7))


def test_global_splitting_is_example_5_1(theta):
    (w1, b1), (w2, b2), (w3, b3) = theta
    printed = (
        (torch.cat([w1] * 3), torch.cat([b1] * 3)),
        (torch.block_diag(w2, w2, w2), torch.cat([b2] * 3)),
        (torch.cat([w3, w3, -w3], dim=1), b3),
    )
    one = global_splitting(WIDTHS)
    close(one(theta), printed)
    assert one.beta[1].tolist() == [1] * 6 + [-1] * 3
    assert one.beta[2].tolist() == [1] * 4 + [-1] * 2


def test_global_null_is_example_5_2(theta):
    (w1, b1), (w2, b2), (w3, b3) = theta
    extra = [torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([4.0, 5.0]).double()]
    printed = (
        (torch.cat([w1, 0 * w1]), torch.cat([b1, extra[0]])),
        (torch.block_diag(w2, 0 * w2), torch.cat([b2, extra[1]])),
        (torch.cat([w3, 0 * w3], dim=1), b3),
    )
    one = global_null(WIDTHS, extra, torch.tanh)
    close(one(theta), printed)
    assert one.effective_biases[2].tolist() == [0, 0, 4, 5]


def test_composition_is_one_after_the_other(theta):
    generator = torch.Generator().manual_seed(2)
    first = random_embedding(INDEX, generator, torch.sigmoid)
    second = random_embedding([(0, 1), (4, 0, 1, 2, NULL, 3, 1), (3, 0, 1, 2, 3), (0,)], generator, torch.sigmoid)
    both = compose(first, second)
    assert (both.narrow, both.wide) == (WIDTHS, (2, 7, 5, 1))
    assert both.index[1] == (0, 2, NULL, 0, NULL, 1, NULL)
    close(both(theta), second(first(theta)))
    checked = compatible_embedding(
        both.index, both.alpha, both.beta, both.effective_biases, torch.sigmoid, alpha_bias=both.alpha_bias
    )
    close(checked(theta), both(theta))
    close(compose(first)(theta), first(theta))
    A, c, B = both.affine()
    (A1, c1, B1), (A2, c2, B2) = first.affine(), second.affine()
    torch.testing.assert_close(A, A2 @ A1)
    torch.testing.assert_close(c, A2 @ c1 + c2)
    torch.testing.assert_close(B, B2 @ B1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_are_kept_and_arguments_left_alone(theta, dtype):
    given = from_vector(to_vector(theta).to(dtype), WIDTHS)
    before = to_vector(given).clone()
    wide = splitting_embedding(WIDTHS, 1, 1, 0.25)(given)
    assert {part.dtype for layer in wide for part in layer} == {dtype}
    close(wide, splitting_embedding(WIDTHS, 1, 1, 0.25)(theta), dtype)
    for layer in wide:
        for part in layer:
            part.zero_()
    assert torch.equal(to_vector(given), before)


def test_gradients_flow_through_an_embedding(theta):
    vector = to_vector(theta).requires_grad_()
    one = random_embedding(INDEX, torch.Generator().manual_seed(3), torch.tanh)
    weights = torch.randn(one.affine().A.shape[0], dtype=torch.float64)
    (to_vector(one(from_vector(vector, WIDTHS))) @ weights).backward()
    torch.testing.assert_close(vector.grad, one.affine().A.T @ weights)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([(0,)], "index must have a mapping for the input, every hidden layer and the output"),
        ([(0,), (0, 2), (0,)], r"layer 1 must name neurons 0, 1, … without a gap.* nothing copies \[1\]"),
        ([(0,), (NULL, NULL), (0,)], "layer 1 must name neurons"),
        ([(0,), (0, -2), (0,)], "layer 1 must name neurons"),
        ([(0,), (), (0,)], "layer 1 must name neurons"),
        ([(1, 0), (0,), (0,)], r"layer 0 must be the identity .* not \(1, 0\)"),
        ([(0,), (0,), (0, 0)], "layer 2 must be the identity"),
    ],
)
def test_mappings_that_are_not_total_are_refused(index, message):
    with pytest.raises(InputError, match=message):
        random_embedding(index, torch.Generator())


def test_what_does_not_fit_is_refused(theta):
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(InputError, match=r"takes theta of widths \(1, 1, 1\), not \(2, 3, 2, 1\)"):
        splitting_embedding((1, 1, 1), 1, 0, 0.5)(theta)
    with pytest.raises(InputError, match=r"gives widths \(1, 2, 1\), but the next one takes \(1, 1, 1\)"):
        compose(*[splitting_embedding((1, 1, 1), 1, 0, 0.5)] * 2)
    with pytest.raises(InputError, match="at least one embedding"):
        compose()
    with pytest.raises(InputError, match="activation is needed"):
        random_embedding([(0,), (0, NULL), (0,)], torch.Generator())
    with pytest.raises(InputError, match="alpha must have 2 tensors for an index mapping of 3 layers"):
        compatible_embedding([(0,), (0,), (0,)], [one[None]], [one] * 3)
    with pytest.raises(InputError, match=r"alpha of layer 2 must have shape \(1, 1\), not \(1, 2\)"):
        compatible_embedding([(0,), (0,), (0,)], [one[None], one.expand(1, 2)], [one] * 3)
    with pytest.raises(InputError, match=r"layer must be a hidden layer, in 1\.\.2, not 3"):
        splitting_embedding(WIDTHS, 3, 0, 0.5)
    with pytest.raises(InputError, match=r"neuron must be in 0\.\.2, not 3"):
        splitting_embedding(WIDTHS, 1, 3, 0.5)
    with pytest.raises(InputError, match="alpha must be finite, not nan"):
        splitting_embedding(WIDTHS, 1, 0, float("nan"))
    with pytest.raises(InputError, match=r"of the sizes \(3, 2\)"):
        global_null(WIDTHS, [torch.zeros(3)], torch.tanh)
    with pytest.raises(InputError, match=r"layer must be a hidden layer"):
        global_splitting((2, 1))
    for wide in ((2, 3, 1, 1), (3, 3, 2, 1), (2, 3, 2, 2), (2, 3, 1)):
        with pytest.raises(InputError, match="wide must have the depth, input and output"):
            predicted_dimension(WIDTHS, wide)
