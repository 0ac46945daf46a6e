"""Offline: what is planted is found, the function is kept, the given model is left alone, bad input is refused."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_embed as le
from lightning_embed.operators import add_null_neurons, lift_layer, split_neuron
from tests.surgery.steps import mlp

EXACT = le.Criteria(linearization=1 - 1e-9, condensation=1 - 1e-9, span=1e-6)


def data(samples=400, columns=3, dtype=torch.float64):
    return torch.randn(samples, columns, dtype=dtype, generator=torch.Generator().manual_seed(1))


def snapshot(model):
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
    return copy.deepcopy(model.state_dict()), [one.training for one in model.modules()], hooks


def linear(weight, bias):
    new = nn.Linear(*weight.shape[::-1], bias=bias is not None, dtype=weight.dtype)
    new.weight.data = weight
    if bias is not None:
        new.bias.data = bias
    return new


def planted():
    """ReLU 3-5-4-2, then: a neuron split in three, a null neuron of either kind, a layer lifted before the last."""
    model = mlp(3, 5, 4, 2, activation=nn.ReLU)
    first, second, last = model[0], model[2], model[4]
    w_in, b_in, w_out = split_neuron(first.weight.data, first.bias.data, second.weight.data, 2, [0.5, -0.7, 1.2])
    w_in, b_in, w_out, b_out = add_null_neurons(
        w_in, b_in, w_out, second.bias.data, 1, bias=torch.tensor([0.3]).double(),
        output_weights=torch.randn(4, 1, dtype=torch.float64), values=torch.tensor([0.3]).double(),
    )  # fmt: skip
    hidden = nn.Sequential(linear(w_in, b_in), nn.ReLU(), linear(w_out, b_out), nn.ReLU())
    w1, b1, w2, b2 = lift_layer(
        last.weight.data, last.bias.data, hidden(data()).detach(), segment=(0.0, float("inf")), slope=1.0, intercept=0.0
    )
    return model, nn.Sequential(*hidden, linear(w1, b1), nn.ReLU(), linear(w2, b2))


def test_what_was_planted_is_found_and_the_narrow_network_recovered():
    narrow, wide = planted()
    torch.testing.assert_close(wide(data()), narrow(data()))
    before = snapshot(wide)
    result = le.prune(wide, data(), criteria=EXACT, tolerance=le.Tolerance(change=1e-5))
    assert result.model[0].out_features <= 5
    assert isinstance(result.model[4], nn.Identity)
    assert result.size[1].parameters <= sum(one.numel() for one in narrow.parameters())
    assert {one.criterion for one in result.records if one.done} >= {"null", "linearization"}
    torch.testing.assert_close(result.model(data(50)), narrow(data(50)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(before, snapshot(wide), rtol=0, atol=0)
    assert "lightning_embed" not in str(list(wide.state_dict()))


def test_looking_and_proposing_change_nothing_and_apply_carries_out_the_plan():
    _, wide = planted()
    before = snapshot(wide)
    measurement = le.measure(wide, data(), criteria=EXACT)
    plan = le.propose(wide, data(), criteria=EXACT)
    torch.testing.assert_close(before, snapshot(wide), rtol=0, atol=0)
    assert measurement.linear_layers(1 - 1e-9) == 1
    assert "0" in str(measurement)
    assert plan == le.Plan.from_dict(plan.to_dict())
    assert plan != le.Plan()
    once, again = copy.deepcopy(wide), copy.deepcopy(wide)
    le.apply(once, plan)
    le.apply(again, le.Plan.from_dict(plan.to_dict()))
    torch.testing.assert_close(once(data()), wide(data()), rtol=1e-6, atol=1e-6)
    assert torch.equal(once(data()), again(data()))
    with pytest.raises(le.InputError, match="Propose it anew"):
        le.apply(once, plan)


def test_nothing_is_merged_beyond_the_tolerance_and_records_say_why():
    model = mlp(3, 6, 6, 2)
    everything = le.Criteria(linearization=0.0, condensation=0.0, span=0.9)
    result = le.prune(model, data(), criteria=everything, tolerance=le.Tolerance(change=0.0))
    assert not any(one.done for one in result.records)
    assert all(one.reason.startswith("change ") for one in result.records)
    torch.testing.assert_close(dict(model.named_parameters()), dict(result.model.named_parameters()), rtol=0, atol=0)
    assert [one.training for one in model.modules()] == [one.training for one in result.model.modules()]
    kept = le.prune(model, data(), criteria=everything, tolerance=le.Tolerance(change=10.0, agreement=1.0))
    assert any("agreement" in one.reason for one in kept.records)
    assert "refused" in str(result)


def test_the_change_that_is_reported_is_that_of_the_outputs():
    model = mlp(3, 12, 12, 2)
    x = data()
    result = le.prune(model, x, criteria=le.Criteria(None, None, 0.05), tolerance=le.Tolerance(change=1.0))
    deciding = x[200:]
    old, new = model(deciding).detach(), result.model(deciding).detach()
    expected = ((new - old).norm() / (old - old.mean(0)).norm()).item()
    assert [one for one in result.records if one.done][-1].change == pytest.approx(expected, rel=1e-9)


def test_a_metric_of_the_users_own_decides_and_is_recorded():
    model, x = mlp(3, 12, 12, 2), data()
    for one in model.parameters():
        one.data *= 3
    flipped = model(x).argmax(1)
    flipped[::10] = 1 - flipped[::10]

    def accuracy(model):
        return (model(x).argmax(1) == flipped).double().mean()

    options = {"criteria": le.Criteria(linearization=0.0, condensation=0.0, span=0.5)}
    loose = le.prune(model, x, tolerance=le.Tolerance(change=10.0), **options)
    assert accuracy(loose.model) < 0.88
    assert all(one.metric is None for one in loose.records)
    result = le.prune(model, x, tolerance=le.Tolerance(change=10.0, metric=accuracy, drop=0.02), **options)
    assert accuracy(result.model) >= 0.88
    done = [one for one in result.records if one.done]
    assert done
    assert all(one.metric[0] == accuracy(model) for one in done)
    assert done[-1].metric[1] == accuracy(result.model)
    assert any(one.reason.startswith("metric falls by") for one in result.records)
    assert f"0.9000 → {done[-1].metric[1]:.4f}" in str(result)


def test_the_same_seed_gives_the_same_result_whatever_the_global_state():
    loader = DataLoader(TensorDataset(data(), torch.zeros(400)), batch_size=40, shuffle=True)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(le.prune(mlp(3, 20, 20, 2, seed=0), loader, seed=3))
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), state)
    assert results[0].plan == results[1].plan


def test_a_loader_may_have_no_end():
    def endless():
        while True:
            yield data(1024)

    assert le.measure(mlp(3, 4, 2), endless()).depth == 1


@pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")  # what bfloat16 cannot resolve
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    model, x = mlp(3, 10, 10, 2, dtype=dtype), data(dtype=dtype)
    result = le.prune(model, x, tolerance=le.Tolerance(change=0.1))
    assert all(one.dtype == dtype for one in result.model.parameters())
    assert bool(torch.isfinite(result.model(x)).all())


def test_frozen_weights_merge_and_stay_frozen():
    _, wide = planted()
    for parameter in wide[:3].parameters():
        parameter.requires_grad_(False)
    result = le.prune(wide, data(), criteria=EXACT, tolerance=le.Tolerance(change=1e-6))
    assert result.model[0].out_features <= 5
    assert not any(one.requires_grad for one in result.model[0].parameters())
    assert all(one.requires_grad for one in result.model[6].parameters())


def test_a_result_is_strict_json_that_tells_what_was_done():
    model = mlp(3, 6, 6, 2)
    model[2].weight.data.zero_()  # constant: its MPC is NaN
    model[4].bias.data += 1.0
    result = le.prune(model, data(), tolerance=le.Tolerance(metric=lambda model: 0.5))
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["size"]["before"] == vars(result.size[0])
    assert found["size"]["after"]["parameters"] == sum(one.numel() for one in result.model.parameters())
    assert [one["layer"] for one in found["before"]["layers"]] == ["0", "2"]
    assert found["before"]["layers"][1]["mpc"] is None
    assert found["after"]["refused"][0] == ["4", "is the model's output"]
    assert [le.Record.from_dict(one).layer for one in found["records"]] == [one.layer for one in result.records]
    assert found["records"][-1]["metric"] == [0.5, 0.5]


class Heads(nn.Module):
    """Two heads that read one layer, equally or not."""

    def __init__(self, *, equal):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 1)
        self.equal = equal

    def forward(self, x):
        h = self.body(x)
        return {"a": self.a(torch.relu(h)), "b": self.b(torch.relu(h) if self.equal else torch.tanh(h))}


def test_heads_that_read_the_same_values_are_refitted_together_others_each_by_itself():
    for equal in (True, False):
        torch.manual_seed(0)
        model = Heads(equal=equal).double()
        with torch.no_grad():
            model.body.weight[3:], model.body.bias[3:] = model.body.weight[:3], model.body.bias[:3]
        result = le.prune(model, data(), criteria=EXACT, tolerance=le.Tolerance(change=1e-6))
        assert result.model.body.out_features == 3
        torch.testing.assert_close(result.model(data()), model(data()), rtol=1e-5, atol=1e-5)
        assert len(result.plan.steps[0].fits) == (1 if equal else 2)


def test_batch_norm_is_merged_through_once_its_statistics_have_settled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
        model[0].weight *= 10
    lagging = le.prune(model, 5 + 3 * data(), criteria=EXACT, tolerance=le.Tolerance(change=1e-3))
    assert all("batch-norm statistics lag" in one.reason for one in lagging.records)
    assert lagging.model[0].out_features == 8
    model.train()
    for batch in (5 + 3 * data(8000)).split(100):
        model(batch)
    settled = le.prune(model, 5 + 3 * data(), criteria=EXACT, tolerance=le.Tolerance(change=1e-3))
    assert settled.model[0].out_features == settled.model[1].num_features == 4
    assert settled.model.training
    torch.testing.assert_close(settled.model.eval()(data()), model.eval()(data()), rtol=1e-5, atol=1e-5)


def test_condensation_looks_through_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 3 * model[0].weight[0], model[0].bias[0]
        model[1].running_var.fill_(1 - model[1].eps)
        model[1].weight[1], model[1].bias[1] = 1 / 3, 2 / 3 * model[0].bias[0]
    measured = le.measure(model, data())
    assert measured.layers[0].width_cosine == 3


def test_too_few_samples_are_refused_with_the_number_needed():
    model = mlp(3, 40, 2)
    result = le.prune(model, data(6))
    assert [one.reason for one in result.records] == ["too few samples (3 to fit, at least 8 are needed)"]


def test_no_parameter_is_cut_off_from_its_gradient():
    model = mlp(3, 4, 4, 2)
    with torch.no_grad():
        model[2].weight.zero_()
    result = le.prune(model, data(), criteria=le.Criteria(0.0, None, None), tolerance=le.Tolerance(change=1e6))
    out = result.model(data()).square().sum()
    out.backward()
    assert all(one.grad is not None for one in result.model.parameters())


# bad input: a clear error or a stated refusal, and the model as it was


class Dicts(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(3, 4, 2)

    def forward(self, x, scale):
        return {"logits": self.net(x) * scale, "class": self.net(x).argmax(1)}


@pytest.mark.parametrize("name", ["linearization", "condensation", "span"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.9"])
def test_thresholds_outside_0_to_1_are_refused(name, value):
    with pytest.raises(le.InputError, match=name):
        le.Criteria(**{name: value})


@pytest.mark.parametrize(
    "options", [{"change": -1}, {"change": float("nan")}, {"agreement": 1.5}, {"metric": 0.9}, {"drop": 0.1}]
)
def test_tolerances_that_mean_nothing_are_refused(options):
    with pytest.raises(le.InputError, match=next(iter(options))):
        le.Tolerance(**options)


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (mlp(3, 4, 2), [], "empty"),
        (mlp(3, 4, 2), torch.zeros(0, 3).double(), "empty"),
        (mlp(3, 4, 2), data(1), "single calibration sample"),
        (mlp(3, 4, 2), [data(1)], "single calibration sample"),
        (mlp(3, 4, 2), 7, "data must be"),
        (mlp(3, 4, 2), "digits", "data must be"),
        (nn.Sequential(nn.ReLU()), torch.zeros(4, 3), "no nn.Linear"),
        ("net", data(), "torch.nn.Module"),
        (mlp(3, 4, 2), data() * float("nan"), "NaN or infinite"),
        (mlp(3, 4, 2), data().float(), "call="),
        (mlp(3, 4, 2).to("meta"), data(), "meta"),
        (mlp(3, 4, 2).bfloat16(), data().float(), "call="),
        (Dicts(), [{"x": data(), "scale": 2.0}] * 2, "call="),
    ],
)
def test_bad_data_and_models_are_refused(model, batches, message):
    before = snapshot(model) if isinstance(model, nn.Module) else None
    for verb in (le.prune, le.propose, le.measure):
        if verb is le.measure and "NaN" in message:
            continue
        with pytest.raises(le.InputError, match=message):
            verb(model, batches)
    if before is not None and "meta" not in message:
        torch.testing.assert_close(before, snapshot(model), rtol=0, atol=0)


def test_measuring_nan_activations_says_nan():
    assert le.measure(mlp(3, 4, 2), data() * float("nan")).layers[0].mpc != 1.0


def test_call_and_output_say_how_to_run_and_what_to_compare():
    model = Dicts()
    result = le.prune(
        model,
        [{"x": data(), "scale": 2.0}] * 4,
        call=lambda batch: model(**batch),
        output=lambda outputs: outputs["logits"],
    )
    assert result.before.layers[0].layer == "net.0"
    with pytest.raises(le.InputError, match="output="):
        le.prune(model, [{"x": data(), "scale": 2.0}] * 4, call=lambda b: model(**b), output=lambda o: o["class"])
    with pytest.raises(le.InputError, match="agreement"):
        le.prune(mlp(3, 4, 1), data(), tolerance=le.Tolerance(agreement=0.9))


def test_a_model_without_a_hidden_layer_is_measured_as_such():
    result = le.prune(mlp(3, 2), data())
    assert result.records == ()
    assert result.before.depth == 0
    assert result.before.refused == (("0", "is the model's output"),)
    assert "nothing was nominated" in str(result)


def test_a_trained_layer_is_not_merged_into_a_frozen_one():
    model = mlp(3, 5, 5, 2, activation=nn.Identity)
    model[4].requires_grad_(False)
    result = le.prune(model, data(), criteria=le.Criteria(0.99, None, None))
    assert [(one.layer, one.done, one.reason) for one in result.records] == [
        ("2", False, "frozen beside trainable"),
        ("0", True, ""),
    ]


def test_values_that_are_not_finite_inside_are_refused_by_layer():
    model = mlp(3, 5, 5, 2)
    with torch.no_grad():
        model[0].bias[0] = float("inf")
    result = le.prune(model, data(), tolerance=le.Tolerance(change=0.5))
    assert ("0", "all", "values not finite") in [(one.layer, one.criterion, one.reason) for one in result.records]
    assert torch.equal(result.model[0].weight, model[0].weight)


def test_apply_is_in_the_history_and_lost_gradient_hooks_are_told(caplog):
    _, wide = planted()
    handle = wide[0].weight.register_hook(lambda gradient: gradient)
    plan = le.propose(wide, data(), criteria=EXACT)
    le.apply(wide, plan)
    assert [one["layer"] for one in le.attach(wide).history] == [step.layer for step in plan]
    assert "had gradient hooks" in caplog.text
    handle.remove()


@pytest.mark.parametrize("fused", [True, False])
def test_flops_are_those_of_the_products(fused):
    result = le.prune(mlp(3, 5, 2), data())
    assert result.size[0].flops == 2 * (3 * 5 + 5 * 2)
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), 1).eval()
    torch.backends.mha.set_fastpath_enabled(fused)
    flops = le.prune(encoder, torch.randn(20, 4, 8)).size[0].flops
    assert torch.backends.mha.get_fastpath_enabled() == fused
    torch.backends.mha.set_fastpath_enabled(True)
    projections, attention, feed_forward = 4 * (4 * 8 * 8), 2 * (4 * 4 * 8), 2 * (4 * 8 * 16)
    # older versions of torch count no attention on the CPU
    assert flops in {2 * (projections + feed_forward), 2 * (projections + attention + feed_forward)}


def test_condensation_counts_the_running_mean_of_a_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        first, norm = model[0], model[1]
        first.weight[1], first.bias[1] = 3 * first.weight[0], first.bias[0]
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean[:2] = torch.tensor([0.3, 0.6])
        norm.weight[1], norm.bias[1] = 1 / 3, 2 / 3 * first.bias[0] - 0.1  # both: w x + b - 0.3
        torch.testing.assert_close(model[:2](data())[:, 0], model[:2](data())[:, 1])
    assert le.measure(model, data(), criteria=le.Criteria(condensation=1 - 1e-9)).layers[0].width_cosine == 3


def test_a_layer_that_is_constant_throughout_is_linear_and_merged_whole():
    model = mlp(3, 5, 4, 2)
    with torch.no_grad():
        model[2].weight.zero_()
    model[4].bias.data += 1.0
    x = data()
    constant = le.measure(model, x)
    assert constant.layers[1].constant == 4
    assert constant.linear_layers(0.9999) == 1
    plan = le.propose(model, x, criteria=le.Criteria(0.9999, None, None))
    assert [step.kind for step in plan if step.layer == "2"] == ["layer"]
    before = model(x)
    le.apply(model, plan)
    torch.testing.assert_close(model(x), before)


def test_span_counts_what_the_consumers_read():
    model = mlp(3, 3, 2, activation=nn.Identity)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[2].weight.copy_(torch.tensor([[1.0, 1e-5, 0.0], [2.0, 0.0, 1e-5]]))
    only = le.Criteria(None, None, 0.01)
    assert le.measure(model, data(), criteria=only).layers[0].width_span == 1
    [step] = le.propose(model, data(), criteria=only)
    assert step.kept == (0,)


def test_what_is_printed_says_what_a_reason_means():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    shown = str(le.measure(Functional().double(), data()))
    assert "activation in code (tanh)" in shown
    assert "use a module for it" in shown
    few = le.prune(mlp(3, 40, 2), data(6))
    assert "at least 8 are needed" in str(few)
    assert "give more" in str(few)
