"""What a user may hand over by mistake: named, refused, or left out."""

import pytest
import torch

import lightning_embed as le
from tests.surgery.steps import mlp


def data(samples=400):
    return torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {"criteria": 0.9},
        {"tolerance": {"change": 0.1}},
        {"call": "forward"},
        {"output": 0},
        {"seed": 1.0},
        {"seed": -1},
    ],
)
def test_arguments_of_other_types_are_refused_by_name(options):
    with pytest.raises(le.InputError, match=f"{next(iter(options))} must be"):
        le.prune(mlp(3, 4, 2), data(), **options)
    if next(iter(options)) in {"criteria", "call", "seed"}:
        for verb in (le.measure, le.propose):
            with pytest.raises(le.InputError, match=f"{next(iter(options))} must be"):
                verb(mlp(3, 4, 2), data(), **options)


def test_weights_that_are_not_finite_are_told_of_the_model_not_of_our_insides():
    model = mlp(3, 4, 4, 2)
    model[2].weight.data[0, 0] = float("nan")
    assert le.measure(model, data()).layers[0].width_span is None
    with pytest.raises(le.InputError, match="outputs on the calibration data hold NaN"):
        le.prune(model, data())


def test_empty_batches_count_for_nothing():
    model, x = mlp(3, 8, 2), data()
    model[0].weight.data[0] = 0.0
    full = le.prune(model, x.split(100))
    assert len(full.plan) > 0
    assert le.prune(model, [x[:0], x[:100], x[:0], x[:0], *x[100:].split(100)]).plan == full.plan
