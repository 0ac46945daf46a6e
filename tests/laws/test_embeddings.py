"""Laws of the embeddings in width: output, representation, gradient and Hessian; dimensions (001, 002, 004)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_embed.operators import (
    NULL,
    Embedding,
    compose,
    features,
    global_null,
    global_splitting,
    network,
    null_embedding,
    random_embedding,
    splitting_embedding,
    to_vector,
)
from tests.laws.networks import (
    gradient,
    hessian,
    index_maps,
    largest,
    losses,
    normal,
    random_theta,
    seeds,
    smooth,
    widths,
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


@given(embedded_networks())
def test_the_affine_form_is_the_embedding(case):
    embedding, theta, wide, _, _, _ = case
    A, c, B = embedding.affine()
    assert_close(A @ to_vector(theta) + c, to_vector(wide), **tolerance(A.dtype, reach(embedding, A, c)))
    assert_close(A.T @ B, torch.eye(A.shape[1], dtype=A.dtype), **tolerance(A.dtype, largest(A) * largest(B)))


@given(embedded_networks(), losses)
def test_gradients_are_mapped_by_b(case, loss):
    """∇R(T(θ)) = B ∇R(θ) at every θ, so critical points are mapped to critical points (001, Thms. 4.1-5.1)."""
    embedding, theta, wide, x, activation, generator = case
    y = normal(generator, len(x), len(theta[-1][1]))
    old, new = (gradient(one, x, y, activation, loss) for one in (theta, wide))
    B = embedding.affine().B
    assert_close(new, B @ old, **tolerance(x.dtype, reach(embedding, B) * largest(old, new)))


@settings(max_examples=40)
@given(embedded_networks(samples=5, hidden=2, size=2), losses)
def test_hessians_are_intertwined(case, loss):
    """H(T(θ)) A = B H(θ) at every θ, whence 001, Thm. 6.2 for general compatible embeddings."""
    embedding, theta, wide, x, activation, generator = case
    y = normal(generator, len(x), len(theta[-1][1]))
    old, new = (hessian(one, x, y, activation, loss) for one in (theta, wide))
    A, _, B = embedding.affine()
    scale = reach(embedding, A) * reach(embedding, B) * largest(old, new)
    assert_close(new @ A, B @ old, **tolerance(x.dtype, scale))
