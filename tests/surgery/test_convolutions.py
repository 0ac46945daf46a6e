"""Channels of convolutions: what is planted is found, cut with everything that belongs to it, reloaded, trained on."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingPruner
from lightning_embed.graph import observe
from lightning_embed.surgery.nominate.features import collect_features, thinned
from lightning_embed.surgery.nominate.weights import consumer_weight
from lightning_embed.tape import record
from tests.callbacks.runs import trainer

CHANNELS, WIDTH = 2, 5
NEURONS = le.Criteria(linearization=None)
EXACT = le.Criteria(linearization=None, condensation=1 - 1e-9, span=1e-6)


def images(samples=64, dtype=torch.float64):
    return torch.randn(samples, CHANNELS, 12, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two convolutions and a Linear that reads flattened maps; the given layers may be wider than needed."""

    def __init__(self, first=WIDTH, second=WIDTH, activation=nn.ReLU, padding=1, bias=True):
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, first, 3, bias=bias)
        self.norm = nn.BatchNorm2d(first)
        self.act = activation()
        self.pool = nn.MaxPool2d(2)
        self.second = nn.Conv2d(first, second, 3, padding=padding, bias=bias)
        self.last = nn.Linear(second * (25 if padding else 9), 3)

    def forward(self, x):
        h = self.pool(self.act(self.norm(self.first(x))))
        return self.last(self.act(self.second(h)).flatten(1))


def settled(net):
    with torch.no_grad():
        for _ in range(80):
            net.train()(images())
    return net.eval()


def build(seed=0, **how):
    torch.manual_seed(seed)
    return settled(Net(**how).double())


def split(net, shares=(0.3, -0.5)):
    """The same function with every channel twice: an equal map, output weights shared out by random α."""
    generator = torch.Generator().manual_seed(2)
    wide = copy.deepcopy(net)
    for layer, consumer, norm in (("first", "second", "norm"), ("second", "last", None)):
        producer, reader = getattr(wide, layer), getattr(wide, consumer)
        width = len(producer.weight)
        for module in (producer, *([wide.norm] if norm else [])):
            for one in (*module.parameters(), *module.buffers()):
                if one.dim():
                    one.data = torch.cat([one.data, one.data])
        apart = reader.weight.data.unflatten(1, (width, -1))
        alpha = torch.rand(width, dtype=torch.float64, generator=generator) * (shares[0] - shares[1]) + shares[1]
        alpha = alpha.reshape(1, -1, *(1,) * (apart.dim() - 2))
        reader.weight.data = torch.cat([alpha * apart, (1 - alpha) * apart], dim=1).flatten(1, 2)
    return wide


def widths(net):
    return len(net.first.weight), len(net.second.weight)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_split_channels_are_merged_and_the_function_kept(activation, padding, bias):
    narrow = build(activation=activation, padding=padding, bias=bias)
    wide = split(narrow)
    torch.testing.assert_close(wide(images()), narrow(images()))
    result = le.prune(wide, images(), criteria=EXACT, tolerance=le.Tolerance(change=1e-4))
    assert widths(result.model) == (WIDTH, WIDTH), result
    fresh = torch.randn(20, CHANNELS, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(result.model(fresh), narrow(fresh), rtol=1e-4, atol=1e-4)
    assert (result.model.second.bias is None) == (not bias and padding > 0)  # only padding forbids a constant
    assert result.size[1].flops < 0.6 * result.size[0].flops


def test_opposite_channels_of_an_odd_activation_are_one():
    net = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double()
    net[0].weight.data[2:], net[0].bias.data[2:] = -2 * net[0].weight.data[:2], -2 * net[0].bias.data[:2]
    net[0].weight.data[2:] /= 2
    net[0].bias.data[2:] /= 2
    result = le.prune(net, images(), criteria=le.Criteria(linearization=None, span=None))
    assert result.model[0].out_channels == 2
    assert {one.criterion for one in result.records} == {"condensation"}
    torch.testing.assert_close(result.model(images()), net(images()), rtol=1e-4, atol=1e-5)


def test_null_channels_go_and_their_constant_stays():
    net = build(padding=0, activation=nn.Sigmoid)
    net.norm.weight.data[1] = 0.0
    net.norm.bias.data[1] = 2.0
    before = net(images())
    result = le.prune(net, images(), criteria=le.Criteria(None, None, None))
    assert [(one.layer, one.criterion, one.width) for one in result.records] == [("first", "null", (5, 4))]
    torch.testing.assert_close(result.model(images()), before)


def test_a_constant_that_padding_breaks_is_left_to_the_check():
    """A bias cannot stand for it: at the border the consumer reads zeros instead."""
    net = build(padding=1, activation=nn.Sigmoid)
    net.norm.weight.data[1] = 0.0
    net.norm.bias.data[1] = 2.0
    net.second.weight.data[:, 1] *= 30
    result = le.prune(net, images(), criteria=le.Criteria(None, None, None), tolerance=le.Tolerance(change=1e-3))
    (found,) = result.records
    assert (found.criterion, found.done, found.reason[:6]) == ("null", False, "change")
    torch.testing.assert_close(result.model(images()), net(images()), rtol=0, atol=0)


@pytest.mark.parametrize("padding", [0, 1])
def test_what_consumers_receive_is_refitted_best_over_channels(padding):
    """Against a dense least-squares fit of the dropped channels' maps by the kept ones."""
    net = build(padding=padding, first=12)
    result = le.prune(net, images(128), widths={"first": 7})
    (step,) = [one for one in result.plan if one.kind == "neurons"]
    with torch.no_grad():
        maps = net.pool(net.act(net.norm(net.first(images(128)[::2])))).movedim(1, -1).reshape(-1, 12)
    kept = maps[:, list(step.kept)]
    basis = torch.cat([kept, torch.full((len(kept), 1), 0.0 if padding else 1.0)], dim=1)
    solution = torch.linalg.lstsq(basis, maps, driver="gelsd").solution
    error = (maps - basis @ solution).square().mean()
    ours = (maps - kept @ step.mix.T - step.shift).square().mean()
    assert bool(step.shift.any()) == (not padding)
    # the tapes are dealt out by batch; the same maps up to sampling
    assert ours < 1.2 * error + 1e-9


def test_consumers_weights_count_every_tap_and_position():
    net = build()
    graph = observe(net, record(net, [images()]))
    for name, consumer in (("first", net.second), ("second", net.last)):
        weight = consumer_weight(net, graph[name])
        dense = consumer.weight.detach().unflatten(1, (WIDTH, -1)).flatten(2).movedim(1, -1).reshape(-1, WIDTH)
        torch.testing.assert_close(weight.T @ weight, dense.T @ dense)
        assert weight.shape[0] <= 4 * WIDTH


def test_features_are_maps_by_channel():
    net = build()
    tapes = record(net, [images()])
    found = collect_features(net, observe(net, tapes).layers, tapes)
    with torch.no_grad():
        pre = net.first(images())
        post = net.pool(net.act(net.norm(pre)))
    torch.testing.assert_close(found["first"].pre, pre.movedim(1, -1).reshape(-1, WIDTH))
    torch.testing.assert_close(found["first"].post, post.movedim(1, -1).reshape(-1, WIDTH))
    assert not found["first"].paired
    assert found["second"].paired
    torch.testing.assert_close(found["second"].input_power, post.square().mean((0, 2, 3)))


def test_thinning_takes_every_column_of_an_image():
    columns = torch.arange(8.0).repeat(40, 1, 8, 1).movedim(1, -1).reshape(-1, 1)  # 2560 rows, 8 columns in turn
    taken = thinned(columns, 320)
    assert 250 <= len(taken) <= 320
    assert torch.bincount(taken.flatten().long(), minlength=8).min() > 25


def test_what_activations_in_place_overwrite_was_copied():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    plain = copy.deepcopy(net)
    plain[1], plain[3] = nn.ReLU(), nn.ReLU()
    x = torch.randn(100, 3)
    found, expected = le.measure(net, x), le.measure(plain, x)
    assert found == expected
    assert found.layers[0].mpc < 0.99
    cut = [le.prune(one, x, widths={"0": 3, "2": 3}).model for one in (net, plain)]
    assert torch.equal(cut[0](x), cut[1](x))


def test_channels_survive_saving_and_loading_in_both_directions():
    wide = split(build())
    merged = le.prune(wide, images(), criteria=NEURONS).model
    fresh = copy.deepcopy(wide)
    le.attach(fresh)
    fresh.load_state_dict(merged.state_dict())
    assert torch.equal(fresh(images()), merged(images()))
    assert (fresh.first.out_channels, fresh.second.in_channels) == (
        merged.first.out_channels,
        merged.second.in_channels,
    )
    fresh.load_state_dict(wide.state_dict())
    assert torch.equal(fresh(images()), wide(images()))


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)])
def test_the_optimizer_follows_channels(make):
    """A condensed pair with mirrored state steps as the single channel does with the summed gradient."""
    narrow = nn.Sequential(nn.Conv2d(CHANNELS, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 100, 2)).double()
    wide = copy.deepcopy(narrow)
    for name in ("weight", "bias"):
        value = getattr(wide[0], name)
        value.data = torch.cat([value.data, value.data[:1]])
    apart = wide[3].weight.data.unflatten(1, (3, 100))
    wide[3].weight.data = torch.cat([0.5 * apart[:, :1], apart[:, 1:], 0.5 * apart[:, :1]], dim=1).flatten(1)
    wide[0].out_channels, wide[3].in_features = 4, 4 * 100
    optimizer = make(wide.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        wide(images()).square().sum().backward()
        optimizer.step()
    plan = le.propose(wide, images(), criteria=le.Criteria(None, 1 - 1e-9, None))
    before = wide(images())
    moments = {id(one): dict(state) for one, state in optimizer.state.items()}
    old = [moments[id(one)] for one in wide.parameters()]
    le.apply(wide, plan, optimizers=optimizer)
    torch.testing.assert_close(wide(images()), before, rtol=1e-5, atol=1e-5)
    assert [one.shape for one in optimizer.param_groups[0]["params"]] == [one.shape for one in narrow.parameters()]
    key = "exp_avg" if "exp_avg" in old[0] else "momentum_buffer"
    state = optimizer.state[wide[0].weight][key]
    kept = plan.steps[0].kept
    summed = old[0][key][0] + old[0][key][3]
    torch.testing.assert_close(state[kept.index(0) if 0 in kept else kept.index(3)], summed, rtol=1e-5, atol=1e-8)
    columns = torch.cat([torch.arange(100) + 100 * neuron for neuron in kept])
    assert torch.equal(optimizer.state[wide[3].weight][key], old[2][key][:, columns])
    optimizer.step()


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_budget_counts_kernels_and_flattened_maps(share):
    net = build(first=12, second=10)
    result = le.prune(net, images(200), budget=share)
    before, after = (one.parameters for one in result.size)
    assert 0.6 * share * before < after <= share * before


def test_unusual_weights_are_refused_one_by_one():
    net = build()
    net.second = nn.utils.parametrizations.weight_norm(net.second)
    result = le.prune(net, images(), criteria=NEURONS)
    refused = dict(result.before.refused)
    assert refused["second"].startswith("weight computed")
    assert refused["first"].startswith("weight computed")


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = split(Net()).float()

    def training_step(self, batch, _):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def test_channels_merge_during_training_and_training_goes_on(tmp_path):
    torch.manual_seed(0)
    x = images(256, torch.float32)
    y = x.mean((2, 3)).argmax(1)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    model, pruner = Classifier(), EmbeddingPruner()
    run = trainer(tmp_path, [pruner], max_epochs=8)
    run.fit(model, batches)
    assert any(one.done and one.layer.startswith("net.") for one in pruner.records), pruner.records
    assert sum(widths(model.net)) < 4 * WIDTH
    assert torch.isfinite(run.callback_metrics["loss"])
    held = {id(one) for group in run.optimizers[0].param_groups for one in group["params"]}
    assert held == {id(one) for one in model.parameters()}


def test_channels_are_widened_and_the_function_kept():
    net = build()
    wide = le.widen(net, {"first": 8, "second": 11}, images())
    assert widths(wide) == (8, 11)
    fresh = torch.randn(20, CHANNELS, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(wide(fresh), net(fresh))
    le.attach(again := copy.deepcopy(net))
    again.load_state_dict(wide.state_dict())
    assert torch.equal(again(fresh), wide(fresh))
    back = le.prune(wide, images(256), criteria=EXACT, tolerance=le.Tolerance(change=1e-4))
    assert widths(back.model) == (WIDTH, WIDTH)
