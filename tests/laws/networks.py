"""Random networks, data and index mappings, and gradients and Hessians by autograd, for the laws."""

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_embed.operators import NULL, from_vector, network, parameter_count, to_vector, widths_of

SMOOTH = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,  # not zero at zero
    "gelu": F.gelu,
    "softplus": F.softplus,
}


def squared_error(output, y):
    return (output - y).square().sum(1)


def quartic_error(output, y):
    return (output - y).pow(4).sum(1)


def cross_entropy(output, y):
    return F.cross_entropy(output, y.argmax(1), reduction="none")


LOSSES = {"mse": squared_error, "quartic": quartic_error, "cross_entropy": cross_entropy}
smooth = st.sampled_from(sorted(SMOOTH)).map(SMOOTH.__getitem__)
losses = st.sampled_from(sorted(LOSSES)).map(LOSSES.__getitem__)
seeds = st.integers(0, 2**31 - 1)


def normal(generator, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def random_theta(widths, generator):
    return from_vector(normal(generator, parameter_count(widths)), widths)


@st.composite
def widths(draw, hidden=3, size=3):
    """Widths (m_0, …, m_L) with up to `hidden` hidden layers."""
    inner = draw(st.lists(st.integers(1, size), min_size=1, max_size=hidden))
    return (draw(st.integers(1, 2)), *inner, draw(st.integers(1, 2)))


@st.composite
def index_maps(draw, narrow, extra=2):
    """A total index mapping onto networks of these widths, neurons in any order."""
    hidden = []
    for width in narrow[1:-1]:
        added = draw(st.lists(st.integers(NULL, width - 1), max_size=extra))
        hidden.append(tuple(draw(st.permutations([*range(width), *added]))))
    return (tuple(range(narrow[0])), *hidden, tuple(range(narrow[-1])))


def risk(widths, x, y, activation, loss, skips=()):
    """R_S as a function of vec(θ)."""
    return lambda vector: loss(network(from_vector(vector, widths), x, activation, skips), y).mean()


def gradient(theta, x, y, activation, loss, skips=()):
    vector = to_vector(theta).detach().requires_grad_()
    return torch.autograd.grad(risk(widths_of(theta), x, y, activation, loss, skips)(vector), vector)[0]


def hessian(theta, x, y, activation, loss, skips=()):
    vector = to_vector(theta).detach()
    function = risk(widths_of(theta), x, y, activation, loss, skips)
    return torch.autograd.functional.hessian(function, vector, vectorize=True)


def largest(*tensors):
    return max([1.0, *(float(one.abs().max()) for one in tensors if one.numel())])


def rank_with_constant(features):
    return int(torch.linalg.matrix_rank(with_constant(features), rtol=1e-9))


def with_constant(features):
    return torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)


def critical_residual(run, theta, generator):
    """A unit residual r with Jᵀ r = 0: with the targets f_θ - r any θ is critical for the squared error."""
    shape = widths_of(theta)
    vector = to_vector(theta).detach()
    jacobian = torch.autograd.functional.jacobian(
        lambda one: run(from_vector(one, shape)).flatten(), vector, vectorize=True
    )
    basis = torch.linalg.svd(jacobian, full_matrices=False)
    basis = basis.U[:, 1e-12 * basis.S.max() < basis.S]
    residual = normal(generator, len(jacobian))
    for _ in range(2):  # once more removes the rounding of the first projection
        residual = residual - basis @ (basis.T @ residual)
    return (residual / residual.norm()).reshape(run(theta).shape)


def inertia(matrix):
    """Numbers of positive, zero and negative eigenvalues; a gap of a hundred must tell the zeros from the others."""
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    zero = 1e-11 * values.abs().max()
    assert not ((values.abs() > zero) & (values.abs() < 100 * zero)).any(), values
    return int((values > zero).sum()), int((values.abs() <= zero).sum()), int((values < -zero).sum())
