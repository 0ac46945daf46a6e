"""Budgets of parameters, operations and time: each is kept in its own unit."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.surgery.decide import sizing


def images(samples=128):
    return torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def small_vgg():
    """Operations sit in the convolutions, parameters in the Linears."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 64, 64),
        nn.ReLU(),
        nn.Linear(64, 4),
    )


def one_by_one():
    """Grouped and transposed convolutions, and attention between the values and what reads them."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 3, 1),
    )


@pytest.mark.parametrize("make", [small_vgg, one_by_one])
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_each_budget_is_kept_in_its_own_unit(make, share):
    left = {}
    for of in ("parameters", "flops"):
        was, became = le.prune(make(), images(), budget=share, of=of, match=False).size
        left[of] = {name: getattr(became, name) / getattr(was, name) for name in ("parameters", "flops")}
        assert 0.8 * share <= left[of][of] <= share
    if make is small_vgg:
        assert left["parameters"]["flops"] > 1.2 * left["flops"]["flops"]  # parameters go where operations are not


def test_time_is_measured_in_turn_with_the_whole_model(monkeypatch):
    """The clock is replaced by one that counts parameters and runs slower and slower: the share is seen even so."""
    ticks = iter(range(1, 10_000))

    def clock(model, tape, runs=1):
        return sum(one.numel() for one in model.parameters()) * (1 + next(ticks) / 100)

    monkeypatch.setattr(sizing, "latency", clock)
    was, became = le.prune(small_vgg(), images(), budget=0.5, of="latency", match=False).size
    assert 0.35 <= became.parameters / was.parameters <= 0.51


def test_a_time_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(sizing, "latency", lambda model, tape, runs=1: 1.0)
    with pytest.raises(le.InputError, match=r"cannot leave less than 1 of the model's latency, 0\.5 is asked for"):
        le.prune(small_vgg(), images(), budget=0.5, of="latency")


def test_what_is_counted_must_be_known():
    with pytest.raises(le.InputError, match="of must be one of parameters, flops, latency"):
        le.prune(small_vgg(), images(), budget=0.5, of="bytes")
