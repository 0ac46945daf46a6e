"""Critical points: closed forms, saddle points, and what has none."""

import pytest
import torch
from scipy.optimize import least_squares
from torch import nn
from torch.testing import assert_close

from lightning_embed.analysis import Risk, find_critical_point, hessian, spectrum
from lightning_embed.analysis.polish import CRITICAL, gradient_sizes, newton, polish, runs_away
from lightning_embed.errors import InputError
from tests.tolerances import tolerance

LINE = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]


def one_tanh(w, b, a, c):
    net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
    for parameter, value in zip(net.parameters(), (w, b, a, c), strict=True):
        nn.init.constant_(parameter, value)
    return net


@pytest.mark.parametrize("steps", [0, 50])
def test_linear_regression_in_closed_form(steps):
    torch.manual_seed(0)
    net, x, y = nn.Linear(2, 3), torch.randn(10, 2), torch.randn(10, 3)
    before = net.weight.clone()
    point = find_critical_point(net, nn.MSELoss(), (x, y), steps=steps)
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(10, 1)], dim=1).double(), y.double()).solution.T
    assert_close(torch.cat([point.model.weight, point.model.bias[:, None]], dim=1), wanted, **tolerance(torch.float64))
    assert torch.equal(net.weight, before)
    assert point.gradient <= CRITICAL
    assert point.step == steps  # descent on a convex loss only improves
    assert point.loss == pytest.approx(nn.functional.mse_loss(point.model(x.double()), y.double()).item())


def test_the_candidate_is_the_point_of_the_least_gradient_on_the_way():
    """A way that slows down beside a saddle point and goes on: a w at (1, 0) is drawn to 0, and then to 1."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    nn.init.constant_(net[0].weight, 1.0)
    nn.init.constant_(net[1].weight, -1 + 1e-3)
    one = torch.ones(1, 1, dtype=torch.float64)
    early = find_critical_point(net, nn.MSELoss(), (one, one), steps=60, rate=0.05)
    late = find_critical_point(net, nn.MSELoss(), (one, one), steps=400, rate=0.05)
    assert 0 < early.step < 60
    assert early.loss == 1
    assert [parameter.item() for parameter in early.model.parameters()] == pytest.approx([0, 0], abs=1e-12)
    assert late.loss == pytest.approx(0, abs=1e-20)


def test_a_saddle_point_is_polished_to_and_not_left():
    data = (LINE, torch.sin(2 * LINE))
    point = find_critical_point(one_tanh(0.01, 0.02, -0.02, 0.01), nn.MSELoss(), data, steps=0)
    values = spectrum(hessian(point.model, nn.MSELoss(), data).matrix)
    assert point.gradient <= CRITICAL
    assert values[0] < -0.1
    assert point.moved < 0.1


def test_polishing_goes_where_minpack_goes_from_near_a_minimum():
    data = (LINE, torch.sin(2 * LINE) + LINE / 2)
    risk = Risk(one_tanh(4.5, 0, 0.8, 0), nn.MSELoss(), data)
    for offset in 0.1 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        start = risk.point + offset
        result = least_squares(
            lambda point: risk.gradient(torch.from_numpy(point)).numpy(),
            start.numpy(),
            lambda point: risk.hessian(torch.from_numpy(point)).numpy(),
            method="lm",
        )
        point = polish(risk, start[None])
        assert gradient_sizes(risk, point).item() <= CRITICAL
        assert not runs_away(risk, start[None], point).item()
        assert_close(point[0], torch.from_numpy(result.x), rtol=1e-6, atol=1e-6)


def test_where_the_loss_falls_towards_infinity_there_is_no_critical_point():
    """A line has no best slope and height as tanh: the better, the wider and flatter (findings of this project)."""
    data = (LINE, torch.tanh(4 * (LINE - 1)) + torch.tanh(4 * (LINE + 1)))
    with pytest.raises(InputError, match=r"no critical point found.*the norm of the parameters went from"):
        find_critical_point(one_tanh(0.5, 0.0, 2.0, 0.0), nn.MSELoss(), data, steps=0)


def test_a_point_on_its_way_to_infinity_is_refused_though_its_gradient_vanishes():
    torch.manual_seed(0)
    separable = (LINE, (LINE[:, 0] > 0.1).long())
    with pytest.raises(InputError, match="runs away"):
        find_critical_point(nn.Linear(1, 2), nn.CrossEntropyLoss(), separable, steps=300, rate=0.1)


def test_a_neuron_that_saturates_is_no_critical_point():
    """A step is fitted the better, the larger the input weight, until the gradient is below any bound."""
    with pytest.raises(InputError, match="runs away"):
        find_critical_point(one_tanh(3, 0, 1, 0), nn.MSELoss(), (LINE, LINE.sign()), steps=0)


def test_a_descent_that_diverges_is_refused():
    with pytest.raises(InputError, match=r"diverged at step.*lower rate"):
        find_critical_point(one_tanh(1, 0, 1, 0), lambda f, y: (f - y).pow(4).mean(), (LINE, 5 * LINE), rate=1e3)


def test_degenerate_points_do_not_drift():
    """Softmax does not feel a shift of its logits; polishing must not move along it."""
    torch.manual_seed(0)
    labels = (torch.arange(30) % 3 == 0).long()
    net = nn.Linear(1, 2).double()
    point = find_critical_point(net, nn.CrossEntropyLoss(), (LINE, labels), steps=0)
    for before, after in zip(net.parameters(), point.model.parameters(), strict=True):
        assert after.sum().item() == pytest.approx(before.sum().item(), abs=1e-6)


def test_many_points_are_polished_as_each_alone():
    risk = Risk(one_tanh(1, 0, 1, 0), nn.MSELoss(), (LINE, torch.sin(2 * LINE) + LINE / 2))
    starts = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = polish(risk, starts)
    for start, point in zip(starts, together, strict=True):
        assert_close(polish(risk, start[None])[0], point, rtol=1e-8, atol=1e-8)


def test_newton_never_makes_a_gradient_larger():
    risk = Risk(one_tanh(1, 0, 1, 0), nn.MSELoss(), (LINE, torch.sin(3 * LINE)))
    points = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (gradient_sizes(risk, newton(risk, points)) <= gradient_sizes(risk, points)).all()
