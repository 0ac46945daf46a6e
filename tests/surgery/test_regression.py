"""Trained regressions: what is merged stays within the tolerance on data that neither training nor pruning has seen."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from tests.surgery.steps import mlp

TARGETS = {
    "two steps": lambda x: torch.tanh(4 * (x - 1)) + torch.tanh(4 * (x + 1)),
    "wave": lambda x: torch.sin(3 * x),
    "kink": torch.abs,
    "peak": lambda x: torch.exp(-8 * x.square()),
    "line": lambda x: 2 * x - 1,
}


def trained(model, x, y, steps=300):
    """Full-batch Adam, nothing random; the mean squared error that it reaches."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def change(model, merged, x):
    old, new = model(x), merged(x)
    return ((new - old).norm() / (old - old.mean(dim=0)).norm()).item()


@pytest.mark.parametrize(
    ("name", "activation"), [*((name, nn.Tanh) for name in TARGETS), ("two steps", nn.ReLU), ("wave", nn.ReLU)]
)
def test_one_dimensional_targets(name, activation):
    generator = torch.Generator().manual_seed(0)
    x, unseen = (4 * torch.rand(samples, 1, generator=generator) - 2 for samples in (512, 1000))
    model = mlp(1, 24, 24, 24, 1, activation=activation, dtype=torch.float32)
    assert trained(model, x, TARGETS[name](x)) < 0.05
    for bound in (0.05, 0.01):
        result = le.prune(model, x, tolerance=le.Tolerance(change=bound))
        assert change(model, result.model, unseen) <= bound
        assert result.size[1].parameters < result.size[0].parameters / 3


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Softplus])
@pytest.mark.parametrize("bound", [0.1, 0.03])
def test_diabetes(activation, bound):
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_diabetes()
    x = torch.tensor(bunch.data, dtype=torch.float32)
    y = torch.tensor(bunch.target, dtype=torch.float32)[:, None]
    x, y = (x - x.mean(dim=0)) / x.std(dim=0), (y - y.mean()) / y.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[:342], order[342:]
    model = mlp(10, 32, 16, 1, activation=activation, dtype=torch.float32)
    assert trained(model, x[seen], y[seen], steps=100) < 0.5
    result = le.prune(model, x[seen], criteria=le.Criteria(span=bound / 3), tolerance=le.Tolerance(change=bound))
    assert result.size[1].parameters < result.size[0].parameters
    assert change(model, result.model, x[unseen]) <= bound
