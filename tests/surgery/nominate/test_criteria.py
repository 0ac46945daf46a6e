"""What is nominated when some criteria are left out, and the milder steps after a refusal."""

import itertools

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery.nominate.criterion import LayerView
from lightning_embed.surgery.nominate.features import collect_features
from lightning_embed.surgery.nominate.size import milder
from lightning_embed.surgery.nominate.span import SpanCriterion
from lightning_embed.tape import record
from tests.statistics.test_span import missing
from tests.surgery.steps import mlp


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def redundant():
    """3-9-8-8-2: a null neuron and two copies in the first layer, a linear layer third."""
    model = mlp(3, 9, 8, 8, 2)
    with torch.no_grad():
        model[0].weight[0] = 0.0
        model[0].weight[2:4], model[0].bias[2:4] = model[0].weight[1], model[0].bias[1]
        model[4].weight *= 1e-3
    return model


@pytest.mark.parametrize("given", [*itertools.product([True, False], repeat=3)])
def test_any_of_the_three_criteria_may_be_none(given):
    values = [one if use else None for one, use in zip((1 - 1e-5, 1 - 1e-9, 1e-7), given, strict=True)]
    result = le.prune(redundant(), data(), criteria=le.Criteria(*values))
    seen = {one.criterion for one in result.records} - {"reconstruction"}
    allowed = {name for name, use in zip(("linearization", "condensation", "span"), given, strict=True) if use}
    assert seen - {"null"} <= allowed
    assert isinstance(result.model[4], nn.Identity) == given[0]
    assert result.model[0].out_features == (6 if given[1] or given[2] else 8)
    measured = result.before.layers[0]
    assert (measured.width_cosine is None, measured.width_span is None) == (not given[1], not given[2])
    assert str(result)
    plan = le.propose(redundant(), data(), criteria=le.Criteria(*values))
    assert {getattr(step, "criterion", "linearization") for step in plan if step.kind != "reconstruction"} == seen


def layer_of(model, samples=400):
    tapes = record(model, [data(samples)])
    graph = observe(model, tapes)
    layer = graph.layers[0]
    return LayerView(model, graph, layer, collect_features(model, [layer], tapes)[layer.name])


def test_milder_steps_cut_a_half_a_quarter_and_an_eighth_and_carry_more_each():
    model = mlp(3, 20, 20, 2, activation=nn.ReLU)
    view = layer_of(model)
    [bold] = SpanCriterion(0.5).nominate(view)
    cut = 20 - len(bold.kept)
    steps = milder(view, bold)
    assert [len(one.kept) for one in steps] == [20 - cut // 2, 20 - cut // 4, 20 - cut // 8]
    left = [missing(view.features.post, model[2].weight.detach(), one.kept) for one in (bold, *steps)]
    assert left == sorted(left, reverse=True)
    assert {one.criterion for one in steps} == {"span"}


def test_no_step_is_tried_twice():
    model = mlp(3, 12, 4, 2)
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4].repeat(2, 1), model[0].bias[:4].repeat(2)
    view = layer_of(model)
    [exact] = SpanCriterion(1e-9).nominate(view)
    assert len(exact.kept) == 4
    assert milder(view, exact) == []  # 8, 10 and 11 neurons say no more than those 4


def test_after_a_refusal_the_boldest_of_the_milder_steps_that_is_allowed():
    model = mlp(3, 24, 24, 2, activation=nn.ReLU)
    criteria = le.Criteria(None, None, 0.5)
    result = le.prune(model, data(), criteria=criteria, tolerance=le.Tolerance(change=0.1))
    first = [one for one in result.records if one.layer == "0" and one.criterion == "span"]
    assert [one.done for one in first] == [*[False] * (len(first) - 1), True]
    assert len(first) > 1
    changes = [one.change for one in first]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] <= 0.1 < changes[-2]


@pytest.mark.parametrize("after", [False, True])
def test_condensation_sees_a_batch_norm_inside_a_container_or_behind_the_activation(after):
    torch.manual_seed(0)
    inside = [nn.Tanh(), nn.BatchNorm1d(5)] if after else [nn.BatchNorm1d(5), nn.Tanh()]
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(*inside), nn.Linear(5, 2)).double().eval()
    with torch.no_grad():
        model[0].weight[3:], model[0].bias[3:] = model[0].weight[0], model[0].bias[0]
    assert le.measure(model, data(), criteria=le.Criteria(condensation=1 - 1e-9)).layers[0].width_cosine == 3
    with torch.no_grad():
        next(one for one in model[1] if isinstance(one, nn.BatchNorm1d)).running_mean[3] += 1.0
    left = 3 if after else 4  # behind the activation another mean leaves the feature the same, up to the constant
    assert le.measure(model, data(), criteria=le.Criteria(condensation=1 - 1e-9)).layers[0].width_cosine == left


def test_a_neuron_that_is_constant_on_the_fitting_half_alone_does_not_save_the_null_ones():
    model = mlp(3, 6, 2, activation=nn.ReLU)
    x = data()
    x[:200, 0], x[200:, 0] = -x[:200, 0].abs(), x[200:, 0].abs()  # the second half decides
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = torch.tensor([3.0, 0.0, 0.0]), 0.0
        model[0].weight[1] = 0.0
        model[0].weight[2], model[0].bias[2], model[2].weight[:, 2] = 0.1, -9.0, 0.0  # never active, and not read
    result = le.prune(model, x, criteria=le.Criteria(None, None, None))
    seen = [(one.criterion, one.done, one.evidence["constant"]) for one in result.records]
    assert seen == [("null", False, 3), ("null", True, 2)]
    torch.testing.assert_close(result.model(x), model(x))


class Variance(le.Criterion):
    """Keeps the neurons whose features vary most."""

    name = "variance"

    def nominate(self, view):
        return [view.keep(self.kept(view), self.name, {"share": 0.01})]

    def kept(self, view):
        spread = view.features.post.var(dim=0)
        return (spread >= 0.01 * spread.max()).nonzero().flatten().tolist()

    def kept_width(self, view):
        return len(self.kept(view))


def dim_half():
    model = mlp(3, 8, 2)
    model[0].weight.data[4:] *= 1e-3
    model[0].bias.data[4:] *= 1e-3
    return model


def test_a_criterion_of_the_users_is_tried_measured_and_recorded_like_the_others():
    criteria = le.Criteria(None, None, None, extra=(Variance(),))
    result = le.prune(dim_half(), data(), criteria=criteria)
    first = result.records[0]
    assert (first.criterion, first.done, first.width, first.evidence) == ("variance", True, (8, 4), {"share": 0.01})
    assert {one.criterion for one in result.records} <= {"variance", "reconstruction"}
    assert result.before.layers[0].widths == {"variance": 4}
    assert result.to_dict()["before"]["layers"][0]["widths"] == {"variance": 4}
    torch.testing.assert_close(result.model(data()), dim_half()(data()), rtol=0, atol=1e-3)


def test_beside_the_built_in_criteria_the_boldest_is_tried_first():
    model = dim_half()
    model[0].weight.data[2:4], model[0].bias.data[2:4] = model[0].weight.data[:2], model[0].bias.data[:2]
    plan = le.propose(model, data(), criteria=le.Criteria(None, 0.999, None, extra=(Variance(),)))
    assert plan.steps[0].criterion == "variance"


@pytest.mark.parametrize(
    ("extra", "message"),
    [((lambda view: [],), "subclass of Criterion"), ((Variance(), Variance()), "of the name 'variance' already")],
)
def test_what_is_no_criterion_or_has_a_known_name_is_refused(extra, message):
    with pytest.raises(le.InputError, match=message):
        le.Criteria(extra=extra)
