"""The scale of a change: the same for every output, whatever its unit and whatever no merge can change in it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery.decide.check import Check
from lightning_embed.surgery.decide.scale import Scale
from lightning_embed.tape import record
from tests.surgery.steps import mlp


def data(samples=400, seed=1):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Around(nn.Module):
    """A network and what the code does with its outputs."""

    def __init__(self, after):
        super().__init__()
        self.net, self.after = mlp(3, 24, 24, 4), after

    def forward(self, x):
        return self.after(self.net(x), x)


def effect(model, disturb=0.05):
    """What a disturbed hidden layer does, in the model as a whole and in the network inside."""
    found = []
    for one, x in ((model, data()), (model.net, data())):
        tapes = record(one, x.split(100))
        check = Check(one, tapes, le.Tolerance(), observe(one, tapes).layers)
        other = copy.deepcopy(one)
        with torch.no_grad():
            inner = other.net if isinstance(other, Around) else other
            inner[2].weight.mul_(1 + disturb)
        found.append(check.effect(other))
    return found


MASK = data()[:, :1].gt(0.3)


def masked(value):
    return lambda y, x: y.masked_fill(torch.cat([x > 0.5, x[:, :1] > 9], 1), value)


@pytest.mark.parametrize("value", [-1e9, torch.finfo(torch.float32).min, -1e4])
def test_masks_do_not_hide_a_change(value):
    """The entries that are masked are as they were; the others count as if there were no mask."""
    whole, inside = effect(Around(masked(value)))
    assert whole.change == pytest.approx(inside.change, rel=0.25)


def test_infinite_masks_are_no_reason_to_refuse_a_model():
    whole, inside = effect(Around(masked(-torch.inf)))
    assert whole.change == pytest.approx(inside.change, rel=0.25)
    model = Around(masked(-torch.inf))
    result = le.prune(model, data())
    assert result.size[1].parameters < result.size[0].parameters
    torch.testing.assert_close(torch.isinf(result.model(data())), torch.isinf(model(data())))


@pytest.mark.parametrize(
    "after",
    [
        lambda y, x: y + 1e4 * x[:, :1],  # an offset from the inputs alone, such as self-energies
        lambda y, x: y - 4e5,  # a constant
        lambda y, x: torch.cat([y, 1e3 * x], 1),  # inputs beside
    ],
    ids=["offset", "constant", "beside"],
)
def test_what_is_computed_from_the_inputs_alone_does_not_count(after):
    whole, inside = effect(Around(after))
    assert whole.change == pytest.approx(inside.change, rel=1e-3)


def test_a_series_that_is_put_back_to_its_mean_and_size_is_judged_by_what_the_network_says():
    """Reversible instance normalisation: mean and size of the input are given back to the output."""
    whole, _ = effect(Around(lambda y, x: y * (1 + x.std(1, keepdim=True)) + 300 * x.mean(1, keepdim=True)))
    plain, _ = effect(Around(lambda y, x: y * (1 + x.std(1, keepdim=True))))
    assert whole.change == pytest.approx(plain.change, rel=1e-6)


@given(st.lists(st.sampled_from([1e-4, 1.0, 3.0, 1e5]), min_size=4, max_size=4))
def test_columns_of_different_units_each_hold_the_bound(units):
    """In whatever units the columns are, the largest of the changes of columns of one unit is what counts."""
    scale = torch.tensor(units, dtype=torch.float64)
    model = mlp(3, 16, 4)
    with torch.no_grad():
        model[-1].weight.div_(model(data()).std(0)[:, None])
        model[-1].bias.zero_()
    tapes = record(model, [data()])
    old = model(data()).detach() * scale
    with torch.no_grad():
        model[-1].weight.mul_(scale[:, None])
    check = Check(model, tapes, le.Tolerance(), observe(model, tapes).layers)
    with torch.no_grad():
        model[-1].weight[0, :8] *= 1.3  # one of the columns, in whatever unit
    found = check.effect(model).change
    new = model(data()).detach()

    def of(columns):
        return ((new - old)[:, columns].norm() / (old - old.mean(0))[:, columns].norm()).item()

    same_unit = [number for number, unit in enumerate(units) if max(unit, units[0]) <= 3 * min(unit, units[0])]
    assert found == pytest.approx(of(same_unit), rel=1e-6)


def test_a_reason_names_the_columns_that_change_most():
    model = mlp(3, 16, 3)
    with torch.no_grad():
        model[-1].weight[1] *= 1e-4
        model[-1].bias[1] = 0.0
    tapes = record(model, [data()])
    check = Check(model, tapes, le.Tolerance(), observe(model, tapes).layers)
    with torch.no_grad():
        old = model(data())[:, 1]
        model[-1].weight[1] *= 1.2
        model[-1].bias[1] -= 0.2 * old.mean()
    found = check.effect(model)
    assert found.change == pytest.approx(0.2)
    assert check.refusal(found) == "change 0.2 > 0.05 in column 1"


def test_of_a_plain_network_it_is_the_spread_about_the_mean():
    model = mlp(3, 16, 4)
    tapes = record(model, data().split(100))
    check = Check(model, tapes, None, observe(model, tapes).layers)
    old = model(data()).detach()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(1.1)
    expected = (other(data()) - old).norm() / (old - old.mean(0)).norm()
    assert check.effect(other).change == pytest.approx(expected.item(), rel=1e-9)


def test_a_constant_column_counts_with_the_others():
    output = torch.cat([torch.randn(50, 2, dtype=torch.float64), torch.full((50, 1), 7.0).double()], 1)
    scale = Scale.of(output, None)
    assert len(scale.groups) == 1
    change, _, _ = scale.change(output + torch.tensor([0.0, 0.0, 0.1]), 50)
    assert change == pytest.approx(0.1 * 50**0.5 / (output - output.mean(0)).norm().item())
    assert Scale.of(torch.full((9, 2), torch.nan), None) is None
    assert Scale.of(F.relu(output).log(), None) is None  # infinite, and nothing says that it stays so
