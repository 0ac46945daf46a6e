"""Splitting curvature, and the network that leaves a plateau."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_embed as le
from lightning_embed.analysis import find_critical_point, hessian, splitting_curvature
from lightning_embed.errors import InputError

X = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
Y = (4 * (X + 1)).tanh() + 0.9 * (4 * (X - 0.5)).tanh() - 0.3 * (4 * (X - 1.5)).tanh()


def net(*widths, activation=nn.Tanh, seed=0):
    torch.manual_seed(seed)
    modules = []
    for fan_in, fan_out in pairwise(widths):
        modules += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*modules[:-1]).double()


def block(model, second, name, neuron):
    """The rows and columns of a Hessian that belong to a neuron's input weights and bias."""
    places, start = [], 0
    for parameter, value in model.named_parameters():
        if parameter in {f"{name}.weight", f"{name}.bias"}:
            size = value[0].numel()
            places += range(start + neuron * size, start + (neuron + 1) * size)
        start += value.numel()
    return second[places][:, places]


@pytest.mark.laws
@pytest.mark.parametrize("activation", [nn.Tanh, nn.SiLU, nn.GELU, nn.Sigmoid])
def test_the_splitting_matrix_is_the_neuron_s_block_of_the_second_hessian_part(activation):
    model = net(2, 3, 4, 2, activation=activation)
    data = torch.randn(30, 2, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    second = hessian(model, nn.MSELoss(), data).second
    found = splitting_curvature(model, nn.MSELoss(), data)
    assert [one.layer for one in found] == ["0", "2"]
    last = found[1]  # of the layer before the last the block has other terms: what lies behind bends too
    for neuron, value in enumerate(last.values):
        torch.testing.assert_close(value, torch.linalg.eigvalsh(block(model, second, "2", neuron))[0])


@pytest.mark.laws
@pytest.mark.parametrize("layer", ["0", "2"])
def test_the_loss_changes_by_half_the_eigenvalue_times_the_square_of_the_step_at_any_point(layer):
    model = net(1, 3, 3, 1)
    (one,) = splitting_curvature(model, nn.MSELoss(), (X, Y), layers=[layer])
    for neuron, (value, along) in enumerate(zip(one.values, one.directions, strict=True)):
        wide, step = le.embed(model, {layer: le.Split(neuron)}), 1e-3
        linear = wide[int(layer)]
        with torch.no_grad():
            for place, sign in ((neuron, 1), (-1, -1)):
                linear.weight[place] += sign * step * along[:-1]
                linear.bias[place] += sign * step * along[-1]
            change = F.mse_loss(wide(X), Y) - F.mse_loss(model(X), Y)
        assert float(change) == pytest.approx(float(value) * step**2 / 2, rel=1e-3, abs=1e-13)


class Module(nn.Module):
    """Functional activations, a skip around it all, two readers."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        h = F.silu(self.first(x), inplace=True)
        return self.a(h) + self.b(h).tanh() + x[:, :1]


def test_modules_with_functional_activations_in_place_and_several_readers():
    torch.manual_seed(0)
    model = Module()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(50, 3)
    y = x[:, :1] * x[:, 1:2]
    (one,) = splitting_curvature(model, nn.MSELoss(), (x, y))
    double = copy.deepcopy(model).double()
    z = double.first(x.double()).detach().requires_grad_()
    h = F.silu(z)
    out = double.a(h) + double.b(h).tanh() + x[:, :1]
    (slope,) = torch.autograd.grad(F.mse_loss(out, y.double()), h)
    s = z.sigmoid()
    bent = slope * s * (1 - s) * (2 + z * (1 - 2 * s))
    tilde = torch.cat([x.double(), torch.ones(50, 1, dtype=torch.float64)], 1)
    for neuron in range(4):
        wanted = torch.linalg.eigvalsh(tilde.T @ (bent[:, neuron : neuron + 1] * tilde))[0]
        torch.testing.assert_close(one.values[neuron], wanted.detach(), rtol=1e-6, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_relu_bends_nowhere():
    (one,) = splitting_curvature(net(1, 5, 1, activation=nn.ReLU), nn.MSELoss(), (X, Y))
    assert one.least == 0.0


def test_a_plateau_is_left_where_widening_alone_rests():
    """The best of one tanh neuron: `widen` stays, `escape_by_widening` leaves."""
    point = find_critical_point(net(1, 1, 1), nn.MSELoss(), (X, Y), steps=1000, rate=0.05)
    found = le.escape_by_widening(point.model, nn.MSELoss(), (X, Y))
    (one,) = splitting_curvature(point.model, nn.MSELoss(), (X, Y))
    assert one.least < -1e-3
    assert found.model[0].out_features == 2
    assert found.loss[0] == pytest.approx(point.loss)
    assert found.loss[1] < 0.99 * found.loss[0]
    losses = {}
    for name, model in (("widened", le.widen(point.model, {"0": 2})), ("escaped", found.model)):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            loss = F.mse_loss(model(X), Y)
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["widened"] == pytest.approx(point.loss, rel=1e-6)
    assert losses["escaped"] < 0.9 * point.loss


def test_relu_networks_leave_by_a_new_neuron_and_keep_their_type():
    torch.manual_seed(0)

    class Relu(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(1, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.out(F.relu(self.hidden(x)))

    model, data = Relu(), (X.float(), Y.float())
    found = le.escape_by_widening(model, nn.MSELoss(), data)
    assert type(found.model) is Relu
    assert found.model.hidden.out_features == 3
    assert found.neuron is None
    assert found.loss[1] < 0.9 * found.loss[0]
    assert found.model.out.weight.dtype == torch.float32
    fresh = Relu()
    le.attach(fresh)
    fresh.load_state_dict(found.model.state_dict())
    assert torch.equal(fresh(data[0]), found.model(data[0]))
    assert "a new neuron" in str(found)


def test_what_is_refused():
    exact = net(1, 3, 1)
    with pytest.raises(InputError, match=r"lowers the loss .* in no layer"):
        le.escape_by_widening(exact, nn.MSELoss(), (X, exact(X).detach()))
    with pytest.raises(InputError, match="'2' is no hidden layer"):
        splitting_curvature(exact, nn.MSELoss(), (X, Y), layers=["2"])
    with pytest.raises(InputError, match="No hidden layer is a Linear"):
        splitting_curvature(nn.Sequential(nn.Linear(1, 1)).double(), nn.MSELoss(), (X, Y))
    convolution = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Conv1d(2, 1, 3)).double()
    images = torch.randn(8, 1, 9, dtype=torch.float64)
    with pytest.raises(InputError, match=r"'0' has no splitting curvature: it is no nn\.Linear"):
        splitting_curvature(convolution, nn.MSELoss(), (images, torch.randn(8, 1, 5)), layers=["0"])
