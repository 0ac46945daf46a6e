"""Laws of the operators in float64: round trips, preserved outputs, preserved criticality."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_embed.operators import (
    add_null_neurons,
    drop_null_neurons,
    group_mix,
    lift_layer,
    merge_layers,
    merge_neurons,
    split_neuron,
)
from tests.oracles import layer_output, merged_affine, one_step_splitting
from tests.tolerances import tolerance

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,  # not zero at zero
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
}


class Affine(NamedTuple):
    """An activation with the open interval on which it is affine."""

    activation: object
    segment: tuple[float, float]
    slope: float
    intercept: float

    @property
    def where(self):
        return {"segment": self.segment, "slope": self.slope, "intercept": self.intercept}


SEGMENTS = {
    "relu": Affine(F.relu, (0.0, math.inf), 1.0, 0.0),
    "leaky_relu": Affine(F.leaky_relu, (0.0, math.inf), 1.0, 0.0),
    "leaky_relu_below": Affine(F.leaky_relu, (-math.inf, 0.0), 0.01, 0.0),
    "hardtanh": Affine(F.hardtanh, (-1.0, 1.0), 1.0, 0.0),
    "hardsigmoid": Affine(F.hardsigmoid, (-3.0, 3.0), 1 / 6, 0.5),
    "abs_below": Affine(torch.abs, (-math.inf, 0.0), -1.0, 0.0),  # λ = -1 would cancel the skip
    "identity": Affine(lambda x: x, (-math.inf, math.inf), 1.0, 0.0),
}
activations = st.sampled_from(sorted(ACTIVATIONS)).map(ACTIVATIONS.__getitem__)
segments = st.sampled_from(sorted(SEGMENTS)).map(SEGMENTS.__getitem__)
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**31 - 1)
scales = st.sampled_from([1e-2, 1.0, 30.0])
shares = st.floats(-1e4, 1e4)
share_lists = st.lists(shares, min_size=1, max_size=4).map(lambda given: [*given, 1 - math.fsum(given)])


@st.composite
def layers(draw):
    """A hidden layer (w_in, b_in, w_out, b_out) with inputs, biases present or not."""
    fan_in, width, fan_out = draw(sizes), draw(sizes), draw(sizes)
    generator = torch.Generator().manual_seed(draw(seeds))

    def normal(*shape):
        return scale * torch.randn(shape, dtype=torch.float64, generator=generator)

    scale = draw(scales)
    w_in, w_out = normal(width, fan_in), normal(fan_out, width)
    b_in = normal(width) if draw(st.booleans()) else None
    b_out = normal(fan_out) if draw(st.booleans()) else None
    x = torch.randn(7, fan_in, dtype=torch.float64, generator=generator)
    return (w_in, b_in, w_out, b_out), x


def same(actual, expected, scale=1.0):
    """Every tensor of one layer equals that of the other; no bias equals a bias of zeros."""
    for left, right in zip(actual, expected, strict=True):
        if left is None or right is None:
            present = left if right is None else right
            if present is not None:
                assert_close(present, torch.zeros_like(present), **tolerance(present.dtype, scale))
        else:
            assert_close(left, right, **tolerance(right.dtype, scale))


def largest(*tensors):
    return max(float(tensor.abs().max()) for tensor in tensors if tensor is not None)


# --- splitting ---


@given(layers(), st.data(), st.one_of(shares, share_lists))
def test_merging_undoes_splitting(layer, data, alpha):
    (w_in, b_in, w_out, b_out), _ = layer
    width = len(w_in)
    neuron = data.draw(st.integers(0, width - 1))
    wide = split_neuron(w_in, b_in, w_out, neuron, alpha)
    new_width = len(wide[0])
    copies = [neuron, *range(width, new_width)]
    kept, mix = group_mix([copies], new_width)
    narrow = merge_neurons(*wide, b_out, kept, mix, torch.zeros(new_width, dtype=torch.float64))
    size = max(abs(share) for share in (alpha if isinstance(alpha, list) else [alpha, 1 - alpha]))
    same(narrow, (w_in, b_in, w_out, b_out), scale=largest(w_out) * size)
    assert (narrow[1] is None) == (b_in is None)
    assert (narrow[3] is None) == (b_out is None)


@given(layers(), st.data(), st.one_of(shares, share_lists), activations)
def test_splitting_preserves_the_output(layer, data, alpha, activation):
    (w_in, b_in, w_out, b_out), x = layer
    neuron = data.draw(st.integers(0, len(w_in) - 1))
    before = layer_output(x, w_in, b_in, w_out, b_out, activation)
    wide = split_neuron(w_in, b_in, w_out, neuron, alpha)
    after = layer_output(x, *wide, b_out, activation)
    features = activation(x @ w_in.T + (0 if b_in is None else b_in))
    assert_close(after, before, **tolerance(x.dtype, largest(wide[2]) * max(1.0, largest(features))))


@given(layers(), st.data(), shares)
def test_splitting_is_the_printed_embedding(layer, data, alpha):
    (w_in, b_in, w_out, _), _ = layer
    b_in = torch.zeros(len(w_in), dtype=w_in.dtype) if b_in is None else b_in
    neuron = data.draw(st.integers(0, len(w_in) - 1))
    same(
        split_neuron(w_in, b_in, w_out, neuron, alpha),
        one_step_splitting(w_in, b_in, w_out, neuron, alpha),
        scale=abs(alpha) * largest(w_out),
    )


@given(layers(), st.sampled_from(["odd", "homogeneous"]), seeds)
def test_merging_with_ratios_preserves_the_output(layer, kind, seed):
    (w_in, b_in, w_out, b_out), x = layer
    generator = torch.Generator().manual_seed(seed)
    width = len(w_in)
    ratio = torch.rand(2 * width, dtype=torch.float64, generator=generator) + 0.5
    activation = F.relu
    if kind == "odd":
        ratio, activation = -torch.ones_like(ratio), torch.tanh
    ratio[:width] = 1
    # The second half of the layer repeats the first, up to the ratio.
    wide_in = ratio[:, None] * torch.cat([w_in, w_in])
    wide_bias = None if b_in is None else ratio * torch.cat([b_in, b_in])
    wide_out = torch.cat([w_out, w_out.roll(1, dims=1)], dim=1)
    kept, mix = group_mix([[neuron, neuron + width] for neuron in range(width)], 2 * width, ratio)
    narrow = merge_neurons(wide_in, wide_bias, wide_out, b_out, kept, mix, torch.zeros_like(ratio))
    before = layer_output(x, wide_in, wide_bias, wide_out, b_out, activation)
    features = activation(x @ w_in.T + (0 if b_in is None else b_in))
    scale = largest(w_out) * max(1.0, largest(features))
    assert kept == list(range(width))
    assert_close(layer_output(x, *narrow, activation), before, **tolerance(x.dtype, scale))


@given(layers(), st.data(), activations)
def test_merging_follows_mix_and_shift(layer, data, activation):
    """Features that are an affine function of the kept ones are given up without a trace."""
    (w_in, b_in, w_out, b_out), x = layer
    width = len(w_in)
    kept = sorted(data.draw(st.sets(st.integers(0, width - 1), min_size=1)))
    generator = torch.Generator().manual_seed(data.draw(seeds))
    mix = torch.randn(width, len(kept), dtype=torch.float64, generator=generator)
    shift = torch.randn(width, dtype=torch.float64, generator=generator)
    narrow = merge_neurons(w_in, b_in, w_out, b_out, kept, mix, shift)
    features = activation(x @ w_in.T + (0 if b_in is None else b_in))
    wanted = (features[:, kept] @ mix.T + shift) @ w_out.T + (0 if b_out is None else b_out)
    scale = largest(w_out) * largest(mix, shift) * max(1.0, largest(features))
    assert_close(layer_output(x, *narrow, activation), wanted, **tolerance(x.dtype, scale))


# --- null neurons ---


@st.composite
def null_neurons(draw, layer, activation):
    """Arguments of `add_null_neurons`, each new neuron with at most one kind of weights."""
    w_in, b_in, w_out, _ = layer
    count = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(seeds))
    constant = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    bias = torch.randn(count, dtype=torch.float64, generator=generator)
    if b_in is None:
        bias = torch.zeros_like(bias)
    rows = torch.randn(count, w_in.shape[1], dtype=torch.float64, generator=generator)
    columns = torch.randn(len(w_out), count, dtype=torch.float64, generator=generator)
    return {
        "count": count,
        "bias": None if b_in is None else bias,
        "input_weights": rows * ~constant[:, None],
        "output_weights": columns * constant,
        "values": activation(bias),
    }


@given(st.data(), layers(), activations)
def test_dropping_undoes_adding_null_neurons(data, layer, activation):
    layer, _ = layer
    new = data.draw(null_neurons(layer, activation))
    width, count = len(layer[0]), new["count"]
    wide = add_null_neurons(*layer, **new)
    assert len(wide[0]) == width + count
    narrow = drop_null_neurons(*wide, range(width, width + count), new["values"])
    same(narrow, layer, scale=max(1.0, largest(new["values"]) * largest(new["output_weights"])))


@given(st.data(), layers(), activations)
def test_null_neurons_preserve_the_output(data, layer, activation):
    layer, x = layer
    new = data.draw(null_neurons(layer, activation))
    before = layer_output(x, *layer, activation)
    after = layer_output(x, *add_null_neurons(*layer, **new), activation)
    features = activation(x @ layer[0].T + (0 if layer[1] is None else layer[1]))
    scale = 1.0 + largest(layer[2]) * largest(features) + largest(new["output_weights"])
    assert_close(after, before, **tolerance(x.dtype, scale))


@given(layers(), st.data(), activations)
def test_dropping_a_constant_neuron_anywhere_preserves_the_output(layer, data, activation):
    (w_in, b_in, w_out, b_out), x = layer
    dead = sorted(data.draw(st.sets(st.integers(0, len(w_in) - 1), max_size=len(w_in) - 1)))
    w_in[dead] = 0
    features = activation(x @ w_in.T + (0 if b_in is None else b_in))
    narrow = drop_null_neurons(w_in, b_in, w_out, b_out, dead, features[0, dead])
    before = layer_output(x, w_in, b_in, w_out, b_out, activation)
    scale = 1.0 + largest(w_out) * largest(features)
    assert_close(layer_output(x, *narrow, activation), before, **tolerance(x.dtype, scale))


# --- lifting ---


@st.composite
def linears(draw):
    """A Linear (w, b) with inputs of any mean and spread."""
    fan_in, fan_out = draw(sizes), draw(sizes)
    generator = torch.Generator().manual_seed(draw(seeds))
    w = draw(scales) * torch.randn(fan_out, fan_in, dtype=torch.float64, generator=generator)
    b = torch.randn(fan_out, dtype=torch.float64, generator=generator) if draw(st.booleans()) else None
    x = torch.randn(6, fan_in, dtype=torch.float64, generator=generator)
    return (
        w,
        b,
        draw(scales) * x * draw(st.sampled_from([0.0, 1.0])) + draw(st.sampled_from([-5.0, 0.0, 5.0])),
    )


def lifted(data, linear, affine, *, skip):
    """Lift with some width that is allowed; also the scale of the terms that cancel in its output."""
    w, b, x = linear
    fan_out, fan_in = w.shape
    width = None if skip else min(fan_in, fan_out) + data.draw(st.integers(0, 2))
    deep = lift_layer(w, b, x, **affine.where, width=width, skip=skip)
    post = affine.slope * (x @ deep[0].T + deep[1]) + affine.intercept
    return deep, max(1.0, largest(deep[2])) * max(1.0, largest(post, x, deep[1]))


@pytest.mark.parametrize("skip", [False, True])
@given(data=st.data(), linear=linears(), affine=segments)
def test_merging_undoes_lifting(data, linear, affine, skip):
    w, b, _ = linear
    deep, scale = lifted(data, linear, affine, skip=skip)
    ones = torch.ones(len(deep[0]), dtype=torch.float64)
    merged = merge_layers(*deep, affine.slope * ones, affine.intercept * ones, skip=skip)
    same(merged, (w, b), scale=scale)


@pytest.mark.parametrize("skip", [False, True])
@given(data=st.data(), linear=linears(), affine=segments)
def test_lifting_preserves_the_output_on_the_data(data, linear, affine, skip):
    w, b, x = linear
    (w1, b1, w2, b2), scale = lifted(data, linear, affine, skip=skip)
    pre = x @ w1.T + b1
    assert ((pre > affine.segment[0]) & (pre < affine.segment[1])).all()  # 000, Def. 4.2 (ii), padding included
    after = layer_output(x, w1, b1, w2, b2, affine.activation, skip=skip)
    assert_close(after, F.linear(x, w, b), **tolerance(x.dtype, scale))


@given(data=st.data(), linear=linears(), affine=segments)
def test_a_lifted_layer_has_a_factor_of_full_rank(data, linear, affine):
    """The condition under which lifting keeps the inertia."""
    w = linear[0]
    (w1, _, w2, _), _ = lifted(data, linear, affine, skip=False)
    fan_out, fan_in = w.shape
    if fan_out <= fan_in:
        assert torch.linalg.matrix_rank(w2) == fan_out
    else:
        assert torch.linalg.matrix_rank(w1) == fan_in


@pytest.mark.parametrize("skip", [False, True])
@given(layer=layers(), seed=seeds)
def test_merging_layers_is_the_composition(layer, seed, skip):
    (w1, b1, w2, b2), _ = layer
    generator = torch.Generator().manual_seed(seed)
    if skip:
        w1 = w1[:, :1] * torch.randn(1, len(w1), dtype=torch.float64, generator=generator)
    slope = torch.randn(len(w1), dtype=torch.float64, generator=generator)
    intercept = torch.randn(len(w1), dtype=torch.float64, generator=generator)
    merged = merge_layers(w1, b1, w2, b2, slope, intercept, skip=skip)
    scale = max(1.0, largest(w2)) * max(1.0, largest(w1, b1)) * largest(slope, intercept) * 10
    same(merged, merged_affine(w1, b1, w2, b2, slope, intercept, skip=skip), scale=scale)


# --- criticality: any θ is critical for targets y = f_θ - r with Jᵀ r = 0 ---


def gradient(network, parameters, residual):
    """The gradient Jᵀ r of the squared error whose residual is r, as one vector."""
    parameters = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    parts = torch.autograd.grad((network(*parameters) * residual).sum(), parameters)
    return torch.cat([part.flatten() for part in parts])


def critical_residual(network, parameters, generator):
    """A unit residual r with Jᵀ r = 0."""
    jacobian = torch.autograd.functional.jacobian(network, tuple(parameters))
    columns = torch.cat(
        [part.reshape(-1, parameter.numel()) for part, parameter in zip(jacobian, parameters, strict=True)], 1
    )
    residual = torch.randn(len(columns), dtype=torch.float64, generator=generator)
    basis = torch.linalg.svd(columns, full_matrices=False)[0]
    for _ in range(2):  # once more removes the rounding of the first projection
        residual = residual - basis @ (basis.T @ residual)
    return (residual / residual.norm())[:, None]


@pytest.fixture
def critical_point():
    """A tanh network of width 3 at a critical point: (generator, x, parameters, network, residual)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x = normal(40, 2)

    def network(w_in, b_in, w_out, b_out):
        return torch.tanh(x @ w_in.T + b_in) @ w_out.T + b_out

    parameters = normal(3, 2), normal(3), normal(1, 3), normal(1)
    residual = critical_residual(network, parameters, generator)
    assert gradient(network, parameters, residual).norm() < 1e-12
    return generator, x, parameters, network, residual


def test_splitting_preserves_criticality_and_merging_restores_it(critical_point):
    _, _, (w_in, b_in, w_out, b_out), network, residual = critical_point
    wide = split_neuron(w_in, b_in, w_out, 1, [0.5, -1.5, 2.0])
    assert gradient(network, (*wide, b_out), residual).norm() < 1e-12
    kept, mix = group_mix([[4, 1, 3]], 5)
    narrow = merge_neurons(*wide, b_out, kept, mix, torch.zeros(5, dtype=torch.float64))
    assert gradient(network, narrow, residual).norm() < 1e-12


def test_only_neurons_without_any_weights_preserve_criticality(critical_point):
    _, _, parameters, network, residual = critical_point
    one = torch.ones(1, dtype=torch.float64)
    null = add_null_neurons(*parameters, 2, bias=torch.tensor([0.3, -1.0]))
    assert gradient(network, null, residual).norm() < 1e-12
    constant = add_null_neurons(*parameters, 1, output_weights=one[:, None], values=0 * one)
    unread = add_null_neurons(*parameters, 1, input_weights=torch.ones(1, 2, dtype=torch.float64))
    assert gradient(network, constant, residual).norm() > 1e-3
    assert gradient(network, unread, residual).norm() > 1e-3


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", sorted(SEGMENTS))
def test_lifting_preserves_criticality(critical_point, name, skip):
    _, x, (w_in, b_in, w_out, b_out), _, residual = critical_point
    affine = SEGMENTS[name]
    deep = lift_layer(w_out, b_out, torch.tanh(x @ w_in.T + b_in), **affine.where, skip=skip)

    def lifted_network(w_in, b_in, w1, b1, w2, b2):
        hidden = torch.tanh(x @ w_in.T + b_in)
        return (affine.activation(hidden @ w1.T + b1) + (hidden if skip else 0)) @ w2.T + b2

    norm = gradient(lifted_network, (w_in, b_in, *deep), residual).norm()
    assert norm < 1e-10 * max(1.0, largest(*deep))
