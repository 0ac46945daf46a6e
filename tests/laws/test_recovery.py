"""Our merges recover the narrow or shallow network from the weights and the data alone, up to permutation and sign."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import lightning_embed as le
from lightning_embed.operators import (
    affine_segments,
    drop_null_neurons,
    features,
    group_mix,
    lift,
    merge_neurons,
    network,
    permute_neurons,
    random_embedding,
    to_vector,
    widths_of,
)
from lightning_embed.surgery import mlp, theta_of
from tests.laws.networks import index_maps, largest, normal, random_theta, seeds, smooth, widths

BOUND = 8.0  # on α: the noise of copies that cancel grows with it


def with_layers(theta, layer, w_in, b_in, w_out, b_out=None):
    """θ with other parameters into and out of hidden layer `layer`."""
    rest = theta[layer][1] if b_out is None else b_out
    return (*theta[: layer - 1], (w_in, b_in), (w_out, rest), *theta[layer + 1 :])


def recovered(theta, x, activation):
    """Drop null neurons and merge neurons of equal features, layer after layer, by the operators."""
    for layer in range(1, len(theta)):
        found = features(theta, x, activation)[layer]
        null = [j for j in range(found.shape[1]) if found[:, j].std() < 1e-9 * largest(found)]
        (w_in, b_in), (w_out, b_out) = theta[layer - 1], theta[layer]
        theta = with_layers(theta, layer, *drop_null_neurons(w_in, b_in, w_out, b_out, null, found[0, null]))
        found = features(theta, x, activation)[layer]
        groups, seen = [], set()
        for j in range(found.shape[1]):
            group = [k for k in range(j, found.shape[1]) if (found[:, k] - found[:, j]).abs().max() < 1e-8]
            groups += [group] if j not in seen and len(group) > 1 else []
            seen |= set(group)
        kept, mix = group_mix(groups, found.shape[1])
        (w_in, b_in), (w_out, b_out) = theta[layer - 1], theta[layer]
        shift = torch.zeros(found.shape[1], dtype=torch.float64)
        theta = with_layers(theta, layer, *merge_neurons(w_in, b_in, w_out, b_out, kept, mix, shift))
    return theta


def aligned(theta, like, *, odd=False):
    """The equivalent of θ that is nearest to another: neurons permuted, and with `odd` their signs flipped."""
    for layer in range(1, len(theta)):
        (w_in, b_in), (w_out, _) = theta[layer - 1], theta[layer]
        rows = torch.cat([w_in, b_in[:, None]], dim=1)
        goal = torch.cat([like[layer - 1][0], like[layer - 1][1][:, None]], dim=1)
        distance = torch.cdist(goal, rows)
        if odd:
            distance = torch.minimum(distance, torch.cdist(goal, -rows))
        order = min(
            itertools.permutations(range(len(rows))), key=lambda one: float(distance[range(len(rows)), one].sum())
        )
        w_in, b_in, w_out = permute_neurons(w_in, b_in, w_out, order)
        if odd:
            sign = torch.sign((goal * torch.cat([w_in, b_in[:, None]], dim=1)).sum(1))
            w_in, b_in, w_out = sign[:, None] * w_in, sign * b_in, sign * w_out
        theta = with_layers(theta, layer, w_in, b_in, w_out)
    return theta


def irreducible(theta, x, activation):
    """Whether no neuron is (nearly) constant, a copy, or an affine function of the others on the data."""
    for found in features(theta, x, activation)[1:-1]:
        centred = found - found.mean(0)
        if torch.linalg.svdvals(centred / centred.norm(dim=0).clamp(min=1e-3))[-1] < 1e-2:
            return False
    return all(float(weight.norm(dim=0).min()) > 0.1 for weight, _ in theta[1:])


def irreducible_network(shape, generator, activation, samples=400):
    """(θ, x), drawn until θ is irreducible on x."""
    while True:
        theta, x = random_theta(shape, generator), 2 * normal(generator, samples, shape[0])
        if irreducible(theta, x, activation):
            return theta, x


def bounded_embedding(index, generator, activation=None):
    while True:
        embedding = random_embedding(index, generator, activation)
        if largest(*embedding.alpha) < BOUND:
            return embedding


@settings(max_examples=40)
@given(widths(), st.data(), smooth, seeds)
def test_operators_recover_the_narrow_network(narrow, data, activation, seed):
    generator = torch.Generator().manual_seed(seed)
    theta, x = random_theta(narrow, generator), 2 * normal(generator, 100, narrow[0])
    embedding = random_embedding(data.draw(index_maps(narrow)), generator, activation)
    assume(irreducible(theta, x, activation) and largest(*embedding.alpha) < BOUND)
    found = recovered(embedding(theta), x, activation)
    assert widths_of(found) == narrow
    assert_close(to_vector(aligned(found, theta)), to_vector(theta), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The correlation of:lightning_embed.statistics.PrecisionWarning")  # of null neurons
@pytest.mark.parametrize("seed", range(3))
def test_prune_recovers_the_narrow_network(seed):
    """Any compatible embedding of two hidden layers; tanh is odd, so the signs of neurons are free."""
    generator = torch.Generator().manual_seed(seed)
    narrow, index = (2, 3, 2, 2), [(0, 1), (2, 0, 0, 1, le.operators.NULL, 1), (1, 0, le.operators.NULL, 0, 1), (0, 1)]
    theta, x = irreducible_network(narrow, generator, torch.tanh)
    embedding = bounded_embedding(index, generator, torch.tanh)
    result = le.prune(
        mlp(embedding(theta), nn.Tanh()),
        x,
        criteria=le.Criteria(linearization=None, condensation=0.9999, span=1e-5),
        tolerance=le.Tolerance(change=1e-3),
    )
    found = theta_of(result.model)
    assert widths_of(found) == narrow
    assert_close(network(found, x, torch.tanh), network(theta, x, torch.tanh), rtol=1e-4, atol=1e-4)
    assert_close(to_vector(aligned(found, theta, odd=True)), to_vector(theta), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(2))
def test_a_plan_recovers_the_narrow_network_without_a_check(seed):
    generator = torch.Generator().manual_seed(seed)
    narrow = (2, 3, 1)
    theta, x = irreducible_network(narrow, generator, torch.tanh)
    wide = mlp(bounded_embedding([(0, 1), (2, 1, 1, 0, 0, 0), (0,)], generator)(theta), nn.Tanh())
    le.apply(wide, le.propose(wide, x, criteria=le.Criteria(linearization=None, condensation=0.9999, span=1e-5)))
    found = theta_of(wide)
    assert widths_of(found) == narrow
    assert_close(to_vector(aligned(found, theta, odd=True)), to_vector(theta), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("activation", "after"), [(nn.LeakyReLU(0.1), (2, 0, 3)), (nn.ELU(), (1, 1)), (nn.ELU(), (0,))], ids=str
)
def test_prune_recovers_the_shallow_network(activation, after):
    generator = torch.Generator().manual_seed(len(after))
    theta, x = irreducible_network((2, 4, 3, 2), generator, activation)
    deep = theta
    for layer in after:
        deep = lift(deep, layer, x, activation, affine_segments(activation)[0])
    result = le.prune(
        mlp(deep, activation),
        x,
        criteria=le.Criteria(linearization=0.99999, condensation=None, span=None),
        tolerance=le.Tolerance(change=1e-6),
    )
    found = theta_of(result.model)
    assert widths_of(found) == widths_of(theta)
    assert_close(to_vector(found), to_vector(theta), rtol=1e-8, atol=1e-8)


def test_what_is_reducible_is_recovered_smaller():
    """A neuron that the narrow network itself could spare goes too: the minimal network is what is found."""
    generator = torch.Generator().manual_seed(0)
    (w1, b1), (w2, b2) = random_theta((2, 3, 1), generator)
    theta = ((w1[[0, 1, 1]], b1[[0, 1, 1]]), (w2, b2))
    x = normal(generator, 100, 2)
    assert not irreducible(theta, x, torch.tanh)
    embedding = random_embedding([(0, 1), (0, 1, 2, 2), (0,)], generator)
    assert widths_of(recovered(embedding(theta), x, torch.tanh)) == (2, 2, 1)


def test_large_shares_drown_the_network_in_rounding():
    """Why α must be bounded: copies with shares ±1e12 of a float64 network leave only four digits of the output."""
    generator = torch.Generator().manual_seed(0)
    theta, x = random_theta((2, 3, 1), generator), normal(generator, 100, 2)
    errors = []
    for alpha in (1.0, 1e12):
        wide = le.operators.splitting_embedding((2, 3, 1), 1, 0, alpha)(theta)
        errors.append(float((network(wide, x, F.gelu) - network(theta, x, F.gelu)).abs().max()))
    assert errors[0] < 1e-14
    assert errors[1] > 1e-6
