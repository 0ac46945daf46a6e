"""Laws of critical points and their Hessians: what lifting, splitting and embedding do to the inertia."""

from functools import partial

import pytest
import torch
from hypothesis import given, reject, settings
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
from lightning_embed.analysis.risk import jacobian
from lightning_embed.errors import InputError
from lightning_embed.operators import (
    affine_segments,
    features,
    from_vector,
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
    residual = critical_residual(partial(network, x=x, activation=activation), theta, generator)
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


@settings(max_examples=30)
@given(liftings(), losses)
def test_lifting_adds_exactly_the_new_parameters_as_zeros(case, loss):
    """000, Prop. 4.3 and Cor. 4.1, at critical points and with the full-rank factors of Lemma A.1."""
    theta, deep, x, activation, generator = case
    data = x, made_critical(theta, x, activation, generator, loss)
    positive, zero, negative = counts(theta, activation, loss[0], data)
    added = parameter_count(widths_of(deep)) - parameter_count(widths_of(theta))
    assert counts(deep, activation, loss[0], data) == (positive, zero + added, negative)


def split_block(theta, x, y, activation, neuron):
    """What a split adds to the Hessian, by the mean squared error of one hidden layer: C and G of the law below."""
    (w_in, b_in), (w_out, _) = theta
    extended = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    pre = (extended @ torch.cat([w_in[neuron], b_in[neuron : neuron + 1]])).requires_grad_()
    (slope,) = torch.autograd.grad(activation(pre).sum(), pre, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), pre)
    errors = 2 * (network(theta, x, activation) - y) / y.numel()
    coupling = (errors * slope.detach()[:, None]).T @ extended
    return coupling, extended.T @ (extended * ((errors @ w_out[:, neuron]) * curvature)[:, None])


@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2), st.floats(-2, 3), st.sampled_from(SMOOTH), st.data())
@settings(max_examples=40)
def test_a_split_adds_a_block_of_its_own_to_the_hessian(fan_in, width, fan_out, alpha, activation, data):
    """At every θ, PᵀH(T^α(θ))P = H(θ) ⊕ [[0, C], [Cᵀ, α(1-α) G]], C = E[ℓ' σ' x̃ᵀ], G = E[ℓ' a σ'' x̃ x̃ᵀ].

    P takes the narrow parameters along, and the differences of the copies: (t, -t) in their output weights and
    (α v, -(1-α) v) in their input weights and biases. So the block says how many negative eigenvalues a split adds.
    """
    generator = torch.Generator().manual_seed(data.draw(seeds))
    theta = random_theta((fan_in, width, fan_out), generator)
    neuron = data.draw(st.integers(0, width - 1))
    x, y = normal(generator, 12, fan_in), normal(generator, 12, fan_out)
    split = splitting_embedding((fan_in, width, fan_out), 1, neuron, alpha)
    narrow, wide = (hessian(mlp(one, activation), nn.MSELoss(), (x, y)).matrix for one in (theta, split(theta)))
    C, G = split_block(theta, x, y, activation, neuron)
    block = torch.cat([torch.cat([0 * C @ C.T, C], dim=1), torch.cat([C.T, alpha * (1 - alpha) * G], dim=1)])

    def moved(weight_in=None, weight_out=None):
        """A direction of the wide network: the input row and bias of the neuron and its copy, or their outputs."""
        direction = [torch.zeros_like(part) for layer in split(theta) for part in layer]
        if weight_in is not None:
            for place, share in ((neuron, alpha), (width, alpha - 1)):
                direction[0][place], direction[1][place] = share * weight_in[:-1], share * weight_in[-1]
        else:
            direction[2][:, neuron], direction[2][:, width] = weight_out, -weight_out
        return torch.cat([part.flatten() for part in direction])

    outs = [moved(weight_out=one) for one in torch.eye(fan_out, dtype=x.dtype)]
    ins = [moved(weight_in=one) for one in torch.eye(fan_in + 1, dtype=x.dtype)]
    P = torch.cat([split.affine().A, torch.stack([*outs, *ins], dim=1)], dim=1)
    assert torch.linalg.matrix_rank(P) == len(P) == P.shape[1]
    assert_close(P.T @ wide @ P, torch.block_diag(narrow, block), **tolerance(x.dtype, largest(P) ** 2 * largest(wide)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alpha", [0.5, -0.5, 0.0])
def test_how_many_negative_eigenvalues_a_split_adds_at_a_critical_point(seed, alpha):
    """Of one output C vanishes there: a zero is added, and the signs of α(1-α) G."""
    generator = torch.Generator().manual_seed(seed)
    theta, x = random_theta((1, 2, 1), generator), normal(generator, 20, 1)
    y = made_critical(theta, x, nn.Tanh(), generator, LOSSES["mse"], size=10.0)
    split = splitting_embedding((1, 2, 1), 1, seed % 2, alpha)
    C, G = split_block(theta, x, y, nn.Tanh(), seed % 2)
    assert_close(C, torch.zeros_like(C), **tolerance(x.dtype))
    signs = inertia(spectrum(alpha * (1 - alpha) * G)).counts
    positive, zero, negative = counts(theta, nn.Tanh(), nn.MSELoss(), (x, y))
    wanted = positive + signs[0], zero + signs[1] + 1, negative + signs[2]
    assert counts(split(theta), nn.Tanh(), nn.MSELoss(), (x, y)) == wanted


def two_neurons(activation, spread, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 2), activation, nn.Linear(2, 1))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=spread)
    return net


def test_each_equal_split_adds_a_zero_and_a_negative_eigenvalue_at_the_point_of_004_fig_3():
    """004, Fig. 3(a): a minimum of two tanh neurons, one of them split into 2 and 3: zeros and negatives 0, 1, 2."""
    data = LINE, (5 * (LINE + 0.5)).tanh() - (3 * (LINE - 0.8)).tanh() + LINE.cos() / 2
    point = find_critical_point(two_neurons(nn.Tanh(), 2**-1.5), nn.MSELoss(), data, steps=1000, rate=0.04)
    (w_in, b_in), (w_out, b_out) = theta_of(point.model)
    assert counts(((w_in, b_in), (w_out, b_out)), nn.Tanh(), nn.MSELoss(), data) == (7, 0, 0)
    for copies, wanted in ((2, (8, 1, 1)), (3, (9, 2, 2))):
        more_in, more_bias, more_out = split_neuron(w_in, b_in, w_out, 0, [1 / copies] * copies)
        wide = (more_in, more_bias), (more_out, b_out)
        assert counts(wide, nn.Tanh(), nn.MSELoss(), data) == wanted
        assert is_strict_saddle(mlp(wide, nn.Tanh()), nn.MSELoss(), data)
    assert not is_strict_saddle(point.model, nn.MSELoss(), data)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("outputs", [2, 3, 4])
def test_outputs_beyond_the_rank_of_the_targets_add_zeros_to_every_split(outputs, seed):
    """Targets of K outputs that sum to 1, as classes do, have rank K - 1, and a split adds at least two zeros.

    At a critical point u·f = u·y for every u with constant u·y, so that the residuals, and with them the block C of
    `split_block`, vanish along u as along the output weights of the neuron. Of K outputs whose centred targets have
    rank r a split adds at least K - r + 1 zeros; 004, Fig. 3(b), where it adds one, fits a single output.
    """
    generator = torch.Generator().manual_seed(seed)
    (w_in, b_in), (w_out, b_out) = random_theta((3, 2, outputs), generator)
    w_out, b_out = w_out - w_out.mean(0), b_out - b_out.mean() + 1 / outputs  # the outputs sum to 1 everywhere
    theta, x = ((w_in, b_in), (w_out, b_out)), normal(generator, 30, 3)
    risk = Risk(mlp(theta, nn.Sigmoid()), nn.MSELoss(), (x, normal(generator, 30, outputs)))
    rows = jacobian(risk.outputs, risk.point)
    summed = torch.kron(torch.eye(30, dtype=x.dtype), torch.ones(1, outputs, dtype=x.dtype))
    free = torch.linalg.svd(torch.cat([rows.T, summed]))[2][-1]  # residuals that no parameter and no sum sees
    data = x, risk.outputs(risk.point) + 5 * free.reshape(30, outputs)
    assert torch.linalg.matrix_rank(data[1] - data[1].mean(0)) == outputs - 1
    narrow = counts(theta, nn.Sigmoid(), nn.MSELoss(), data)
    split = splitting_embedding((3, 2, outputs), 1, seed % 2, 0.5)
    wide = counts(split(theta), nn.Sigmoid(), nn.MSELoss(), data)
    assert all(after >= before for before, after in zip(narrow, wide, strict=True))
    assert wide[1] - narrow[1] >= 2
    assert wide[1] - narrow[1] == 2  # of generic points; more where others vanish too


# θ to eight digits, found from 1.5 · randn(96, 19), seed 1, number 45, and from randn(96, 13), seed 0, number 10
IRIS_POINTS = {
    "one output a class": (
        [
            *(1.45809292, 0.63820638, 1.21665826, -1.63547912, 0.51951141, 0.51627166, -3.2922171, -2.25833904),
            *(3.4253754, 3.06171632, 0.1936028, 0.82409806, 0.11308584, 0.3217578, -0.30668864, -1.14585587),
            *(-0.36917199, 0.02382628, 1.3453457),
        ],
        0.119369575,
        ((16, 0, 3), (19, 2, 6), (22, 4, 9)),
    ),
    "the number of the class": (
        [
            *(-0.8005536, 0.21552402, 2.166592, -0.15543771, 0.0750234, 0.46075821, -0.88469887, -1.43524321),
            *(-0.85508528, 0.93944198, 0.55087847, -2.03234912, 1.96365065),
        ],
        0.032244326,
        ((11, 0, 2), (14, 1, 4), (17, 2, 6)),
    ),
}


@pytest.mark.parametrize("coded", IRIS_POINTS)
def test_the_critical_points_of_two_sigmoid_neurons_on_iris(coded):
    """004, Fig. 3(b): one of 96 random starts, polished; a neuron split equally into 2 and 3."""
    from sklearn.datasets import load_iris

    found, loss, wanted = IRIS_POINTS[coded]
    given = load_iris()
    x, labels = torch.tensor(given.data, dtype=torch.float64), torch.tensor(given.target)
    y = nn.functional.one_hot(labels).double() if len(found) == 19 else labels.double()[:, None]
    data = (x - x.mean(0)) / x.std(0), y
    theta = from_vector(torch.tensor(found, dtype=torch.float64), (4, 2, y.shape[1]))
    point = find_critical_point(mlp(theta, nn.Sigmoid()), nn.MSELoss(), data, steps=0)
    assert point.loss == pytest.approx(loss, abs=1e-9)
    (w_in, b_in), (w_out, b_out) = theta_of(point.model)
    for copies, expected in zip((1, 2, 3), wanted, strict=True):
        wide = (w_in, b_in), (w_out, b_out)
        if copies > 1:
            more_in, more_bias, more_out = split_neuron(w_in, b_in, w_out, 0, [1 / copies] * copies)
            wide = (more_in, more_bias), (more_out, b_out)
        assert counts(wide, nn.Sigmoid(), nn.MSELoss(), data) == expected


@pytest.mark.parametrize(("seed", "resting", "positive", "zeros"), [(1, 1, 3, 4), (4, 0, 5, 2)])
def test_each_inserted_layer_adds_six_zeros_at_the_points_of_000_fig_5(seed, resting, positive, zeros):
    """000, Fig. 5(a): two ReLU neurons, one of them at rest: three eigenvalues are not zero, as App. C (4) says.

    With both at work there are five, less the two rescalings that cost nothing.
    """
    x = torch.linspace(-2, 2, 70, dtype=torch.float64)[:, None]
    data = x, (4 * (x - 1)).tanh() + (4 * (x + 1)).tanh()
    point = find_critical_point(two_neurons(nn.ReLU(), 1.0, seed), nn.MSELoss(), data, steps=1000, rate=0.02)
    theta = theta_of(point.model)
    assert (features(theta, x, torch.relu)[1].amax(0) == 0).sum() == resting
    for added in (0, 6, 12):
        assert counts(theta, nn.ReLU(), nn.MSELoss(), data) == (positive, zeros + added, 0)
        averaged = spectrum(hessian(mlp(theta, nn.ReLU()), nn.MSELoss(), data).matrix, rotations=100)
        assert inertia(averaged).counts == (positive, zeros + added, 0)  # 000, App. C (2)
        theta = lift(theta, 1, x, torch.relu, *affine_segments(nn.ReLU()), width=2)


# --- 001, Thm. 6.3: which critical points may be truly bad ---


@st.composite
def minima(draw, activations, hidden, outputs):
    """A model at a critical point with H ⪰ 0 and H⁽²⁾ ≠ 0, and its data: half as large residuals as H ⪰ 0 bears.

    Where the features are too ill-conditioned for any, the next ones are drawn.
    """
    activation = draw(st.sampled_from(activations))
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from(hidden)), draw(outputs))
    generator = torch.Generator().manual_seed(draw(seeds))
    for _ in range(30):
        theta, x = random_theta(shape, generator), 2 * normal(generator, 40, shape[0])
        run = partial(network, x=x, activation=activation)
        values = spectrum(hessian(mlp(theta, activation), nn.MSELoss(), (x, run(theta))).first)
        least = values[values > 1e-10 * values[-1]].min()
        if least < 1e-6 * values[-1]:
            continue
        residual = critical_residual(run, theta, generator)
        second = hessian(mlp(theta, activation), nn.MSELoss(), (x, run(theta) - residual)).second
        bent = torch.linalg.matrix_norm(second, 2)
        if bent > 1e-6 * values[-1]:  # else no neuron is at work
            return mlp(theta, activation), (x, run(theta) - 0.5 * least / bent * residual)
    return reject()


def check_escape(model, data):
    """The wide network computes the same, is at a critical point too, and goes down along the direction both ways."""
    loss = nn.MSELoss()
    way = escape(model, loss, data)
    scale = largest(to_vector(theta_of(model)), model(data[0]).detach())
    assert_close(way.model(data[0]), model(data[0]), **tolerance(torch.float64, scale))
    risk = Risk(way.model, loss, data)
    matrix = hessian(way.model, loss, data).matrix
    assert_close(way.direction.norm(), torch.tensor(1.0, dtype=torch.float64), **tolerance(torch.float64))
    assert way.direction @ matrix @ way.direction == pytest.approx(way.curvature, rel=1e-6)
    assert way.curvature < 0
    assert risk.gradient(risk.point).abs().sum() < 1e-6
    assert is_strict_saddle(way.model, loss, data)
    assert not is_strict_saddle(model, loss, data)
    assert not may_be_truly_bad(model, loss, data)
    assert not may_be_truly_bad(way.model, loss, data)
    return way


@settings(max_examples=10)
@given(minima(SMOOTH, hidden=[(1,), (2,), (1, 1)], outputs=st.integers(1, 2)))
def test_minima_of_smooth_networks_escape_by_lemma_6_1(case):
    way = check_escape(*case)
    assert way.lemma == "6.1"


@settings(max_examples=10)
@given(minima([nn.ReLU(), nn.LeakyReLU(0.1)], hidden=[(1,), (2,)], outputs=st.just(2)))
def test_minima_of_piecewise_linear_networks_escape_by_lemma_6_2(case):
    """One layer of them has no curvature of its own; the second output makes H⁽²⁾ ≠ 0 possible."""
    way = check_escape(*case)
    assert way.lemma == "6.2"


def test_the_loss_falls_along_the_way_out():
    data = LINE, torch.sin(2 * LINE) + LINE / 2
    point = find_critical_point(
        mlp(theta_of(nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))), nn.Tanh()),
        nn.MSELoss(),
        data,
        steps=300,
        rate=0.05,
    )
    way = escape(point.model, nn.MSELoss(), data)
    risk = Risk(way.model, nn.MSELoss(), data)
    step = 0.01
    ahead, behind = (risk.value(risk.point + sign * step * way.direction) for sign in (1, -1))
    assert ahead < point.loss
    assert ahead + behind - 2 * point.loss == pytest.approx(step**2 * way.curvature, rel=1e-2)


def test_what_is_fitted_exactly_may_be_truly_bad():
    """H⁽²⁾ = 0 is the necessary condition that is left; nothing lies below a loss of zero."""
    net = mlp(random_theta((1, 2, 1), torch.Generator().manual_seed(0)), nn.Tanh())
    data = LINE, net(LINE).detach()
    assert may_be_truly_bad(net, nn.MSELoss(), data)
    with pytest.raises(InputError, match="may be truly bad"):
        escape(net, nn.MSELoss(), data)
