"""The check: change, agreement and lost gradients by their definitions; when running statistics count as settled."""

import math

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.surgery.decide.check import Check, batch_norm_lag
from lightning_embed.tape import record


class Scores(nn.Module):
    """Two tensors of scores for sequences, each with its own factors."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
        self.pick = slice(None)

    def forward(self, x):
        return x[..., :3] * self.a, (x * self.b)[self.pick]


def test_the_worst_of_several_outputs_counts_by_positions():
    model, x = Scores(), torch.randn(50, 7, 4, generator=torch.Generator().manual_seed(0))
    check = Check(model, record(model, [x]), le.Tolerance(change=10.0, agreement=0.9))
    with torch.no_grad():
        model.b[0] = -1.0
    effect = check.effect(model)
    old, new = x.reshape(-1, 4), (x * model.b.detach()).reshape(-1, 4)
    assert effect.change == pytest.approx(((new - old).norm() / (old - old.mean(0)).norm()).item(), rel=1e-5)
    assert effect.agreement == (old.argmax(1) == new.argmax(1)).double().mean().item() < 0.9
    assert check.refusal(effect).startswith("agreement")


def test_a_parameter_that_would_get_no_gradient_any_more_is_a_refusal():
    model, x = Scores(), torch.randn(50, 4)
    check = Check(model, record(model, [x]), None)
    assert check.refusal(check.effect(model)) == ""
    model.forward = lambda x: (x[..., :3] * model.a, x * model.b.detach())
    assert check.refusal(check.effect(model)) == "b would get no gradient any more"


def test_other_shapes_and_calls_that_fail_are_refusals():
    model, x = Scores(), torch.randn(50, 4)
    check = Check(model, record(model, [x]), le.Tolerance(change=math.inf))
    model.pick = slice(0, 20)
    assert check.refusal(check.effect(model)) == "the shapes of the outputs change"
    model.b = nn.Parameter(torch.ones(9))
    assert check.refusal(check.effect(model)).startswith("the calibration calls fail")


class Scale(nn.Module):
    """One number that the metrics below read."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return self.a * x


def scale_check(metric, **options):
    model = Scale()
    return model, Check(
        model, record(model, [torch.tensor([[1.0, -1.0], [-1.0, 1.0]])]), le.Tolerance(metric=metric, **options)
    )


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (1.0, ""),
        (2.0, ""),
        (0.9, ""),
        (0.89, "metric falls by 0.11 > 0.1"),
        (0.3, "change 0.7 > 0.5"),
    ],
)
def test_the_metric_may_not_fall_by_more_than_the_drop_below_its_value_at_the_start(value, refusal):
    seen = []

    def metric(model):
        seen.append(model.a.item())
        return model.a

    model, check = scale_check(metric, change=0.5 if value < 1 else math.inf, drop=0.1)
    with torch.no_grad():
        model.a.fill_(value)
    effect = check.effect(model)
    assert check.refusal(effect) == refusal
    asked = not refusal.startswith("change")  # it may be costly, so the other bounds come first
    assert seen == pytest.approx([1.0, value] if asked else [1.0])
    assert effect.metric == (pytest.approx((1.0, value)) if asked else None)


def test_a_metric_finds_the_model_in_eval_mode_and_leaves_no_trace_on_it():
    def metric(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        model.calls += 1
        model.train(len(seen) > 0)
        model.kept = torch.rand(1)
        seen.append(model.calls.item())
        return 1

    seen = []
    random = torch.get_rng_state()
    model = Scale()
    tapes = record(model, [torch.linspace(0, 1, 50)])
    for training in (True, False):
        model.train(training)
        check = Check(model, tapes, le.Tolerance(metric=metric))
        assert check.refusal(check.effect(model)) == ""
        assert model.training == training
    assert seen == [1.0] * 4
    assert model.calls.item() == 0.0
    assert not hasattr(model, "kept")
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("bad", [None, "0.9", math.nan, -math.inf, torch.ones(2)])
def test_a_metric_that_gives_no_number_is_told_at_the_start_and_refused_later(bad):
    with pytest.raises(le.InputError, match=r"metric=…\) must return a finite number"):
        scale_check(lambda model: bad)
    model, check = scale_check(lambda model: 1.0 if model.a == 1.0 else bad)
    with torch.no_grad():
        model.a.fill_(1.01)
    assert "must return a finite number" in check.refusal(check.effect(model))


def test_a_metric_that_fails_is_told_at_the_start_and_refused_later():
    def fails(model):
        raise KeyError("validation")

    with pytest.raises(le.InputError, match="fails on the model: KeyError: 'validation'"):
        scale_check(fails)
    model, check = scale_check(lambda model: 1.0 if model.a == 1.0 else fails(model))
    with torch.no_grad():
        model.a.fill_(1.01)
    assert "KeyError" in check.refusal(check.effect(model))


@pytest.mark.parametrize(
    ("samples", "shift", "lags"),
    [(400, 0.14, False), (400, 0.16, True), (16, 0.74, False), (16, 0.76, True), (4, 0.9, False), (4, 1.1, True)],
)
def test_running_statistics_lag_beyond_three_over_the_root_of_the_batch_size_and_never_beyond_one(samples, shift, lags):
    norm = nn.BatchNorm1d(1, eps=1e-12, affine=False)
    model = nn.Sequential(norm, nn.Linear(1, 1)).double().eval()
    x = torch.ones(samples, 1, dtype=torch.float64)
    x[::2] = -1.0  # mean 0 and variance 1: a running mean of `shift` moves the outputs by that share of their spread
    norm.running_mean.fill_(shift)
    reason = batch_norm_lag(model, record(model, [x]))
    assert (reason is not None) == lags
    assert norm.running_mean.item() == shift


@pytest.mark.parametrize(("moved", "lags"), [(0.0, False), (1.0, True)])
def test_batches_that_scatter_about_settled_statistics_are_no_lag(moved, lags):
    torch.manual_seed(0)
    x = torch.randn(1024, 3, dtype=torch.float64) ** 5  # a batch of 64 often misses what carries the variance
    norm = nn.BatchNorm1d(3, affine=False, momentum=None).double()
    norm(x)
    norm.running_mean += moved * norm.running_var.sqrt()
    model = nn.Sequential(norm, nn.Linear(3, 2).double()).eval()
    reason = batch_norm_lag(model, record(model, [*x.split(64), x[:2]]))
    assert (reason is not None) == lags


def test_the_standard_error_is_that_of_many_draws_and_falls_with_the_root_of_the_samples():
    """Draws of samples from one population: how far their changes scatter is what each of them foretells."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return x[:, :2] + self.a * x[:, 2:] ** 3  # a few samples make most of the change

    def effect(samples, seed):
        model = Noisy()
        x = torch.randn(samples, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        check = Check(model, record(model, x.split(samples // 2)), None)
        with torch.no_grad():
            model.a.fill_(0.1)
        return check.effect(model)

    told = {}
    for samples in (200, 800):
        effects = [effect(samples, seed) for seed in range(60)]
        scatter = torch.tensor([one.change for one in effects]).std().item()
        told[samples] = torch.tensor([one.error for one in effects]).mean().item()
        assert told[samples] == pytest.approx(scatter, rel=0.35)
    assert told[200] == pytest.approx(2 * told[800], rel=0.3)


def test_on_few_samples_the_upper_end_decides():
    model = nn.Linear(4, 2)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    tapes = record(model, [x])
    before = Check(model, tapes, None)
    with torch.no_grad():
        model.weight[0, 0] += 0.3
    effect = before.effect(model)
    assert effect.error > 0.01 * effect.change
    bound = effect.change + 0.5 * effect.error
    refusal = Check(nn.Linear(4, 2), tapes, le.Tolerance(change=bound)).refusal(effect)
    assert refusal == f"change {effect.change:.4g} ± {effect.error:.2g} on few samples may be > {bound:g}"
    assert Check(nn.Linear(4, 2), tapes, le.Tolerance(change=effect.change + effect.error)).refusal(effect) == ""
