"""widen and deepen: the function is kept, the given model untouched, what cannot be done is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lightning_embed as le
from lightning_embed.graph import observe, output_weight
from lightning_embed.surgery import KEY
from lightning_embed.tape import record
from lightning_embed.tape.tree import tensors_of
from tests.surgery.steps import mlp
from tests.tolerances import tolerance
from tests.zoo import ZOO


def spread(model, seed=0):
    """Biases and batch-norm statistics that are not those of an initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    return model


@pytest.mark.parametrize("name", sorted(name for name in ZOO if ZOO[name].neurons))
def test_every_layer_whose_neurons_may_merge_can_be_widened(name):
    entry = ZOO[name]
    torch.manual_seed(0)
    model = spread(entry.make())
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    batch = entry.batch()
    tapes = record(model, [batch, batch], call=lambda one: entry.call(model, one))
    layers = [layer for layer in observe(model, tapes).layers if layer.name in entry.neurons]
    widths = {layer.name: layer.width + 5 for layer in layers}
    wide = le.widen(model, widths, [batch, batch], call=lambda one: entry.call(model, one))
    for layer in layers:
        for producer, layout in layer.producers.items():
            rows = [len(output_weight(one.get_submodule(producer))) for one in (model, wide)]
            assert rows[1] - rows[0] == 5 * layout.size
    assert len(layers) == len(entry.neurons)
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items())
    torch.manual_seed(2)
    old = entry.call(copy.deepcopy(model).eval(), batch)
    torch.manual_seed(2)
    new = entry.call(copy.deepcopy(wide).eval(), batch)
    rough = name in {"autocast", "Casts"}  # bfloat16 inside
    new, old = tensors_of(new), tensors_of(old)
    torch.testing.assert_close(new, old, **({"rtol": 0.05, "atol": 0.05} if rough else {"rtol": 1e-4, "atol": 1e-4}))


def test_a_plain_mlp_needs_no_data_and_keeps_its_function_everywhere():
    net = mlp(4, 6, 5, 3)
    wide = le.widen(net, {"0": 64, "2": 5})
    x = 100 * torch.randn(50, 4, dtype=torch.float64)
    assert [wide[0].out_features, wide[2].out_features] == [64, 5]
    torch.testing.assert_close(wide(x), net(x), **tolerance(x.dtype))


def test_shares_are_random_reproducible_and_bounded():
    net = mlp(4, 6, 1)
    first, again, other = (le.widen(net, {"0": 20}, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first[2].weight, again[2].weight)
    assert not torch.equal(first[2].weight, other[2].weight)
    ratio = first[2].weight.abs().max() / net[2].weight.abs().max()
    assert ratio < 1
    copies = [(first[0].weight == row).all(1).nonzero().flatten() for row in net[0].weight]
    assert sorted(len(one) for one in copies) == [3, 3, 3, 3, 4, 4]
    for one in copies:
        assert len(set(first[2].weight[0, one].tolist())) == len(one)


def test_copies_part_in_training():
    net = mlp(2, 3, 1)
    wide = le.widen(net, {"0": 6})
    x = torch.randn(64, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(wide.parameters(), 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        (wide(x) - x.prod(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    assert torch.pdist(wide[0].weight).min() > 1e-4


def test_gradients_of_copies_are_shares_of_the_originals():
    net = mlp(2, 3, 2)
    wide = le.widen(net, {"0": 7})
    x = torch.randn(20, 2, dtype=torch.float64)
    for model in (net, wide):
        model(x).pow(3).sum().backward()
    for row, grad in zip(net[0].weight, net[0].weight.grad, strict=True):
        copies = (wide[0].weight == row).all(1)
        torch.testing.assert_close(wide[0].weight.grad[copies].sum(0), grad)


def test_widened_state_dicts_load_at_the_old_size():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 2)).eval()
    wide = le.widen(net, {"0": 9})
    fresh = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 2)).eval()
    le.attach(fresh)
    fresh.load_state_dict(wide.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(fresh(x), wide(x))
    assert (fresh[1].num_features, fresh[2].num_parameters) == (9, 9)
    assert KEY not in net.state_dict()


def test_a_merged_model_is_widened_and_pruned_again():
    net = mlp(3, 8, 2)
    x = torch.randn(200, 3, dtype=torch.float64)
    wide = le.widen(net, {"0": 20})
    result = le.prune(wide, x, tolerance=le.Tolerance(change=1e-6))
    assert result.model[0].out_features == 8
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_stays_frozen(requires_grad):
    net = mlp(3, 4, 2).requires_grad_(requires_grad)
    x = torch.randn(30, 3, dtype=torch.float64)
    with torch.inference_mode():
        models = [le.widen(net, {"0": 6}), le.deepen(net, x, after="0")]
    for model in models:
        assert all(one.requires_grad == requires_grad for one in model.parameters())
        assert not any(one.is_inference() for one in model.parameters())


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, tokens):
        return self.fc2(F.gelu(self.fc1(self.embedding(tokens))))


def test_what_cannot_be_called_on_random_numbers_asks_for_data():
    model, tokens = Opaque(), torch.randint(7, (12, 3))
    with pytest.raises(le.InputError, match="pass data="):
        le.widen(model, {"fc1": 9})
    wide = le.widen(model, {"fc1": 9}, tokens)
    torch.testing.assert_close(wide(tokens), model(tokens))
    deep = le.deepen(model, tokens, after="fc1", activation=nn.LeakyReLU())
    torch.testing.assert_close(deep(tokens), model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"2": 9}, "'2' is no hidden layer of this model .*is the model's output.*; these are: 0"),
        ({"x": 9}, "'x' is no hidden layer of this model; these are: 0"),
        ({"0": 3}, r"'0' has 4 neurons, more than the 3 asked for; use prune\(widths=…\)"),
    ],
)
def test_widths_that_are_refused(widths, message):
    with pytest.raises(le.InputError, match=message):
        le.widen(mlp(3, 4, 2), widths)


def test_neurons_that_depend_on_each_other_are_not_split():
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2))
    with pytest.raises(le.InputError, match="columns mix"):
        le.widen(model, {"0": 6})


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.phase = torch.linspace(0, 1, 4)  # no buffer, so nobody can see that it belongs to the neurons

    def forward(self, x):
        return torch.sin(x + self.phase[: x.shape[-1]]) if x.shape[-1] <= 4 else torch.sin(x)


def test_a_model_that_would_compute_something_else_is_not_returned():
    model = nn.Sequential(nn.Linear(3, 4), Wave(), nn.Linear(4, 2))
    with pytest.raises(le.InputError, match=r"may not be split|its outputs change by"):
        le.widen(model, {"0": 6})


# --- deepen ---

ACTIVATIONS = [nn.ReLU(), nn.ELU(), nn.Hardtanh(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Softplus()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_deepening_keeps_the_outputs_on_the_data(activation, dtype):
    net = mlp(3, 6, 4, 2, activation=lambda: copy.deepcopy(activation), dtype=dtype)
    x = torch.randn(200, 3, dtype=dtype)
    before = copy.deepcopy(net.state_dict())
    deep = le.deepen(net, x, after="0")
    change = (deep(x) - net(x)).norm() / (net(x) - net(x).mean(0)).norm()
    exact = bool(le.operators.affine_segments(activation))
    assert change < ({torch.float32: 1e-5, torch.float64: 1e-12}[dtype] if exact else 2e-3)
    assert [deep[2][0].out_features, deep[2][2].out_features] == [4, 4]
    assert type(deep[2][1]) is type(activation)
    assert all(torch.equal(one, before[key]) for key, one in net.state_dict().items())


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()], ids=str)
def test_a_residual_layer_is_inserted_and_keeps_the_outputs(activation):
    net = mlp(3, 6, 2, activation=lambda: copy.deepcopy(activation))
    x = torch.randn(200, 3, dtype=torch.float64)
    deep = le.deepen(net, x, after="0", skip=True)
    inserted = deep[2][0]
    assert (inserted.linear.in_features, inserted.linear.out_features) == (6, 6)
    change = (deep(x) - net(x)).norm() / (net(x) - net(x).mean(0)).norm()
    assert change < (1e-12 if isinstance(activation, nn.ReLU) else 2e-3)
    h = net[1](net[0](x))
    torch.testing.assert_close(inserted(h), h + activation(inserted.linear(h)))
    with pytest.raises(le.InputError, match="width must be fan_in = 6 with skip=True"):
        le.deepen(net, x, after="0", skip=True, width=7)


def test_layers_are_inserted_again_and_again_and_pruning_takes_them_out():
    net = mlp(3, 6, 5, 2, activation=nn.ReLU)
    x = torch.randn(300, 3, dtype=torch.float64)
    deep = le.deepen(le.deepen(net, x, after="0"), x, after="2.0", width=7)
    assert [layer.layer for layer in le.measure(deep, x).layers] == ["0", "2.0", "2.2.0", "2.2.2"]
    torch.testing.assert_close(deep(x), net(x))
    result = le.prune(deep, x)
    assert result.size[1].hidden_layers == 2
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-4, atol=1e-4)


def test_training_mode_names_and_state_dict():
    net = mlp(3, 4, 2, activation=nn.ReLU).train()
    x = torch.randn(20, 3, dtype=torch.float64)
    net.eval()
    deep = le.deepen(le.widen(net, {"0": 6}), x, after="0")
    assert not any(one.training for one in deep.modules())
    assert set(deep.state_dict()) == {f"{name}.{kind}" for name in ("0", "2.0", "2.2") for kind in ("weight", "bias")}


class Flat(nn.Module):
    def forward(self, x):
        return 0 * x


def test_what_deepen_refuses():
    x = torch.randn(20, 3, dtype=torch.float64)
    with pytest.raises(le.InputError, match="'2' is no hidden layer"):
        le.deepen(mlp(3, 4, 2), x, after="2")
    with pytest.raises(le.InputError, match="width must be at least"):
        le.deepen(mlp(3, 4, 2), x, after="0", width=1)
    with pytest.raises(le.InputError, match=r"No single module .* pass activation="):
        le.deepen(mlp(3, 4, 2, activation=lambda: nn.PReLU(4)), x, after="0")
    with pytest.raises(le.InputError, match="no point of non-zero slope"):
        le.deepen(mlp(3, 4, 2), x, after="0", activation=Flat())
    steep = mlp(3, 4, 2)
    steep[2].weight.data.mul_(20)
    with pytest.raises(le.InputError, match=r"cannot be deepened .* its outputs change by"):
        le.deepen(steep, x, after="0", radius=30.0)
    heads, batch = ZOO["Heads"].make(), torch.randn(20, 5)
    with pytest.raises(le.InputError, match=r"'trunk' is read by several Linears \(a, b\)"):
        le.deepen(heads, batch, after="trunk")
