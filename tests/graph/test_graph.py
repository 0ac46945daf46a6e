"""What is seen in every model of the zoo, and the laws that every accepted layer obeys."""

from __future__ import annotations

import copy
import pickle
import time
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_embed as le
from lightning_embed.errors import InputError
from lightning_embed.graph import REASONS, Graph, Layout, Reason, is_layer, legend, observe
from lightning_embed.graph import sites as sites_module
from lightning_embed.tape import Recorder, Tape, record, replay
from lightning_embed.tape.tape import modules_by_name, tensors_by_name
from tests.zoo import IN, OUT, WIDTH, ZOO

NAMES = list(ZOO)


@cache
def seen(name: str) -> tuple[nn.Module, list[Tape], Graph]:
    torch.manual_seed(0)
    case = ZOO[name]
    model = case.make()
    tapes = record(model, [case.batch()], call=lambda batch: case.call(model, batch))
    return model, tapes, observe(model, tapes)


@pytest.mark.parametrize("name", NAMES)
def test_permissions_and_reasons(name: str) -> None:
    case, (_, _, graph) = ZOO[name], seen(name)
    assert {layer.name for layer in graph.layers if layer.merge_neurons is None} == case.neurons, graph
    assert {layer.name for layer in graph.layers if layer.merge_layer is None} == case.layers, graph
    for (layer, what), key in case.why.items():
        given = str(graph.refused[layer]) if what == "refused" else getattr(graph[layer], f"merge_{what}")
        assert given.startswith(key), graph


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_a_region_is_not_probed_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tapes, graph = seen(name)
    known: dict[object, object] = {}
    probed: list[object] = []

    class Counted(sites_module.Probe):
        def answers(self, pools: dict[str, Tensor]) -> dict[str, Tensor]:
            probed.append(pools)
            return super().answers(pools)

    monkeypatch.setattr(sites_module, "Probe", Counted)
    first = observe(model, tapes, known)
    count = len(probed)
    again = observe(model, tapes, known)
    assert len(probed) == count
    assert str(first) == str(again) == str(graph)
    for layer in graph.layers:
        other = again[layer.name]
        assert (layer.per_neuron, layer.uniform, layer.odd) == (other.per_neuron, other.uniform, other.odd)


def test_a_layer_that_was_merged_is_probed_anew() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    tapes = record(model, [torch.randn(9, 3)])
    known: dict[object, object] = {}
    observe(model, tapes, known)
    le.apply(model, le.propose(model, torch.randn(99, 3), criteria=le.Criteria(None, None, 0.6)))
    narrower = [observe(model, tapes, one) for one in (known, {})]
    assert narrower[0]["0"].width < 4
    assert [[vars(layer) | {"region": None} for layer in graph.layers] for graph in narrower] == [
        [vars(layer) | {"region": None} for layer in narrower[1].layers]
    ] * 2


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_listed_once(name: str) -> None:
    model, _, graph = seen(name)
    linears = {name for name, module in modules_by_name(model).items() if is_layer(module)}
    listed = {*(producer for layer in graph.layers for producer in layer.producers), *graph.refused}
    assert listed == linears
    assert not listed & {layer.name for layer in graph.layers} & graph.refused.keys()
    assert all(name in str(graph) for name in linears)


@pytest.mark.parametrize("name", NAMES)
def test_graph_survives_copies_and_holds_no_modules(name: str) -> None:
    _, _, graph = seen(name)
    for twin in (pickle.loads(pickle.dumps(graph)), copy.deepcopy(graph)):
        assert str(twin) == str(graph)
    assert b"torch.nn.modules" not in pickle.dumps(graph)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_observing_leaves_no_trace(name: str, training: bool) -> None:
    model, tapes, graph = seen(name)
    model = copy.deepcopy(model).train(training)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    again = observe(model, tapes)
    assert str(again) == str(graph)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_regions_give_what_the_consumers_read(name: str) -> None:
    model, tapes, graph = seen(name)
    model = copy.deepcopy(model)
    modules = modules_by_name(model)
    regions = {
        layer.name: layer
        for layer in graph.layers
        if layer.region is not None
        and not str(layer.merge_layer).startswith("rows differ")  # as many rows as were seen
    }
    assert ZOO[name].layers <= regions.keys()
    pres: dict[str, list[Tensor]] = {producer: [] for producer in regions}
    posts: dict[str, list[Tensor]] = {reader: [] for layer in regions.values() for reader in layer.consumers}
    for producer, store in pres.items():
        modules[producer].register_forward_hook(lambda _m, _a, output, store=store: store.append(output.clone()))
    for reader, store in posts.items():
        modules[reader].register_forward_pre_hook(lambda _m, args, store=store: store.append(args[0].clone()))
    replay(model, tapes[0])
    for producer, layer in regions.items():
        for reader in layer.consumers:
            for pre, post in zip(pres[producer], posts[reader], strict=True):
                result = graph.run_region(model, producer, pre, reader)
                if getattr(modules[reader], "padding_mode", "zeros") != "zeros":  # it pads before it convolves
                    pads = modules[reader]._reversed_padding_repeated_twice
                    post = F.pad(post, pads, modules[reader].padding_mode)
                assert torch.equal(result, post.reshape(result.shape))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 7])
def test_selecting_columns_commutes_with_the_region(name: str, rows: int) -> None:
    model, _, graph = seen(name)
    generator = torch.Generator().manual_seed(1)
    for layer in graph.layers:
        if layer.region is None or layer.merge_neurons is not None or layer.rows_mix:
            continue
        if str(layer.merge_layer).startswith("rows differ"):  # no other number of rows will do
            continue
        layout, shape = layer.producers[layer.name], layer.region.starts[0].pre.shape
        pre = 4 * torch.randn(rows, *(shape[1:] if layout.positions else shape[-1:]), generator=generator)
        kept = torch.randperm(layer.width, generator=generator)[: layer.width // 2].sort().values
        smaller = copy.deepcopy(model)
        for tensor, cut_layout in layer.per_neuron:
            whole = tensors_by_name(smaller)[tensor]
            whole.data = cut_layout.select(whole.detach(), kept)
        for consumer, read in layer.reads.items():
            whole = read.select(graph.run_region(model, layer.name, pre, consumer), kept)
            result = graph.run_region(smaller, layer.name, layout.select(pre, kept), consumer)
            torch.testing.assert_close(result, whole)


def cut_with(name: str) -> set[tuple[str, int]]:
    """The tensors that are cut with the neurons of layer "0", each along a dimension that holds nothing else."""
    layer = seen(name)[2]["0"]
    assert all(layout == Layout.blocks(layout.dim, layer.width) for _, layout in layer.per_neuron)
    return {(tensor, layout.dim) for tensor, layout in layer.per_neuron}


def test_what_is_cut_with_the_neurons() -> None:
    assert seen("sequential")[2]["0"].per_neuron == ()
    assert cut_with("batch_norm_before") == {
        (f"1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")
    }
    assert cut_with("batch_norm_after") == {("2.running_mean", 0), ("2.running_var", 0)}
    assert seen("prelu_one")[2]["0"].per_neuron == ()
    assert cut_with("prelu_per_neuron") == {("1.weight", 0)}
    assert cut_with("per_channel_activation") == {("1.scale", 0), ("1.shift", 1)}


def test_modules_that_become_identities() -> None:
    assert seen("sequential")[2]["0"].region_modules == ("1",)
    assert seen("dropout")[2]["0"].region_modules == ("1", "2")  # seen in train mode only
    assert seen("dropout")[2]["3"].region_modules == ("4",)
    assert seen("batch_norm_before")[2]["0"].region_modules == ("1", "2")
    assert seen("transformer")[2]["layers.0.linear1"].region_modules == ("layers.0.activation", "layers.0.dropout")
    assert seen("linear_directly_on_linear")[2]["0"].region_modules == ()
    assert seen("CalledTwice")[2]["body.fc1"].region_modules == ("body.act",)


def test_consumers() -> None:
    assert seen("Heads")[2]["trunk"].consumers == ("a", "b")
    assert seen("Autoencoder")[2]["encoder.0"].consumers == ("mu", "logvar")
    assert seen("Tokens")[2]["fc1"].width == WIDTH


@pytest.mark.parametrize(
    ("activation", "traits"),
    [
        (nn.ReLU(), (True, False, True)),
        (nn.LeakyReLU(), (True, False, True)),
        (nn.Tanh(), (True, True, False)),
        (nn.Hardtanh(), (True, True, False)),
        (nn.Identity(), (True, True, True)),
        (nn.GELU(), (True, False, False)),
        (nn.Sigmoid(), (True, False, False)),
        (nn.PReLU(), (True, False, True)),
        (nn.PReLU(WIDTH), (False, False, False)),
        (nn.BatchNorm1d(WIDTH), (False, False, False)),
    ],
    ids=str,
)
def test_traits(activation: nn.Module, traits: tuple[bool, bool, bool]) -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), activation, nn.Linear(WIDTH, OUT))
    layer = observe(model, record(model, [torch.randn(9, IN)]))["0"]
    assert (layer.uniform, layer.odd, layer.homogeneous) == traits


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.GELU(), nn.Linear(WIDTH, OUT)).to(dtype)
    layer = observe(model, record(model, [torch.randn(9, IN, dtype=dtype)]))["0"]
    assert layer.merge_neurons is layer.merge_layer is None


def test_calls_of_several_tapes_must_agree() -> None:
    class Modes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, OUT)

        def forward(self, x: Tensor, flag: bool) -> Tensor:
            return (self.fc2 if flag else self.fc3)(self.fc1(x).relu())

    model = Modes()
    tapes = record(model, [True, False], call=lambda flag: model(torch.randn(4, IN), flag))
    assert observe(model, tapes[:1])["fc1"].consumers == ("fc2",)
    both = observe(model, tapes)["fc1"]
    assert both.consumers == ("fc2", "fc3")
    assert both.merge_neurons is None
    assert both.merge_layer == "calls disagree"


def test_consumers_that_read_different_values() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.a, self.b = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x)
            return self.a(h.relu()) + self.b(h.tanh())

    model = Two()
    graph = observe(model, record(model, [torch.randn(4, IN)]))
    assert graph["trunk"].merge_neurons is None
    pre = torch.randn(2, WIDTH)
    assert torch.equal(graph.run_region(model, "trunk", pre, "b"), pre.tanh())
    with pytest.raises(InputError, match="consumer="):
        graph.run_region(model, "trunk", pre)


def test_running_a_region_is_differentiable_and_changes_nothing() -> None:
    model, _, graph = seen("in_place_module")
    pre = torch.randn(3, WIDTH, requires_grad=True)
    before = pre.detach().clone()
    graph.run_region(model, "0", pre).sum().backward()
    assert torch.equal(pre, before)
    assert torch.equal(pre.grad, (before > 0).float())


def test_compiled_modules_have_their_own_names() -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUT))
    wrapper = nn.Module()
    wrapper.net = torch.compile(model, backend="eager")
    tapes = record(wrapper, [torch.randn(4, IN)], call=wrapper.net)
    graph = observe(wrapper, tapes)
    assert [layer.name for layer in graph.layers] == ["net.0"]
    assert graph["net.0"].region_modules == ("net.1",)


def test_a_recorded_training_step_is_observed() -> None:
    model = nn.Sequential(
        nn.Linear(IN, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, OUT)
    )
    with Recorder(model) as recorder:
        nn.functional.cross_entropy(model(torch.randn(9, IN)), torch.zeros(9, dtype=torch.long)).backward()
    graph = observe(model, [recorder.tape])
    assert graph["0"].region_modules == ("1", "2", "3")
    assert graph["0"].merge_layer is None


def test_train_mode_that_cannot_run() -> None:
    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, OUT))
    graph = observe(model, record(model, [torch.randn(1, IN)]))
    assert graph.refused["0"].key == "differs in train mode"


def test_old_weight_norm_and_pruning_masks_compute_the_weight() -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))
    prune.identity(model[0], "weight")
    assert observe(model, record(model, [torch.randn(4, IN)])).refused["0"].key == "weight computed"


def test_reasons_are_documented() -> None:
    assert all(text and text[0].islower() for text in REASONS.values())
    assert legend([str(Reason("columns mix"))]) == [f"columns mix: {REASONS['columns mix']}"]
    assert all(legend([str(Reason(key, "x"))])[0].startswith(key) for key in REASONS if "output" not in key)
    used = {reason.key for name in NAMES for reason in seen(name)[2].refused.values()}
    assert used <= set(REASONS)


def test_nothing_to_observe() -> None:
    with pytest.raises(InputError, match="tapes is empty"):
        observe(nn.Linear(1, 1), [])


def test_ten_layers_are_observed_quickly() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads wait for each other where the machine is busy
    parts = [part for _ in range(10) for part in (nn.Linear(50, 50), nn.Tanh())]
    model = nn.Sequential(*parts, nn.Linear(50, OUT))
    tapes = record(model, [torch.randn(64, 50)])
    times = []
    for _ in range(5):
        start = time.process_time()
        assert len(observe(model, tapes).layers) == 10
        times.append(time.process_time() - start)
    torch.set_num_threads(threads)
    assert min(times) < 0.5


def test_synchronized_batch_norm_waits_for_nobody(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4), nn.ReLU(), nn.Linear(4, 2))
    tapes = record(net, [torch.randn(8, 3)])
    for name, value in {"is_initialized": True, "get_world_size": 2}.items():  # as under DDP
        monkeypatch.setattr(torch.distributed, name, lambda *_, value=value: value)
    with pytest.raises(ValueError, match="SyncBatchNorm"):
        net(torch.randn(8, 3))  # on the CPU it refuses to; on a GPU it would wait
    before = {name: one.clone() for name, one in net.state_dict().items()}
    graph = observe(net, tapes)
    assert graph["0"].merge_neurons is None
    assert not graph.modeless
    assert "forward" not in vars(net[1])
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())


@pytest.mark.parametrize(
    ("between", "modeless"),
    [
        (nn.ReLU(), True),
        (nn.ReLU(inplace=True), True),
        (nn.Dropout(0.0), True),
        (nn.BatchNorm1d(4), False),
        (nn.Sequential(nn.Tanh(), nn.Dropout(0.5)), False),
    ],
)
def test_whether_both_modes_compute_the_same(between, modeless):
    net = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2))
    assert observe(net, record(net, [torch.randn(8, 3)])).modeless == modeless
