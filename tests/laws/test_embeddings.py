"""Laws of the embeddings in width: output, representation, gradient and Hessian; dimensions (001, 002, 004)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_embed.errors import InputError
from lightning_embed.operators import (
    NULL,
    Embedding,
    compatible_embedding,
    compose,
    features,
    global_null,
    global_splitting,
    measured_dimension,
    network,
    null_embedding,
    predicted_dimension,
    random_embedding,
    splitting_embedding,
    to_vector,
)
from tests.laws.networks import (
    critical_residual,
    gradient,
    hessian,
    index_maps,
    inertia,
    largest,
    losses,
    normal,
    random_theta,
    seeds,
    smooth,
    squared_error,
    widths,
    with_constant,
)
from tests.tolerances import tolerance


@st.composite
def embeddings(draw, narrow, activation):
    """Any of the kinds of embeddings, and the composition of two."""
    generator = torch.Generator().manual_seed(draw(seeds))
    layer = draw(st.integers(1, len(narrow) - 2))
    kind = draw(st.sampled_from(["split", "null", "steps", "general", "composed", "global split", "global null"]))
    alpha = draw(st.floats(-3, 3))
    if kind == "split":
        return splitting_embedding(narrow, layer, draw(st.integers(0, narrow[layer] - 1)), alpha)
    if kind == "null":
        return null_embedding(narrow, layer, alpha, activation)
    if kind == "global split":
        return global_splitting(narrow)
    if kind == "global null":
        return global_null(narrow, [normal(generator, width) for width in narrow[1:-1]], activation)
    if kind == "steps":
        first = null_embedding(narrow, layer, alpha, activation)
        second = splitting_embedding(first.wide, draw(st.integers(1, len(narrow) - 2)), 0, alpha)
        return compose(first, second, splitting_embedding(second.wide, layer, second.wide[layer] - 1, -alpha))
    first = random_embedding(draw(index_maps(narrow)), generator, activation)
    if kind == "general":
        return first
    return compose(first, random_embedding(draw(index_maps(first.wide, extra=1)), generator, activation))


@st.composite
def embedded_networks(draw, samples=9, hidden=3, size=3):
    """(embedding, θ, T(θ), x, activation, generator)."""
    activation = draw(smooth)
    narrow = draw(widths(hidden, size))
    embedding = draw(embeddings(narrow, activation))
    generator = torch.Generator().manual_seed(draw(seeds))
    theta = random_theta(narrow, generator)
    return embedding, theta, embedding(theta), normal(generator, samples, narrow[0]), activation, generator


def reach(embedding: Embedding, *tensors):
    """How large the terms are that cancel in what a network of embedded weights computes."""
    return largest(*embedding.alpha) ** len(embedding.alpha) * largest(*tensors)


@given(embedded_networks())
def test_outputs_are_preserved(case):
    embedding, theta, wide, x, activation, _ = case
    assert_close(
        network(wide, x, activation),
        network(theta, x, activation),
        **tolerance(x.dtype, reach(embedding, *features(wide, x, activation))),
    )


@given(embedded_networks())
def test_every_neuron_computes_what_it_copies(case):
    embedding, theta, wide, x, activation, _ = case
    for index, values, old, new in zip(
        embedding.index,
        embedding.values,
        features(theta, x, activation),
        features(wide, x, activation),
        strict=True,
    ):
        bound = tolerance(x.dtype, reach(embedding, old, values))
        for neuron, original in enumerate(index):
            wanted = values[neuron].expand(len(x)) if original == NULL else old[:, original]
            assert_close(new[:, neuron], wanted, **bound)


@settings(max_examples=50)
@given(embedded_networks())
def test_the_affine_form_is_the_embedding(case):
    embedding, theta, wide, _, _, _ = case
    A, c, B = embedding.affine()
    assert_close(A @ to_vector(theta) + c, to_vector(wide), **tolerance(A.dtype, reach(embedding, A, c)))
    assert_close(A.T @ B, torch.eye(A.shape[1], dtype=A.dtype), **tolerance(A.dtype, largest(A) * largest(B)))


@settings(max_examples=40)
@given(embedded_networks(), losses)
def test_gradients_are_mapped_by_b(case, loss):
    """∇R(T(θ)) = B ∇R(θ) at every θ, so critical points are mapped to critical points (001, Thms. 4.1-5.1)."""
    embedding, theta, wide, x, activation, generator = case
    y = normal(generator, len(x), len(theta[-1][1]))
    old, new = (gradient(one, x, y, activation, loss) for one in (theta, wide))
    B = embedding.affine().B
    assert_close(new, B @ old, **tolerance(x.dtype, reach(embedding, B) * largest(old, new)))


@settings(max_examples=20)
@given(embedded_networks(samples=5, hidden=2, size=2), losses)
def test_hessians_are_intertwined(case, loss):
    """H(T(θ)) A = B H(θ) at every θ, whence 001, Thm. 6.2 for general compatible embeddings."""
    embedding, theta, wide, x, activation, generator = case
    y = normal(generator, len(x), len(theta[-1][1]))
    old, new = (hessian(one, x, y, activation, loss) for one in (theta, wide))
    A, _, B = embedding.affine()
    scale = reach(embedding, A) * reach(embedding, B) * largest(old, new)
    assert_close(new @ A, B @ old, **tolerance(x.dtype, scale))


@settings(max_examples=50)
@given(embedded_networks(samples=40))
def test_representations_span_the_same(case):
    """001, Def. 4.2 (ii): in every layer the features and the constant span the same space of functions."""
    embedding, theta, wide, x, activation, _ = case
    for old, new in zip(features(theta, x, activation), features(wide, x, activation), strict=True):
        old, new = with_constant(old), with_constant(new)
        for inner, outer in ((old, new), (new, old)):
            left = inner - outer @ torch.linalg.lstsq(outer, inner, driver="gelsd").solution
            assert_close(left, torch.zeros_like(left), **tolerance(x.dtype, reach(embedding, old, new) * 1e2))


@pytest.mark.parametrize("seed", range(6))
def test_no_sign_of_hessian_eigenvalues_is_lost(seed):
    """001, Thm. 6.2, at any θ, by way of H(T(θ)) A = B H(θ): no zero is lost either."""
    generator = torch.Generator().manual_seed(seed)
    narrow = (1, 2, 2, 1)
    x, y, theta = normal(generator, 30, 1), normal(generator, 30, 1), random_theta(narrow, generator)
    index = [(0,), (0, 1, 1), (0, NULL, 1, 0), (0,)] if seed % 2 else [(0,), (1, 0, 0), (0, 1), (0,)]
    wide = random_embedding(index, generator, torch.tanh)(theta)
    old, new = (inertia(hessian(one, x, y, torch.tanh, squared_error)) for one in (theta, wide))
    assert all(after >= before for before, after in zip(old, new, strict=True)), (old, new)
    assert sum(new) > sum(old)


def test_how_many_negative_eigenvalues_a_split_adds_depends_on_the_neuron_and_the_share():
    generator = torch.Generator().manual_seed(1)
    narrow = (1, 2, 1)
    x, y, theta = normal(generator, 30, 1), normal(generator, 30, 1), random_theta(narrow, generator)
    before = inertia(hessian(theta, x, y, torch.tanh, squared_error))
    added = set()
    for neuron in (0, 1):
        for alpha in (0.5, 1.5):
            wide = splitting_embedding(narrow, 1, neuron, alpha)(theta)
            added.add(inertia(hessian(wide, x, y, torch.tanh, squared_error))[2] - before[2])
    assert len(added) > 1


# --- dimensions ---


@st.composite
def index_maps_with_networks(draw):
    narrow = draw(widths(hidden=2, size=2))
    return narrow, draw(index_maps(narrow)), torch.Generator().manual_seed(draw(seeds))


@settings(max_examples=40)
@given(index_maps_with_networks())
def test_the_family_has_the_predicted_dimension(case):
    """K + Σ K_l K_{l-1} (001, Section 6.1), for generic α and weights that do not vanish."""
    narrow, index, generator = case
    wide = [len(layer) for layer in index]
    found = measured_dimension(index, random_theta(narrow, generator), generator, torch.sigmoid)
    assert found == predicted_dimension(narrow, wide)


def test_vanishing_weights_cost_dimensions():
    generator = torch.Generator().manual_seed(0)
    (w1, b1), (w2, b2) = random_theta((1, 2, 1), generator)
    index = [(0,), (0, 1, 1), (0,)]
    assert measured_dimension(index, ((w1, b1), (w2, b2)), generator) == 1
    assert measured_dimension(index, ((w1, b1), (torch.tensor([[1.0, 0.0]]), b2)), generator) == 0


@settings(max_examples=40)
@given(st.data(), widths(), seeds)
def test_k_splittings_give_an_affine_space_of_dimension_k(data, narrow, seed):
    """004, Thm. 2 (proof: 002): {T^α(θ)} is θ_B + span(v_1, …, v_K), v_i = T ⋯ V_{l_i,s_i} ⋯ T(θ)."""
    generator = torch.Generator().manual_seed(seed)
    theta = random_theta(narrow, generator)
    layers = data.draw(st.lists(st.integers(1, len(narrow) - 2), min_size=1, max_size=4))
    neurons = [data.draw(st.integers(0, narrow[layer] - 1)) for layer in layers]  # originals: V at copies of α = 0 is 0

    def embedded(alpha):
        steps, now = [], narrow
        for layer, neuron, share in zip(layers, neurons, alpha, strict=True):
            steps.append(splitting_embedding(now, layer, neuron, share))
            now = steps[-1].wide
        return to_vector(compose(*steps)(theta))

    count = len(layers)
    units = torch.eye(count, dtype=torch.float64)
    corner = embedded([0.0] * count)
    directions = torch.stack([embedded(unit.tolist()) - corner for unit in units])
    assert torch.linalg.matrix_rank(directions, rtol=1e-9) == count
    # Splitting s again takes from what s has left: the products of α are inside the same space.
    point = embedded((alpha := normal(generator, count)).tolist()) - corner
    left = point - directions.T @ torch.linalg.lstsq(directions.T, point[:, None]).solution.flatten()
    assert_close(left, torch.zeros_like(left), **tolerance(left.dtype, largest(point) * largest(alpha) ** count))


# --- conditions: what is refused, and what the paper refuses without need ---


def pieces(embedding):
    return {
        "index": embedding.index,
        "alpha": list(embedding.alpha),
        "beta": list(embedding.beta),
        "effective_biases": list(embedding.effective_biases),
        "alpha_bias": list(embedding.alpha_bias),
        "activation": torch.sigmoid,
    }


INDEX = [(0, 1), (0, NULL, 0), (NULL, 0, 0), (0,)]


@pytest.fixture
def member():
    return pieces(random_embedding(INDEX, torch.Generator().manual_seed(0), torch.sigmoid))


def test_what_is_compatible_is_taken(member):
    assert compatible_embedding(**member).wide == (2, 3, 3, 1)


@pytest.mark.parametrize(
    ("what", "layer", "place", "message"),
    [
        ("alpha", 1, (2, 0), r"condition I \(forward\): into layer 2, neuron 2, copies of neuron 0"),
        ("alpha", 1, (0, 2), r"condition I \(forward\): into layer 2, neuron 0, copies of neuron 0: .* must be 0.0"),
        ("alpha", 1, (1, 1), r"condition I \(backward\): into layer 1, neuron 1, copies of neuron 0"),
        ("alpha", 0, (1, 1), r"condition I \(forward\): into layer 1, neuron 1, copies of neuron 1"),
        ("beta", 3, (0,), r"condition I \(output\): β of layer 3, neuron 0"),
        ("beta", 2, (1,), r"condition I \(backward\): into layer 1"),
        ("beta", 1, (1,), "beta must be 0 at null neurons: layer 1, neuron 1"),
        ("effective_biases", 1, (0,), "effective_biases must be 0 at others: layer 1, neuron 0"),
        ("alpha_bias", 1, (1,), "condition II: into layer 2, neuron 1"),
        ("alpha_bias", 1, (0,), "condition II: into layer 2, neuron 0"),
        ("effective_biases", 2, (0,), "condition II: into layer 2, neuron 0"),
    ],
)
def test_the_neuron_and_the_condition_that_fail_are_named(member, what, layer, place, message):
    changed = member[what][layer].clone()
    changed[place] += 0.5
    member[what][layer] = changed
    with pytest.raises(InputError, match=message):
        compatible_embedding(**member)


def test_biases_at_effective_neurons_need_not_vanish():
    """Condition II as printed asks α_b = 0 at effective neurons; only its last line is needed, and gives the dimension.

    The member violates the printed line, and maps gradients all the same.
    """
    generator = torch.Generator().manual_seed(0)
    embedding = random_embedding(INDEX, generator, torch.sigmoid)
    effective = torch.tensor([s != NULL for s in INDEX[2]])
    assert embedding.alpha_bias[1][effective].abs().min() > 1e-2
    theta = random_theta((2, 1, 1, 1), generator)
    x, y = normal(generator, 20, 2), normal(generator, 20, 1)
    wide = embedding(theta)
    assert_close(network(wide, x, torch.sigmoid), network(theta, x, torch.sigmoid))
    old, new = (gradient(one, x, y, torch.sigmoid, squared_error) for one in (theta, wide))
    assert_close(new, embedding.affine().B @ old)


def test_forward_conditions_alone_do_not_preserve_criticality():
    """Copies whose shares differ between the neurons that read them keep the output, not the gradient."""
    generator = torch.Generator().manual_seed(0)
    index = [(0, 1), (0, 0), (0, 1), (0,)]
    member = pieces(random_embedding(index, generator))
    member["alpha"][1] = torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=torch.float64)
    with pytest.raises(InputError, match=r"condition I \(backward\): into layer 1"):
        compatible_embedding(**member)
    theta = random_theta((2, 1, 2, 1), generator)
    unchecked = Embedding(
        tuple(index),
        tuple(member["alpha"]),
        tuple(member["alpha_bias"]),
        tuple(member["beta"]),
        *(tuple(member["effective_biases"]),) * 2,
    )
    wide = unchecked(theta)
    x = normal(generator, 40, 2)
    assert_close(network(wide, x, torch.tanh), network(theta, x, torch.tanh))
    residual = critical_residual(lambda one: network(one, x, torch.tanh), theta, generator)
    y = network(theta, x, torch.tanh) - 100 * residual
    assert gradient(theta, x, y, torch.tanh, squared_error).abs().max() < 1e-10
    assert gradient(wide, x, y, torch.tanh, squared_error).abs().max() > 1e-3
