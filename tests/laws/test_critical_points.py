"""Laws of critical points and their Hessians: what lifting, splitting and embedding do to the inertia (000, 001, 004)."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lightning_embed.analysis import (
    Risk,
    escape,
    find_critical_point,
    hessian,
    inertia,
    is_strict_saddle,
    may_be_truly_bad,
    spectrum,
)
from lightning_embed.errors import InputError
from lightning_embed.operators import (
    affine_segments,
    features,
    lift,
    network,
    parameter_count,
    split_neuron,
    splitting_embedding,
    to_vector,
    widths_of,
)
from lightning_embed.surgery import mlp, theta_of
from tests.laws.networks import critical_residual, largest, normal, random_theta, seeds, widths
from tests.tolerances import tolerance

PIECEWISE = [nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU(), nn.SELU(), nn.Hardtanh()]
SMOOTH = [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.Softplus()]
LINE = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]


def quartic(f, y):
    return (f - y).pow(4).mean()


def cube_root(r):
    return r.sign() * r.abs() ** (1 / 3)


LOSSES = {"mse": (F.mse_loss, lambda r: r), "quartic": (quartic, cube_root)}  # with the f - y of a given slope
losses = st.sampled_from(sorted(LOSSES)).map(LOSSES.__getitem__)


def made_critical(theta, x, activation, generator, loss, size=1.0):
    """Targets for which θ is a critical point: the slopes r of the loss satisfy Jᵀ r = 0 (no polishing needed)."""
    residual = critical_residual(lambda one: network(one, x, activation), theta, generator)
    return network(theta, x, activation) - loss[1](size * residual)


def counts(theta, activation, loss, data):
    return inertia(spectrum(hessian(mlp(theta, activation), loss, data).matrix)).counts


@st.composite
def liftings(draw, samples=40):
    """(θ, deep θ, x, activation, generator) by one or two layers, on exact segments, as wide as needed or wider."""
    activation = draw(st.sampled_from(PIECEWISE))
    generator = torch.Generator().manual_seed(draw(seeds))
    narrow = draw(widths(hidden=2, size=2))
    theta, x = random_theta(narrow, generator), normal(generator, samples, narrow[0])
    deep = theta
    for _ in range(draw(st.integers(1, 2))):
        after = draw(st.integers(0, len(deep) - 1))
        segment = draw(st.sampled_from(affine_segments(activation)))
        width = min(deep[after][0].shape) + draw(st.integers(0, 1))
        deep = lift(deep, after, x, activation, segment, width=width)
    return theta, deep, x, activation, generator


@settings(max_examples=40)
@given(liftings(), losses)
def test_lifting_adds_exactly_the_new_parameters_as_zeros(case, loss):
    """000, Prop. 4.3 and Cor. 4.1, at critical points and with the full-rank factors of Lemma A.1."""
    theta, deep, x, activation, generator = case
    data = x, made_critical(theta, x, activation, generator, loss)
    positive, zero, negative = counts(theta, activation, loss[0], data)
    added = parameter_count(widths_of(deep)) - parameter_count(widths_of(theta))
    assert counts(deep, activation, loss[0], data) == (positive, zero + added, negative)
