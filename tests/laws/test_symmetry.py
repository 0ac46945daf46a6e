"""Laws of the trivial critical transforms (002, A.1) and of splitting channels (004, Section 6)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_embed.errors import InputError
from lightning_embed.operators import (
    group_mix,
    merge_channels,
    network,
    permute_neurons,
    rescale_neuron,
    split_channel,
    to_vector,
)
from tests.laws import networks
from tests.tolerances import tolerance

HOMOGENEOUS = {
    "relu": (F.relu, 1.0),
    "leaky_relu": (F.leaky_relu, 1.0),
    "squared relu": (lambda x: F.relu(x).square(), 2.0),
    "root of relu": (lambda x: F.relu(x).clamp(min=1e-300).sqrt(), 0.5),
    "sign": (torch.sign, 0.0),
}


def with_layer(theta, layer, w_in, b_in, w_out):
    return (*theta[: layer - 1], (w_in, b_in), (w_out, theta[layer][1]), *theta[layer + 1 :])


@settings(max_examples=50)
@given(st.data(), networks.widths(), networks.seeds)
def test_permuting_neurons_changes_nothing_but_their_order(data, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    theta, x = networks.random_theta(shape, generator), networks.normal(generator, 9, shape[0])
    layer = data.draw(st.integers(1, len(shape) - 2))
    order = data.draw(st.permutations(range(shape[layer])))
    moved = with_layer(theta, layer, *permute_neurons(*theta[layer - 1], theta[layer][0], order))
    assert_close(network(moved, x, torch.tanh), network(theta, x, torch.tanh), **tolerance(x.dtype))
    inverse = [order.index(neuron) for neuron in range(len(order))]
    back = with_layer(moved, layer, *permute_neurons(*moved[layer - 1], moved[layer][0], inverse))
    assert torch.equal(to_vector(back), to_vector(theta))


def test_permuting_neurons_keeps_the_spectrum():
    generator = torch.Generator().manual_seed(0)
    theta, x, y = (
        networks.random_theta((2, 3, 2, 1), generator),
        networks.normal(generator, 20, 2),
        networks.normal(generator, 20, 1),
    )
    moved = with_layer(theta, 1, *permute_neurons(*theta[0], theta[1][0], [2, 0, 1]))
    old, new = (
        torch.linalg.eigvalsh(networks.hessian(one, x, y, torch.tanh, networks.squared_error)) for one in (theta, moved)
    )
    assert_close(new, old, **tolerance(x.dtype, networks.largest(old)))


@given(st.data(), networks.widths(), networks.seeds, st.sampled_from(sorted(HOMOGENEOUS)), st.floats(1e-2, 1e2))
def test_rescaling_preserves_the_output(data, shape, seed, name, beta):
    activation, degree = HOMOGENEOUS[name]
    generator = torch.Generator().manual_seed(seed)
    theta, x = networks.random_theta(shape, generator), networks.normal(generator, 9, shape[0])
    layer = data.draw(st.integers(1, len(shape) - 2))
    neuron = data.draw(st.integers(0, shape[layer] - 1))
    scaled = rescale_neuron(*theta[layer - 1], theta[layer][0], neuron, beta, degree=degree)
    moved = with_layer(theta, layer, *scaled)
    old = network(theta, x, activation)
    assert_close(
        network(moved, x, activation),
        old,
        **tolerance(x.dtype, networks.largest(old) * networks.largest(to_vector(theta))),
    )
    back = rescale_neuron(*scaled, neuron, 1 / beta, degree=degree)
    assert_close(back[2], theta[layer][0], **tolerance(x.dtype))
    assert_close(back[0], theta[layer - 1][0], **tolerance(x.dtype))


def test_rescaling_preserves_criticality_and_its_orbit_is_a_zero_of_the_hessian():
    generator = torch.Generator().manual_seed(0)
    theta, x = networks.random_theta((2, 3, 1), generator), networks.normal(generator, 60, 2)
    residual = networks.critical_residual(lambda one: network(one, x, F.leaky_relu), theta, generator)
    y = network(theta, x, F.leaky_relu) - residual
    moved = with_layer(theta, 1, *rescale_neuron(*theta[0], theta[1][0], 1, 7.0))
    for one in (theta, moved):
        assert networks.gradient(one, x, y, F.leaky_relu, networks.squared_error).abs().max() < 1e-12
    # d/dβ at β = 1: (w, b, a) ↦ (w, b, -a) of the neuron.
    direction = with_layer(
        tuple((0 * w, 0 * b) for w, b in theta),
        1,
        theta[0][0] * torch.tensor([[0.0], [1.0], [0.0]]),
        theta[0][1] * torch.tensor([0.0, 1.0, 0.0]),
        theta[1][0] * torch.tensor([[0.0, -1.0, 0.0]]),
    )
    curved = networks.hessian(theta, x, y, F.leaky_relu, networks.squared_error) @ to_vector(direction).double()
    assert curved.abs().max() < 1e-12
    assert to_vector(direction).norm() > 0.1


def test_a_negative_factor_is_refused_because_it_changes_the_output():
    """002, A.1 prints β ≠ 0."""
    generator = torch.Generator().manual_seed(0)
    (w_in, b_in), (w_out, b_out) = networks.random_theta((2, 1, 1), generator)
    x = networks.normal(generator, 20, 2)
    flipped = ((-w_in, -b_in), (-w_out, b_out))
    assert (network(flipped, x, F.relu) - network(((w_in, b_in), (w_out, b_out)), x, F.relu)).abs().max() > 0.1
    for beta in (-1.0, 0.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="beta must be positive"):
            rescale_neuron(w_in, b_in, w_out, 0, beta)


# --- channels ---


@st.composite
def convolutions(draw):
    """(w_in, b_in, w_out, x, dimensions) of two convolutions in one or two dimensions."""
    dims = draw(st.integers(1, 2))
    generator = torch.Generator().manual_seed(draw(networks.seeds))
    before, channels, after = (draw(st.integers(1, 3)) for _ in range(3))
    first, second = ([draw(st.integers(1, 3)) for _ in range(dims)] for _ in range(2))
    w_in, w_out = (
        networks.normal(generator, channels, before, *first),
        networks.normal(generator, after, channels, *second),
    )
    b_in = networks.normal(generator, channels) if draw(st.booleans()) else None
    return w_in, b_in, w_out, networks.normal(generator, 2, before, *[9] * dims), dims


def run(x, w_in, b_in, w_out, dims):
    convolve, pool = ((F.conv1d, F.avg_pool1d), (F.conv2d, F.max_pool2d))[dims - 1]
    hidden = pool(torch.tanh(convolve(x, w_in, b_in, padding=1)), 2)
    return convolve(hidden, w_out, padding=1)


@settings(max_examples=30)
@given(convolutions(), st.data())
def test_splitting_a_channel_preserves_the_output_and_merging_undoes_it(case, data):
    w_in, b_in, w_out, x, dims = case
    channel = data.draw(st.integers(0, len(w_in) - 1))
    alpha = data.draw(st.floats(-5, 5))
    wide = split_channel(w_in, b_in, w_out, channel, [1 - alpha, alpha / 2, alpha / 2])
    assert len(wide[0]) == len(w_in) + 2
    old = run(x, w_in, b_in, w_out, dims)
    assert_close(run(x, *wide, dims), old, **tolerance(x.dtype, 10 * networks.largest(wide[2]) * w_out[0].numel()))
    kept, mix = group_mix([[channel, len(w_in), len(w_in) + 1]], len(w_in) + 2)
    narrow = merge_channels(*wide, kept, mix)
    assert torch.equal(narrow[0], w_in)
    assert (narrow[1] is None) if b_in is None else torch.equal(narrow[1], b_in)
    assert_close(narrow[2], w_out, **tolerance(x.dtype, 10 * networks.largest(w_out)))


def test_splitting_a_channel_preserves_criticality():
    generator = torch.Generator().manual_seed(0)
    w_in, b_in, w_out = (
        networks.normal(generator, 2, 1, 3, 3),
        networks.normal(generator, 2),
        networks.normal(generator, 1, 2, 2, 2),
    )
    x = networks.normal(generator, 3, 1, 9, 9)

    def flat(*kernels):
        return run(x, *kernels, 2).flatten()

    jacobian = torch.autograd.functional.jacobian(flat, (w_in, b_in, w_out))
    columns = torch.cat([part.flatten(1) for part in jacobian], dim=1)
    basis = torch.linalg.qr(columns).Q
    residual = networks.normal(generator, len(columns))
    for _ in range(2):
        residual = residual - basis @ (basis.T @ residual)
    wide = split_channel(w_in, b_in, w_out, 1, -0.7)
    for kernels in ((w_in, b_in, w_out), wide):
        leaves = [one.detach().requires_grad_() for one in kernels]
        for grad in torch.autograd.grad(flat(*leaves) @ residual, leaves):
            assert grad.abs().max() < 1e-11


def test_a_linear_that_reads_channels_flattened():
    generator = torch.Generator().manual_seed(0)
    w_in, weight, x = (
        networks.normal(generator, 2, 1, 3),
        networks.normal(generator, 4, 2 * 7),
        networks.normal(generator, 5, 1, 9),
    )
    wide_in, _, wide_out = split_channel(w_in, None, weight.reshape(4, 2, 7), 0, 0.3)
    old = F.conv1d(x, w_in).relu().flatten(1) @ weight.T
    assert_close(F.conv1d(x, wide_in).relu().flatten(1) @ wide_out.flatten(1).T, old)


def test_a_matrix_is_no_kernel():
    with pytest.raises(InputError, match=r"kernels must have shape \(out, in, \*kernel\), not \(2, 3\)"):
        split_channel(torch.ones(2, 3), None, torch.ones(1, 2, 3), 0, 0.5)
    with pytest.raises(InputError, match=r"kernels must have shape"):
        split_channel(torch.ones(2, 3, 1), None, torch.ones(1, 2), 0, 0.5)
