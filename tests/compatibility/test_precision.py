"""Precisions, compiled graphs, clipping, manual and several optimizers, gradient checkpointing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from tests.compatibility.training import EXACT, Batches, Net, Replant, merges, ours, trainer

BOLD = le.Tolerance(change=0.2)  # half precision rounds


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "32-true"])
@pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")
@pytest.mark.cell("Precision and graph", "precision={precision}")
def test_precision(tmp_path, precision):
    model, run = Net(), trainer(tmp_path, ours(tolerance=BOLD), precision=precision)
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    data = Batches()
    data.batches = [(x.to(dtype), y) for x, y in data.batches]
    run.fit(model, data)
    assert ("net.0", "condensation", 2) in merges(run)
    assert {one.dtype for one in model.parameters()} == {dtype}
    assert run.current_epoch == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.cell("Precision and graph", "precision=16-mixed (CUDA)")
def test_sixteen_mixed(tmp_path):
    model, run = Net(), trainer(tmp_path, ours(tolerance=BOLD), precision="16-mixed", accelerator="cuda")
    scales = []
    run.fit(model, Batches())
    scales.append(run.precision_plugin.scaler.get_scale())
    assert ("net.0", "condensation", 2) in merges(run)
    assert scales[0] > 0


class Compiled(Net):
    """Its network is compiled; counts how often the backend is asked for code."""

    def __init__(self):
        super().__init__()
        self.compilations = []

        def backend(graph, _):
            self.compilations.append(len(graph.graph.nodes))
            return graph.forward

        object.__setattr__(self, "run", torch.compile(self.net, backend=backend))

    def forward(self, x):
        return self.run(x)


class CompiledInside(Net):
    """A compiled submodule in its place, with `_orig_mod` in the names."""

    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


class CompiledStep(Net):
    """The training step is compiled."""

    def __init__(self):
        super().__init__()
        self.loss_of = torch.compile(self.loss_of, backend="eager")

    def loss_of(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch, _):
        return self.loss_of(*batch)


def final(model):
    net = getattr(model.net, "_orig_mod", model.net)
    return net[0].out_features, type(net[2]).__name__


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [Compiled, CompiledInside, CompiledStep], ids=lambda one: one.__name__)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.cell("Precision and graph", "torch.compile ({kind}), recompiled after a merge")
def test_compiled(tmp_path, kind):
    model, run = kind(), trainer(tmp_path, ours())
    run.fit(model, Batches())
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]
    assert final(model) == (3, "Identity")
    eager = trainer(tmp_path, ours())
    plain = Net()
    eager.fit(plain, Batches())
    for ours_, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours_, theirs, atol=1e-5)
    if kind is Compiled:
        assert len(model.compilations) >= 3  # at first, and after each merging event
        assert len(model.compilations) <= 8  # recording and measuring force eager and compile nothing


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Lightning's log, compiled
@pytest.mark.cell("Precision and graph", "trainer.fit(torch.compile(module))")
def test_a_compiled_lightning_module(tmp_path):
    model, run = Net(), trainer(tmp_path, ours())
    run.fit(torch.compile(model, backend="eager"), Batches())
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]
    assert final(model) == (3, "Identity")


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.cell("Precision and graph", "gradient clipping by {algorithm}")
def test_clipping(tmp_path, algorithm):
    run = trainer(tmp_path, ours(), gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
    run.fit(Net(), Batches())
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]


class Several(Net):
    """Manual optimization with two optimizers, one stepping every second batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.toggle_optimizer(first)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        if batch_idx % 2:
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            second.step()
            second.zero_grad()

    def configure_optimizers(self):
        named = list(self.named_parameters())
        weights, biases = ([one for name, one in named if name.endswith(kind)] for kind in ("weight", "bias"))
        return [torch.optim.Adam(weights, 1e-3), torch.optim.SGD(biases, 1e-2, momentum=0.9)], []


@pytest.mark.cell("Precision and graph", "manual optimization, several optimizers, one every second batch")
def test_several_optimizers(tmp_path):
    model, run = Several(), trainer(tmp_path, ours())
    run.fit(model, Batches())
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]
    held = [one for optimizer in run.optimizers for group in optimizer.param_groups for one in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in model.parameters()}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.cell("Precision and graph", "gradient checkpointing, use_reentrant={reentrant}")
def test_gradient_checkpointing(tmp_path, reentrant):
    class Checkpointed(Net):
        def forward(self, x):
            return checkpoint(self.net, x.clone().requires_grad_(), use_reentrant=reentrant)

    model, run = Checkpointed(), trainer(tmp_path, ours())
    run.fit(model, Batches())
    assert [epoch for _, _, epoch in merges(run)] == [2, 2, 4]


@pytest.mark.parametrize("schedule", ["none", "onecycle", "warmup", "cosine"])
@pytest.mark.cell("Precision and graph", "rate_factor: the rates go on below, schedule {schedule}")
def test_rates_are_scaled_after_a_merge(tmp_path, schedule):
    rates = {1.0: [], 0.5: []}

    class Watch(EmbeddingMonitor):
        def on_train_epoch_end(self, trainer, pl_module):
            rates[factor].append(trainer.optimizers[0].param_groups[0]["lr"])

    for factor in rates:
        pruner = EmbeddingPruner(EXACT, when=After(2, every_n_epochs=2), rate_factor=factor)
        trainer(tmp_path, [Watch(), Replant(), pruner]).fit(Net("adam", schedule), Batches())
    shares = (1, 1, 0.5, 0.5, 0.25, 0.25)
    assert rates[0.5] == pytest.approx([rate * share for rate, share in zip(rates[1.0], shares, strict=True)])
