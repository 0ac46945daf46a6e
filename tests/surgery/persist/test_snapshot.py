"""A snapshot tells what stands in a model, and leaves it as it is."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.graph import observe
from lightning_embed.surgery.persist.snapshot import SHOWN, agreement, latency, snapshot
from lightning_embed.tape import record
from tests.surgery.steps import mlp


def shot_of(model, data, decide=(), **options):
    tapes = record(model, [data])
    return snapshot(model, observe(model, tapes), tapes, record(model, decide) if len(decide) else (), **options)


def test_shapes_sizes_and_reasons():
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 7), nn.Tanh(), nn.Linear(7, 3))
    found = shot_of(model, torch.randn(8, 2, 4, 4))
    assert [(one.name, one.kind, one.inputs, one.width) for one in found.layers] == [
        ("0", "Conv2d", 2, 5),
        ("3", "Linear", 20, 7),
        ("5", "Linear", 7, 3),
    ]
    assert [one.consumers for one in found.layers] == [("3",), ("5",), ()]
    assert [one.hidden for one in found.layers] == [True, True, False]
    assert found.layers[2].reason == "is the model's output"
    assert found.layers[0].merge_layer == "convolution"
    assert found.size.parameters == sum(one.numel() for one in model.parameters())
    assert found.size.flops == 2 * (2 * 9 * 5 * 4 + 20 * 7 + 7 * 3)
    assert (found.size.hidden_layers, found.size.neurons) == (2, 12)
    assert (found.samples, found.predictions) == (8, None)


def test_neurons_are_ordered_by_group_and_a_wide_layer_is_sampled():
    model = mlp(4, 6, 2)
    with torch.no_grad():
        for at, like in ((2, 0), (4, 0), (5, 1)):
            model[0].weight[at], model[0].bias[at] = 2 * model[0].weight[like], 2 * model[0].bias[like]
    (one,) = shot_of(model, torch.randn(9, 4, dtype=torch.float64), threshold=0.999).similarity
    assert one.groups == (3, 2, 1)
    assert (one.cosine[:3, :3] == 100).all()
    assert (one.cosine[3:5, 3:5] == 100).all()
    assert one.cosine.diagonal().eq(100).all()
    assert one.cosine[0, 3] < 100
    (one,) = shot_of(mlp(4, 3 * SHOWN, 2), torch.randn(9, 4, dtype=torch.float64)).similarity
    assert (one.neurons, sum(one.groups), tuple(one.cosine.shape)) == (3 * SHOWN, SHOWN, (SHOWN, SHOWN))


def test_predictions_and_their_agreement():
    model, other = mlp(4, 6, 3), mlp(4, 6, 3, seed=1)
    x = torch.randn(50, 4, dtype=torch.float64)
    shots = [shot_of(one, x[:9], [x]) for one in (model, other)]
    assert torch.equal(shots[0].predictions, model(x).argmax(1))
    counts = agreement(*shots)
    for i in range(3):
        for j in range(3):
            assert counts[i, j] == ((model(x).argmax(1) == i) & (other(x).argmax(1) == j)).sum()
    with pytest.raises(le.InputError, match="different data"):
        agreement(shots[0], shot_of(other, x[:9], [x[:20]]))
    regression = shot_of(mlp(4, 6, 1), x[:9], [x])
    assert agreement(regression, regression) is None


def test_the_model_and_random_state_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2)).train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    torch.manual_seed(3)
    x = torch.randn(9, 4)
    state = torch.get_rng_state()
    shot_of(model, x, [x])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_latency_grows_with_the_work():
    small, large = (nn.Sequential(nn.Linear(w, w), nn.ReLU(), nn.Linear(w, w)) for w in (8, 2048))
    times = [latency(one, record(one, [torch.randn(512, one[0].in_features)])[0]) for one in (small, large)]
    assert 0.0 < times[0] < times[1]


def test_a_result_holds_both_snapshots_and_prints_as_before():
    model = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2))
    result = le.prune(model, torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    was, became = result.snapshots
    assert result.size == (was.size, became.size)
    assert [len(one.layers) for one in (was, became)] == [2, 1]
    assert int(agreement(was, became).sum()) == 32
