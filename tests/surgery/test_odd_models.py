"""Models and data that are legal but unusual: nothing crashes, nothing is lost."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_embed as le

LAYERS = le.Criteria(condensation=None, span=None)
NEURONS = le.Criteria(linearization=None)


def data(samples=200):
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(1))


def linearized(activation=None):
    """3-6-2 with input weights so small that the activation acts linearly."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh() if activation is None else activation, nn.Linear(6, 2))
    net[0].weight.data.mul_(0.02)
    return net


def settled(net):
    with torch.no_grad():
        for _ in range(60):
            net.train()(data())
    return net


def done(result):
    return {(one.layer, one.criterion) for one in result.records if one.done}


def test_a_container_between_is_narrowed_removed_saved_and_grown_back():
    def build():
        norm = nn.BatchNorm1d(6)
        norm.weight.data.fill_(0.02)
        return nn.Sequential(nn.Linear(3, 6), nn.Sequential(norm, nn.Tanh()), nn.Linear(6, 2))

    torch.manual_seed(0)
    net = build()
    for one in (net[0].weight, net[0].bias):
        one.data[:2] = 0.0
    settled(net).eval()
    result = le.prune(net, data(), criteria=LAYERS)
    assert done(result) == {("0", "null"), ("0", "linearization")}
    fresh = build().eval()
    le.attach(fresh)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(data()), result.model(data()))
    for merged in (fresh, result.model):
        merged.load_state_dict(net.state_dict())
        assert torch.equal(merged(data()), net(data()))
        assert str(merged) == str(net)


def test_a_narrowed_container_loads_into_a_model_that_has_lost_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Sequential(nn.BatchNorm1d(6), nn.Tanh()), nn.Linear(6, 2))
    for one in (net[0].weight, net[0].bias):
        one.data[:2] = 0.0
    settled(net)
    net[1][0].weight.data.mul_(0.02)
    net.eval()
    narrow = le.prune(net, data(), criteria=le.Criteria(linearization=None, condensation=None, span=None)).model
    merged = le.prune(net, data(), criteria=LAYERS).model
    assert narrow[0].out_features == 4
    merged.load_state_dict(narrow.state_dict())
    assert torch.equal(merged(data()), narrow(data()))


@pytest.mark.parametrize("first", [0, 1])
def test_batches_of_one_sample_or_none_beside_batch_norm(first):
    torch.manual_seed(0)
    net = settled(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)))
    net[1].weight.data.mul_(0.02)
    batches = [data()[:first], data()[:first], *data().split(50)]
    result = le.prune(net, batches, criteria=LAYERS)
    assert done(result) == {("0", "linearization")}
    assert all(bool(torch.isfinite(step.input_power).all()) for step in result.plan)


def test_a_last_batch_of_one_sample_beside_batch_norm():
    torch.manual_seed(0)
    net = settled(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)))
    le.prune(net, DataLoader(TensorDataset(data(201)), batch_size=25))
    result = le.prune(net, [data()[:1]] * 20)
    assert dict(result.before.refused)["0"].startswith("differs in train mode")


def test_outputs_without_a_gradient():
    net = linearized()
    assert done(le.prune(net, data(), criteria=LAYERS, call=lambda x: net(x).detach()))


class ByKeyword(nn.Module):
    """Calls its Linears with the input as a keyword."""

    def __init__(self):
        super().__init__()
        self.net = linearized()

    def forward(self, x):
        return self.net[2](input=self.net[1](self.net[0](input=x)))


def test_inputs_by_keyword():
    model = ByKeyword()
    assert done(le.prune(model, data(), criteria=LAYERS)) == {("net.0", "linearization")}
    assert done(le.prune(copy.deepcopy(model), data(), criteria=NEURONS))


class Scaled(nn.Module):
    """An activation with a table of constants that no checkpoint holds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 6), persistent=False)

    def forward(self, x):
        return torch.tanh(x * self.scale)


def test_what_no_checkpoint_holds_is_not_cut_and_comes_back():
    net = linearized(Scaled())
    net[0].weight.data[:2] = 0.0
    assert "not persistent" in le.measure(net, data()).layers[0].merge_neurons
    merged = le.prune(net, data()).model
    assert isinstance(merged[1], nn.Identity)
    merged.load_state_dict(net.state_dict())
    assert torch.equal(merged(data()), net(data()))


class InCode(nn.Module):
    """A functional activation that is the identity on the layer's output, but not on its input."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.first.bias.data.fill_(30.0)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_an_activation_in_code_must_leave_the_input_alone_too():
    torch.manual_seed(0)
    assert le.measure(InCode(), data()).layers[0].merge_layer == "activation in code (relu)"
    assert le.measure(InCode(), data().abs()).layers[0].merge_layer is None


@torch.no_grad()
def test_a_merged_checkpoint_loads_into_compiled_slots():
    net = linearized()
    merged = le.prune(net, data(), criteria=LAYERS).model
    fresh = linearized()
    fresh[1] = torch.compile(fresh[1], backend="eager")
    fresh[0] = torch.compile(fresh[0], backend="eager")
    fresh(data())
    le.attach(fresh)
    fresh.load_state_dict(merged.state_dict())
    assert torch.equal(fresh(data()), merged(data()))
    assert torch.equal(copy.deepcopy(fresh)(data()), merged(data()))
    assert done(le.prune(fresh, data(), criteria=LAYERS)) == set()


@torch.no_grad()
def test_compiled_slots_merge():
    net = linearized(torch.compile(nn.Tanh(), backend="eager"))
    expected = net(data())
    merged = le.prune(net, data(), criteria=LAYERS).model
    assert sum(one.numel() for one in merged.parameters()) == 8
    assert (merged(data()) - expected).std() < 0.01 * expected.std()


class Named(nn.Module):
    """Its `num_features` is not the number of its parameters."""

    def __init__(self):
        super().__init__()
        self.num_features = 3
        self.scale = nn.Parameter(torch.ones(6))
        self.first, self.act, self.last = nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.act(self.first(x.view(-1, self.num_features)) * self.scale))


def test_attributes_of_the_users_modules_are_left_alone():
    torch.manual_seed(0)
    net = Named()
    net.first.weight.data[:2] = 0.0
    result = le.prune(net, data(), criteria=le.Criteria(None, None, None))
    assert done(result) == {("first", "null")}
    assert result.model.num_features == 3
    fresh = Named()
    le.attach(fresh)
    fresh.load_state_dict(result.model.state_dict())
    assert torch.equal(fresh(data()), result.model(data()))


class WithConstant(nn.Module):
    """Returns a number besides its scores."""

    def __init__(self):
        super().__init__()
        self.net = linearized()

    def forward(self, x):
        scores = self.net(x)
        return scores, scores.sum()


def test_a_constant_output_that_changes_is_named_as_the_reason():
    assert "constant on the deciding data" in le.prune(WithConstant(), data()).records[0].reason
    assert done(le.prune(WithConstant(), data(), output=lambda given: given[0]))


def test_a_lazy_model_is_refused_before_it_is_touched():
    net = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(2))
    with pytest.raises(le.InputError, match="lazy"):
        le.measure(net, data())
    assert isinstance(net[0], nn.LazyLinear)


def test_no_device_is_seeded_behind_the_users_back(monkeypatch):
    net = linearized()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("it seeded the accelerator"))
    le.measure(net, DataLoader(TensorDataset(data()), batch_size=50, shuffle=True))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(context):
    net = linearized()
    with context():
        result = le.prune(net, data(), criteria=LAYERS)
        plan = le.propose(net, data(), criteria=LAYERS)
        le.apply(net, plan)
    assert result.plan == le.prune(linearized(), data(), criteria=LAYERS).plan
    for model in (net, result.model):
        model(data()).sum().backward()
        assert model[2].weight.grad is not None


def copies(activation=nn.Tanh):
    """3-8-8-2 with every neuron of the first layer twice."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].weight[4:], net[0].bias[4:] = net[0].weight[:4], net[0].bias[:4]
    return net


class Around(nn.Module):
    """Something of the user's around a network."""

    def __init__(self, before=nn.Identity, after=nn.Identity):
        super().__init__()
        self.before, self.net, self.after = before(), copies(), after()

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class Nested(nn.Module):
    def forward(self, x):
        return {"a": [x], "b": {"sum": x.sum(dim=1), "nothing": None, "text": "x", "class": x.argmax(dim=1)}}


class Counts(nn.Module):
    """Keeps a number on itself that its outputs do not depend on, and one in a buffer."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        self.seen += len(x)
        return x


def hooked():
    net = copies()
    net[1].register_forward_hook(lambda _module, _args, output: 2 * output)
    net[0].register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    net[4].register_forward_hook(lambda _module, _args, output: output.clone())
    return net


def partly_training():
    net = copies().eval()
    net[2].train()
    return net


def scaled(scale):
    net = copies(nn.ReLU)
    net[0].weight.data /= scale
    return net


ODD = {
    "in-place activations": (lambda: copies(lambda: nn.LeakyReLU(0.1, inplace=True)), data),
    "train mode": (lambda: copies().train(), data),
    "parts in train mode": (partly_training, data),
    "hooks of the user's": (hooked, data),
    "embeddings of integers": (lambda: Around(before=lambda: nn.Embedding(50, 3)), lambda: torch.arange(400) % 50),
    "embeddings of sequences": (
        lambda: Around(before=lambda: nn.Embedding(50, 3)), lambda: torch.arange(2000).reshape(400, 5) % 50
    ),
    "nested outputs": (lambda: Around(after=Nested), data),
    "what forward counts": (lambda: Around(after=Counts), data),
    "batches of different sizes": (copies, lambda: [data()[:1], data()[1:60], data()[60:61], data()[61:]]),
    "batches with targets": (copies, lambda: [(part, torch.zeros(len(part)).long()) for part in data().split(50)]),
    "a generator": (copies, lambda: (part for part in data().split(50))),
    "a parallel wrapper": (lambda: nn.DataParallel(copies()), data),
    "data that require a gradient": (copies, lambda: data().requires_grad_()),
    "tiny data": (lambda: scaled(1e-30), lambda: 1e-30 * data()),
    "huge data": (lambda: scaled(1e30), lambda: 1e30 * data()),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_copies_are_found_in_whatever_is_legal(name):
    build, given = ODD[name]
    model = build()
    before = copy.deepcopy(model.state_dict())
    modes = [one.training for one in model.modules()]
    result = le.prune(model, given(), criteria=le.Criteria(None, 1 - 1e-6, None), tolerance=le.Tolerance(1e-3))
    narrow = [one for one in result.model.modules() if isinstance(one, nn.Linear)]
    assert narrow[0].out_features == 4
    assert [one.training for one in model.modules()] == [one.training for one in result.model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert getattr(getattr(model, "after", None), "calls", 0) == 0


def test_one_activation_for_all_layers_lets_neurons_merge_and_no_layer_go():
    shared = nn.Tanh()
    model = copies(lambda: shared)
    result = le.prune(model, data(), criteria=le.Criteria(0.0, 1 - 1e-6, None))
    assert result.model[0].out_features == 4
    assert all("activation shared" in one.merge_layer for one in result.before.layers)


def test_one_linear_called_twice_is_left_alone():
    model = copies()
    model[0] = nn.Sequential(nn.Linear(3, 8), model[1], model[2])
    result = le.prune(model, data())
    reasons = dict(result.before.refused)
    assert "consumer shared" in reasons["0.0"] or "weight shared" in reasons["0.0"]
    assert done(result) == set()
