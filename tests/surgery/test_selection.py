"""What may be touched: include= and exclude=, by name, pattern or module."""

import copy

import pytest
import torch
from torch import nn

import lightning_embed as le
from tests.surgery.steps import mlp


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = mlp(3, 24, 24, 8), mlp(8, 24, 24, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.encoder(x)))


def changed(before, after):
    """The Linears that are not as they were."""
    now = dict(after.named_modules())
    return {
        name
        for name, one in before.named_modules()
        if isinstance(one, nn.Linear)
        and not (
            isinstance(now[name], nn.Linear)
            and torch.equal(now[name].weight, one.weight)
            and torch.equal(now[name].bias, one.bias)
        )
    }


LOOSE = le.Tolerance(change=0.3)


@pytest.mark.parametrize(
    ("chosen", "touched"),
    [
        ({"include": "encoder"}, {"encoder.0", "encoder.2", "encoder.4"}),
        ({"include": "encoder.*"}, {"encoder.0", "encoder.2", "encoder.4"}),
        ({"include": ["head.0", "head.2"]}, {"head.0", "head.2"}),
        ({"include": "*", "exclude": "head"}, {"encoder.0", "encoder.2", "encoder.4"}),
        ({"exclude": "encoder.2"}, {"encoder.0", "encoder.4", "head.0", "head.2", "head.4"}),
        ({"include": "head", "exclude": "head.0"}, {"head.2", "head.4"}),
        ({"exclude": "*"}, set()),
    ],
)
@pytest.mark.parametrize(
    "size", [{}, {"criteria": le.Criteria(0.0, 0.9, 0.2)}, {"budget": 0.95}], ids=["tolerance", "thresholds", "budget"]
)
def test_nothing_else_is_touched_and_that_is(chosen, touched, size):
    model = Parts()
    before = copy.deepcopy(model)
    if "budget" in size and not touched:
        with pytest.raises(le.InputError, match="cannot leave less"):
            le.prune(model, data(), **size, **chosen)
        return
    tolerance = {} if "budget" in size else {"tolerance": LOOSE}
    result = le.prune(model, data(), **size, **chosen, **tolerance)
    assert changed(before, result.model) <= touched
    assert bool(changed(before, result.model)) == bool(touched)
    reasons = {one.layer: str(one.merge_neurons) for one in result.before.layers}
    untouched = {"encoder.0", "encoder.2", "encoder.4", "head.0", "head.2"} - touched
    assert all(reasons[name].startswith("excluded") for name in untouched)


def test_modules_stand_for_themselves_and_a_layer_that_is_read_stays_as_well():
    model = Parts()
    measured = le.measure(model, data(), exclude=[model.encoder[2], model.head])
    reasons = {one.layer: one.merge_neurons for one in measured.layers}
    assert reasons["encoder.2"] == reasons["head.0"] == reasons["head.2"] == "excluded"
    assert reasons["encoder.0"] == "excluded (encoder.2, which reads it)"
    assert reasons["encoder.4"] == "excluded (head.0, which reads it)"
    assert "excluded" in str(measured)
    assert len(le.propose(model, data(), criteria=le.Criteria(0.0, None, None), exclude=model)) == 0


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"include": "encodr"}, r"include names 'encodr', which matches no module\. Near are .*encoder"),
        ({"exclude": ["head", "tail.*"]}, r"exclude names 'tail\.\*', which matches no module"),
        ({"exclude": nn.Linear(1, 1)}, "a Linear that is no part of the model"),
        ({"include": [3]}, "takes names, patterns or modules, got 3"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(chosen, message):
    for call in (le.prune, le.measure, le.propose):
        with pytest.raises(le.InputError, match=message):
            call(Parts(), data(), **chosen)


def test_widths_of_an_excluded_layer_are_refused():
    with pytest.raises(le.InputError, match=r"cannot be reached: excluded"):
        le.prune(Parts(), data(), widths={"encoder.0": 3}, exclude="encoder")
