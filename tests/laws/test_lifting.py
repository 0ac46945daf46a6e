"""Laws of lifting on whole networks: outputs, spans, criticality, data, neighbourhoods (000)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from lightning_embed.errors import InputError
from lightning_embed.operators import (
    Segment,
    affine_segments,
    features,
    lift,
    lifted_from,
    network,
    tangent_segment,
    to_vector,
)
from lightning_embed.statistics import minimal_pearson_correlation
from tests.laws.networks import (
    critical_residual,
    gradient,
    hessian,
    inertia,
    largest,
    normal,
    random_theta,
    seeds,
    squared_error,
    widths,
    with_constant,
)
from tests.tolerances import tolerance

PIECEWISE = [nn.ReLU(), nn.LeakyReLU(0.1), nn.ELU(), nn.SELU(), nn.Hardtanh(), nn.Hardswish(), nn.Softshrink()]


@st.composite
def lifted_networks(draw, samples=12, hidden=2):
    """(θ, deep θ, [inserted layers], x, activation, generator): one to three layers, as they were numbered then."""
    activation = draw(st.sampled_from(PIECEWISE))
    narrow = draw(widths(hidden))
    generator = torch.Generator().manual_seed(draw(seeds))
    theta, x = random_theta(narrow, generator), normal(generator, samples, narrow[0])
    deep, inserted = theta, []
    for _ in range(draw(st.integers(1, 3))):
        after = draw(st.integers(0, len(deep) - 1))
        least = min(deep[after][0].shape)
        segment = draw(st.sampled_from(affine_segments(activation)))
        deep = lift(deep, after, x, activation, segment, width=least + draw(st.integers(0, 1)))
        inserted.append(after + 1)
    return theta, deep, inserted, x, activation, generator


def new_and_old_layers(deep, inserted):
    """Which layers of the deep network were inserted, by their present numbers, and which were not."""
    new = []
    for layer in inserted:
        new = [one + (one >= layer) for one in new] + [layer]
    return new, [layer for layer in range(len(deep) + 1) if layer not in new]


def scale_of(theta, x, activation):
    return largest(to_vector(theta)) ** 2 * largest(*features(theta, x, activation))


@given(lifted_networks())
def test_original_layers_compute_what_they_did(case):
    theta, deep, inserted, x, activation, _ = case
    found = features(deep, x, activation)
    for old, layer in zip(features(theta, x, activation), new_and_old_layers(deep, inserted)[1], strict=True):
        assert_close(found[layer], old, **tolerance(x.dtype, scale_of(deep, x, activation)))


@settings(max_examples=50)
@given(lifted_networks(samples=30))
def test_inserted_layers_stay_in_the_span_of_the_layer_before(case):
    """000, Prop. 4.1 (iii), where it holds: inserted features are affine functions of those before."""
    _, deep, inserted, x, activation, _ = case
    found = features(deep, x, activation)
    for layer in new_and_old_layers(deep, inserted)[0]:
        before = with_constant(found[layer - 1])
        left = found[layer] - before @ torch.linalg.lstsq(before, found[layer], driver="gelsd").solution
        assert_close(left, torch.zeros_like(left), **tolerance(x.dtype, 1e2 * scale_of(deep, x, activation)))


def test_a_narrower_inserted_layer_spans_less():
    """The equality printed in 000, Prop. 4.1 (iii) fails: one neuron cannot span what three did."""
    generator = torch.Generator().manual_seed(0)
    theta, x = random_theta((2, 3, 1), generator), normal(generator, 30, 2)
    deep = lift(theta, 1, x, torch.relu, *affine_segments(nn.ReLU()))
    found = [torch.linalg.matrix_rank(with_constant(one)) for one in features(deep, x, torch.relu)]
    assert found[1:3] == [4, 2]


@settings(max_examples=30)
@given(lifted_networks(samples=40))
def test_criticality_is_preserved(case):
    """000, Prop. 4.2, for liftings of one layer and of several."""
    theta, deep, _, x, activation, generator = case
    residual = critical_residual(lambda one: network(one, x, activation), theta, generator)
    y = network(theta, x, activation) - residual
    old, new = (gradient(one, x, y, activation, squared_error) for one in (theta, deep))
    assert_close(old, torch.zeros_like(old), **tolerance(x.dtype))
    assert_close(new, torch.zeros_like(new), **tolerance(x.dtype, scale_of(deep, x, activation) ** 2))


@given(lifted_networks(hidden=1), st.data())
def test_lifted_for_the_data_is_lifted_for_a_part_of_them(case, data):
    """000, Prop. 4.4: T_S(θ) ⊆ T_S'(θ) for S' ⊆ S, with the same shallow parameters."""
    _, deep, inserted, x, activation, _ = case
    part = data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, unique=True))
    for layer in reversed(inserted):
        whole = lifted_from(deep, layer, x, activation, affine_segments(activation))
        partly = lifted_from(deep, layer, x[part], activation, affine_segments(activation))
        assert whole is not None
        assert partly is not None
        assert torch.equal(to_vector(whole), to_vector(partly))
        deep = whole


def test_lifted_for_a_part_of_the_data_need_not_be_lifted_for_all():
    generator = torch.Generator().manual_seed(0)
    theta, x = random_theta((2, 3, 1), generator), normal(generator, 30, 2)
    deep = lift(theta, 0, x[:5], torch.relu, *affine_segments(nn.ReLU()))
    assert lifted_from(deep, 1, x[:5], torch.relu, affine_segments(nn.ReLU())) is not None
    assert lifted_from(deep, 1, 10 * x, torch.relu, affine_segments(nn.ReLU())) is None
    assert (network(deep, 10 * x, torch.relu) - network(theta, 10 * x, torch.relu)).abs().max() > 0.1


@given(lifted_networks())
def test_the_output_is_preserved_around_every_sample(case):
    """000, Prop. A.4: the distance of the pre values from the segment's ends, over how fast they vary, is a radius."""
    theta, deep, inserted, x, activation, generator = case
    radius = 1e-6 / largest(to_vector(deep)) ** len(deep)
    near = x + radius * normal(generator, *x.shape)
    assert lifted_from(deep, inserted[-1], near, activation, affine_segments(activation)) is not None
    assert_close(
        network(deep, near, activation),
        network(theta, near, activation),
        **tolerance(x.dtype, scale_of(deep, x, activation)),
    )


@given(widths(2), st.sampled_from([nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU()]), st.floats(1e-3, 0.2), st.data())
def test_lifting_through_a_smooth_activation_keeps_to_the_stated_error(narrow, activation, radius, data):
    generator = torch.Generator().manual_seed(data.draw(seeds))
    theta, x = random_theta(narrow, generator), normal(generator, 12, narrow[0])
    after = data.draw(st.integers(0, len(theta) - 1))
    segment = tangent_segment(activation, 0.3, radius)
    deep = lift(theta, after, x, activation, segment)
    weight = deep[after + 1][0]
    before, found = features(theta, x, activation)[after], features(deep, x, activation)[after + 1]
    change = (found @ weight.T + deep[after + 1][1]) - (before @ theta[after][0].T + theta[after][1])
    bound = torch.linalg.matrix_norm(weight, 2) * len(found[0]) ** 0.5 * segment.error
    assert torch.linalg.vector_norm(change, dim=1).max() <= bound * (1 + 1e-6) + 1e-9 * largest(weight)
    assert lifted_from(deep, after + 1, x, activation, affine_segments(activation)) is None


def test_the_error_of_a_smooth_lifting_falls_with_the_square_of_the_radius():
    generator = torch.Generator().manual_seed(0)
    theta, x = random_theta((1, 3, 3, 1), generator), normal(generator, 30, 1)
    errors = []
    for radius in (0.1, 0.01):
        deep = lift(theta, 2, x, torch.tanh, tangent_segment(torch.tanh, 0.0, radius))
        errors.append(float((network(deep, x, torch.tanh) - network(theta, x, torch.tanh)).abs().max()))
    assert 90 < errors[0] / errors[1] < 110


@settings(max_examples=30)
@given(widths(2), st.data())
def test_residual_lifting_preserves_output_and_criticality(narrow, data):
    """000, Def. A.2, with another skip connection in the shallow network already."""
    generator = torch.Generator().manual_seed(data.draw(seeds))
    narrow = (narrow[0], narrow[1], narrow[1], narrow[-1])
    theta, x = random_theta(narrow, generator), normal(generator, 40, narrow[0])
    activation = data.draw(st.sampled_from(PIECEWISE))
    after = data.draw(st.sampled_from([0, 2]))
    deep = lift(theta, after, x, activation, affine_segments(activation)[0], skip=True, skips={2})
    skips = {1, 3} if after == 0 else {2, 3}
    old, new = network(theta, x, activation, {2}), network(deep, x, activation, skips)
    scale = scale_of(deep, x, activation) ** 2
    assert_close(new, old, **tolerance(x.dtype, scale))
    residual = critical_residual(lambda one: network(one, x, activation, {2}), theta, generator)
    found = gradient(deep, x, old - residual, activation, squared_error, skips)
    assert_close(found, torch.zeros_like(found), **tolerance(x.dtype, scale))
    merged = lifted_from(deep, after + 1, x, activation, affine_segments(activation), skips=skips)
    assert merged is not None
    assert_close(to_vector(merged), to_vector(theta), **tolerance(x.dtype, scale))


# --- the Hessian's inertia ---


def elu_network(seed, middle=None):
    """(θ of widths 2-2-3-1 or with a given middle weight, x, targets that make θ critical, generator)."""
    generator = torch.Generator().manual_seed(seed)
    theta, x = random_theta((2, 2, 3, 1), generator), 2 * normal(generator, 80, 2)
    if middle is not None:
        theta = random_theta((2, 2, 2, 1), generator)
        theta = (theta[0], (middle, theta[1][1]), theta[2])
    residual = critical_residual(lambda one: network(one, x, nn.ELU()), theta, generator)
    return theta, x, network(theta, x, nn.ELU()) - 10 * residual, generator


def inertia_of(theta, x, y):
    return inertia(hessian(theta, x, y, nn.ELU(), squared_error))


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_lifting_keeps_the_inertia_at_critical_points(seed, after):
    """000, Prop. 4.3 and Cor. 4.1: nothing but M' - M zeros is added."""
    theta, x, y, _ = elu_network(seed)
    deep = lift(theta, after, x, nn.ELU(), *affine_segments(nn.ELU()))
    positive, zero, negative = inertia_of(theta, x, y)
    added = len(to_vector(deep)) - len(to_vector(theta))
    assert inertia_of(deep, x, y) == (positive, zero + added, negative)


@pytest.mark.parametrize("seed", [3, 4])
def test_lifting_does_not_keep_the_inertia_elsewhere(seed):
    """000, Prop. 4.3 says "any parameter"; without ∇R = 0 eigenvalues of both signs appear."""
    theta, x, _, generator = elu_network(seed)
    y = 3 * normal(generator, 80, 1)
    old, new = (inertia_of(one, x, y) for one in (theta, lift(theta, 1, x, nn.ELU(), *affine_segments(nn.ELU()))))
    assert gradient(theta, x, y, nn.ELU(), squared_error).abs().max() > 1e-2
    assert new[0] > old[0]
    assert new[2] > old[2]


@pytest.mark.parametrize("seed", [0, 1])
def test_lifting_by_rank_deficient_factors_does_not_keep_the_inertia(seed):
    """Def. 4.2 admits them; Lemma A.1 constructs one factor of full rank, and with it the inertia is kept."""
    generator = torch.Generator().manual_seed(100 + seed)
    left, right = normal(generator, 2), normal(generator, 2)
    theta, x, y, _ = elu_network(seed, middle=torch.outer(left, right))
    shift = 1 - (features(theta, x, nn.ELU())[1] @ right).min().expand(2)
    w1, w2 = torch.stack([right, 0 * right]), torch.stack([left, 0 * left], dim=1)
    (first, (_, bias), last) = theta
    deep = (first, (w1, shift), (w2, bias - w2 @ shift), last)
    merged = lifted_from(deep, 2, x, nn.ELU(), affine_segments(nn.ELU()))
    assert_close(to_vector(merged), to_vector(theta))
    assert gradient(deep, x, y, nn.ELU(), squared_error).abs().max() < 1e-10
    old, new = inertia_of(theta, x, y), inertia_of(deep, x, y)
    assert (new[0], new[2]) != (old[0], old[2])
    good = inertia_of(lift(theta, 1, x, nn.ELU(), *affine_segments(nn.ELU())), x, y)
    assert good == (old[0], old[1] + 6, old[2])


# --- is it lifted? ---


@given(lifted_networks(hidden=2))
def test_merging_what_is_lifted_gives_the_shallow_network_back(case):
    theta, deep, inserted, x, activation, _ = case
    scale = scale_of(deep, x, activation)
    for layer in reversed(inserted):
        deep = lifted_from(deep, layer, x, activation, affine_segments(activation))
        assert deep is not None
    assert_close(to_vector(deep), to_vector(theta), **tolerance(x.dtype, scale))


def test_an_mpc_of_one_does_not_prove_a_lifted_layer():
    """000, Remark 5.1 (i): two distinct pre values always correlate perfectly, across a kink too."""
    theta = (
        (torch.tensor([[1.0], [-2.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)),
        (torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),
    )
    x = torch.tensor([[-1.0], [1.0], [1.0], [-1.0]], dtype=torch.float64)
    _, post, _ = features(theta, x, torch.relu)
    pre = x @ theta[0][0].T
    assert float(minimal_pearson_correlation(pre, post)) == pytest.approx(1.0, abs=1e-12)
    assert lifted_from(theta, 1, x, torch.relu, affine_segments(nn.ReLU())) is None


def test_a_critical_deep_point_need_not_be_a_lifted_critical_point():
    """000, Remark 5.1 (ii) is needed: with rank-deficient factors the merged point need not be critical."""
    generator = torch.Generator().manual_seed(0)
    x, y = normal(generator, 20, 1), normal(generator, 20, 1)

    def zero(*shape):
        return torch.zeros(shape, dtype=torch.float64)

    deep = ((zero(1, 1), zero(1) + 1), (zero(1, 1), y.mean(0)))
    assert gradient(deep, x, y, torch.relu, squared_error).abs().max() < 1e-12
    segments = affine_segments(nn.ReLU())
    assert lifted_from(deep, 1, x, torch.relu, segments) is not None

    def risk(theta):
        return squared_error(network(theta, x, torch.relu), y).mean()

    assert lifted_from(deep, 1, x, torch.relu, segments, risk=risk) is None
    slope = (x - x.mean()).T @ y / (x - x.mean()).square().sum()
    line = ((slope, y.mean(0) - slope[0] * x.mean()),)
    lifted = lift(line, 0, x, torch.relu, *segments)
    assert lifted_from(lifted, 1, x, torch.relu, segments, risk=risk) is not None


def test_a_layer_that_is_too_narrow_is_not_lifted():
    """A bottleneck is affine on the data and yet no lifting inserts it (000, Def. 3.1)."""
    generator = torch.Generator().manual_seed(0)
    (w1, b1), (w2, b2) = random_theta((2, 1, 2), generator)
    x = normal(generator, 20, 2)
    assert lifted_from(((w1, b1 + 100), (w2, b2)), 1, x, torch.relu, affine_segments(nn.ReLU())) is None


def test_every_neuron_may_have_its_own_segment():
    theta = (
        (torch.tensor([[1.0], [1.0]], dtype=torch.float64), torch.tensor([5.0, -5.0], dtype=torch.float64)),
        (torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)),
    )
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    activation = nn.LeakyReLU(0.5)
    merged = lifted_from(theta, 1, x, activation, affine_segments(activation))
    assert merged is not None
    assert_close(network(merged, x, activation), network(theta, x, activation))
    assert merged[0][0].item() == 1.5


def test_what_is_no_layer_is_refused():
    theta = random_theta((1, 2, 1), torch.Generator().manual_seed(0))
    x, line = torch.zeros(3, 1, dtype=torch.float64), Segment(0.0, 1.0, 1.0, 0.0)
    with pytest.raises(InputError, match=r"after must be a layer in 0\.\.1, not 2"):
        lift(theta, 2, x, torch.relu, line)
    with pytest.raises(InputError, match=r"the skip connection around layer 1 begins at layer 0"):
        lift(theta, 0, x, torch.relu, line, skips={1})
    with pytest.raises(InputError, match=r"layer must be a hidden layer, in 1\.\.1, not 2"):
        lifted_from(theta, 2, x, torch.relu, [line])
