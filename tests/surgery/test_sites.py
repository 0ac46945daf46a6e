"""Hidden layers of several producers and reads, carried through the whole of surgery."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery import NeuronMerge
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.decide.factors import scaled_entries
from lightning_embed.surgery.decide.merging import merge
from lightning_embed.surgery.decide.targets import Targets
from lightning_embed.surgery.nominate.counting import Count
from lightning_embed.tape import deal, record
from tests.surgery.steps import mlp, neuron_merge

WIDTH = 12


class Gate(nn.Module):
    """silu(g(x)) · u(x), packed in one Linear or not."""

    def __init__(self, packed=False):
        super().__init__()
        self.packed = packed
        if packed:
            self.both = nn.Linear(4, 2 * WIDTH)
        else:
            self.g, self.u = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x):
        g, u = self.both(x).chunk(2, -1) if self.packed else (self.g(x), self.u(x))
        return self.out(F.silu(g) * u)


class Stage(nn.Module):
    """A residual stage: two producers of one hidden layer, read twice, by functions that differ."""

    def __init__(self):
        super().__init__()
        self.stem, self.up, self.down, self.out = (
            nn.Linear(4, WIDTH),
            nn.Linear(WIDTH, 9),
            nn.Linear(9, WIDTH),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, x):
        h = self.stem(x)
        h = h + self.down(torch.tanh(self.up(torch.relu(h))))
        return self.out(torch.tanh(h))


class Towers(nn.Module):
    """Two towers and the raw input side by side in one reader."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, WIDTH), nn.Linear(4, 7), nn.Linear(WIDTH + 7 + 4, 3)

    def forward(self, x):
        return self.out(torch.cat([torch.tanh(self.a(x)), x, torch.tanh(self.b(x))], -1))


def build(make, *arguments):
    torch.manual_seed(0)
    return make(*arguments).double()


def data(samples=400, seed=1):
    return torch.randn(samples, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def with_copies(model, names, scaled=(), size=0.5):
    """Every second neuron a copy of the one before it, in all producers; of those named in `scaled` at another size."""
    for name in names:
        linear = model.get_submodule(name)
        factor = size if name in scaled else 1.0
        linear.weight[1::2], linear.bias[1::2] = factor * linear.weight[::2], factor * linear.bias[::2]
    return model


def the_only_layer(model):
    (layer,) = observe(model, record(model, [data()])).layers
    return layer


CASES = [
    pytest.param(lambda: with_copies(build(Gate), ["g", "u"]), {"g": 6}, id="gate"),
    pytest.param(lambda: with_copies(build(Gate, True), ["both"]), {"both": 6}, id="packed"),
    pytest.param(lambda: with_copies(build(Stage), ["stem", "down"]), {"down": 6}, id="stage"),
    pytest.param(lambda: with_copies(build(Towers), ["a"]), {"a": 6}, id="towers"),
]


@pytest.mark.parametrize(("make", "widths"), CASES)
def test_copies_go_by_every_criterion_and_nothing_changes(make, widths):
    model, x = make(), data(seed=2)
    for options in (
        {"widths": widths},
        {"criteria": le.Criteria(None, None, 1e-6)},
        {"criteria": le.Criteria(None, 1 - 1e-9, None)},
    ):
        result = le.prune(model, data(), **options)
        (merged,) = [step for step in result.plan if isinstance(step, NeuronMerge) and step.layer in {*widths, "stem"}]
        assert merged.widths == (WIDTH, 6)
        torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-7)
        assert result.size[1].parameters < result.size[0].parameters


@pytest.mark.parametrize(("make", "widths"), CASES)
def test_widened_again_the_function_stays_and_the_copies_part_their_columns(make, widths):
    model = make()
    wide = le.widen(model, dict.fromkeys(widths, 20), data())
    torch.testing.assert_close(wide(data(seed=2)), model(data(seed=2)), rtol=0, atol=1e-10)
    narrow = le.prune(wide, data(), widths=widths).model
    torch.testing.assert_close(narrow(data(seed=2)), model(data(seed=2)), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("make", "widths"), CASES)
def test_parameters_are_foretold_as_they_are_counted(make, widths):
    model = make()
    graph = observe(model, record(model, [data()]))
    result = le.prune(model, data(), widths=widths)
    left = {
        layer.name: next((w for n, w in widths.items() if n in layer.producers), layer.width) for layer in graph.layers
    }
    assert Count(model, graph.layers)(left) == parameter_count(result.model)
    budget = le.prune(model, data(), budget=0.7)
    assert budget.size[1].parameters <= 0.7 * budget.size[0].parameters


def test_what_is_nobodys_stays_bit_for_bit():
    model = build(Towers)
    result = le.prune(model, data(), widths={"a": 3})
    apart = le.Plan(tuple(step for step in result.plan if isinstance(step, NeuronMerge)))
    narrow = copy.deepcopy(model)
    le.apply(narrow, apart)
    assert torch.equal(narrow.out.weight[:, 3:], model.out.weight[:, WIDTH:])
    assert torch.equal(narrow.b.weight, model.b.weight)


def test_a_neuron_is_null_only_if_it_is_constant_in_all_that_is_read():
    model = build(Stage)
    with torch.no_grad():
        model.stem.weight[:2], model.stem.bias[:2] = 0.0, -1.0
        model.down.weight[0], model.down.bias[0] = 0.0, 0.0  # 0 is constant throughout; 1 is not behind the sum
    result = le.prune(model, data(), criteria=le.Criteria(None, None, None))
    (step,) = [step for step in result.plan if isinstance(step, NeuronMerge)]
    assert step.kept == tuple(range(1, WIDTH))
    torch.testing.assert_close(result.model(data(seed=2)), model(data(seed=2)))


def test_readers_of_different_values_have_a_mix_each():
    model = with_copies(build(Stage), ["stem", "down"])
    (step,) = [
        step for step in le.propose(model, data(), criteria=le.Criteria(None, None, 1e-6)) if step.layer == "stem"
    ]
    assert [fit.readers for fit in step.fits] == [("up",), ("out",)]


def test_a_later_merge_is_refitted_to_what_was_read_at_first():
    """The second merge of a stage makes up for what the first has changed: kept neurons too are refitted."""
    plan = le.prune(build(Stage), data(), widths={"up": 3, "down": 9}).plan
    merges = [step for step in plan if isinstance(step, NeuronMerge)]
    alone = [step for step in le.prune(build(Stage), data(), widths={"down": 9}).plan if isinstance(step, NeuronMerge)]
    identity = torch.eye(9, dtype=torch.float64)
    assert [step.layer for step in merges] == ["stem", "up"]
    assert all(torch.equal(fit.mix[list(step.kept)], identity) for step in alone for fit in step.fits)
    again = le.prune(build(Stage), data(), widths={"up": 3})
    (layer,) = [one for one in observe(again.model, record(again.model, [data()])).layers if one.name == "stem"]
    tapes = record(build(Stage), [data()])
    targets = Targets(build(Stage), observe(build(Stage), tapes).layers, tapes)
    known = targets.of(layer, {"up": torch.tensor(merges[1].kept)})
    assert set(known) == {"up", "out"}
    x = data()
    model = build(Stage)
    torch.testing.assert_close(known["up"], torch.relu(model.stem(x)).detach())
    fewer = targets.of(layer, {"stem": torch.arange(WIDTH).flip(0)})
    assert torch.equal(fewer["up"], known["up"].flip(1))


def test_a_plan_of_the_first_format_is_read():
    step = neuron_merge(with_pairs(), [[0, 1], [2, 3]])
    old = {
        "kind": "neurons",
        "layer": "0",
        "consumers": ["2"],
        "per_neuron": [],
        "kept": list(step.kept),
        "mix": step.mix.tolist(),
        "shift": step.shift.tolist(),
        "criterion": "condensation",
        "evidence": {"cosine": 1.0},
    }
    first, second = with_pairs(), with_pairs()
    le.apply(first, le.Plan.from_dict(json.loads(json.dumps({"steps": [old]}))))
    le.apply(second, le.Plan((step,)))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def with_pairs():
    model = mlp(4, 6, 2)
    with torch.no_grad():
        model[0].weight[1::2], model[0].bias[1::2] = model[0].weight[::2], model[0].bias[::2]
    return model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: build(Gate), {"g": (False,), "u": (True,)}),
        (lambda: build(Gate, True), {"both": (False, True)}),
    ],
)
def test_of_a_gate_the_gated_value_scales(make, expected):
    model = make()
    assert scaled_entries(model, the_only_layer(model), record(model, [data()])[0]) == expected


def test_the_summands_of_a_stage_scale_together_and_a_single_layer_is_not_asked():
    for model in (build(Stage), build(Towers)):
        tape = record(model, [data()])[0]
        for layer in observe(model, [tape]).layers:
            assert scaled_entries(model, layer, tape) == {}


@pytest.mark.parametrize("packed", [False, True])
def test_moments_of_a_gate_are_those_of_the_narrow_network(packed):
    """Exactly: what Adam gathers of the wide network's gradients is, summed up, what it would of the narrow one's."""
    model = build(Gate, packed)
    with torch.no_grad():
        if packed:
            rows, bias = model.both.weight, model.both.bias
            for part, factor in ((slice(0, WIDTH), 1.0), (slice(WIDTH, None), -0.5)):
                weight, offset = rows[part], bias[part]
                weight[1::2], offset[1::2] = factor * weight[::2], factor * offset[::2]
        else:
            with_copies(model, ["g", "u"], scaled=["u"], size=-0.5)
    wide = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    gather(model, optimizer)
    fit, decide = deal(record(model, list(data().split(100))))
    plan = merge(
        model, fit, decide, criteria=le.Criteria(None, None, 1e-6), tolerance=le.Tolerance(1e-4), optimizers=[optimizer]
    ).plan
    assert [step.widths for step in plan] == [(WIDTH, 6)]
    le.apply(wide, plan)  # narrow now
    twin = torch.optim.Adam(wide.parameters(), lr=0.0)
    gather(wide, twin)
    for name, parameter in wide.named_parameters():
        moved = optimizer.state[model.get_parameter(name)]["exp_avg"]
        torch.testing.assert_close(moved, twin.state[parameter]["exp_avg"], rtol=1e-5, atol=1e-5)


def gather(model, optimizer):
    model(data(seed=3)).square().sum().backward()
    optimizer.step()


def test_averaged_copies_and_checkpoints_follow():
    model = with_copies(build(Gate, True), ["both"])
    average = copy.deepcopy(model)
    fit, decide = deal(record(model, list(data().split(100))))
    merge(model, fit, decide, criteria=le.Criteria(None, None, 1e-6), tolerance=le.Tolerance(1e-4), copies=[average])
    torch.testing.assert_close(average(data()), model(data()), rtol=0, atol=1e-6)
    fresh = build(Gate, True)
    le.attach(fresh)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(data()), model(data()), rtol=0, atol=0)


def test_a_report_tells_what_is_cut_together():
    result = le.prune(build(Gate), data(), widths={"g": 5})
    shapes = {shape.name: shape for shape in result.snapshots[0].layers}
    assert (shapes["g"].beside, shapes["u"].beside) == (("u",), ("g",))
    assert shapes["u"].hidden
    assert shapes["u"].reason == ""
    assert "with u" in str(result.plan)


def test_widths_by_two_names_of_one_layer_are_refused():
    with pytest.raises(le.InputError, match="names the layer 'g' twice"):
        le.prune(build(Gate), data(), widths={"g": 5, "u": 4})
    assert le.prune(build(Gate), data(), widths={"u": 5}).model.g.out_features == 5
