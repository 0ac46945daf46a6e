"""What packages do that trainings of one's own do not: small models of the constructs found there."""

import copy
import dataclasses
import logging
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingMonitor, EmbeddingPruner
from tests.callbacks.runs import Planted, loader, trainer

EXACT = {"criteria": le.Criteria(linearization=0.9999, condensation=0.9999, span=None), "when": 2}


class Labelled(torch.Tensor):
    """A tensor with names for its columns, which makes copies of itself in a way of its own."""

    def clone(self, *args, **kwargs):
        out = super().clone(*args, **kwargs)
        out.labels = self.labels
        return out

    def detach(self):
        raise RuntimeError("labels cannot be detached")


class OnLabels(Planted):
    def training_step(self, batch, _):
        x = batch[0].as_subclass(Labelled)
        x.labels = ["a", "b", "c", "d"]
        return nn.functional.cross_entropy(self.net(x).as_subclass(torch.Tensor), batch[1])


@dataclasses.dataclass
class Answer:
    """Logits beside what nobody trains on."""

    hidden: torch.Tensor
    logits: torch.Tensor


class Output(OrderedDict):
    """A mapping that is read by attribute too, as model libraries return."""

    __getattr__ = OrderedDict.__getitem__


class Told:
    """An object of a package's own."""

    def __init__(self, hidden, logits):
        self.inner, self.loud = {"hidden": hidden}, logits
        self.myself = self


def normal(_hidden, logits):
    return torch.distributions.Independent(torch.distributions.Normal(logits, torch.ones(())), 1)


def mixture(_hidden, logits):
    kinds = torch.distributions.Categorical(logits=torch.zeros(len(logits), 2))
    parts = torch.stack([logits, logits + 1.0], 1)
    return torch.distributions.MixtureSameFamily(
        kinds, torch.distributions.Independent(torch.distributions.Normal(parts, 1.0), 1)
    )


RETURNED = {
    "dictionary": (lambda hidden, logits: {"hidden": hidden, "logits": logits}, lambda out: out["logits"]),
    "dataclass": (Answer, lambda out: out.logits),
    "model output": (lambda hidden, logits: Output(hidden=hidden, logits=logits), lambda out: out.logits),
    "object": (Told, lambda out: out.loud),
    "distribution": (normal, lambda out: out.mean),
    "mixture": (mixture, lambda out: out.component_distribution.base_dist.loc[:, 0]),
}


class Rich(Planted):
    """Returns its last hidden layer beside the logits, in some wrapping."""

    def __init__(self, kind):
        super().__init__()
        self.make, self.read = RETURNED[kind]

    def forward(self, x):
        hidden = self.net[:4](x)
        return self.make(hidden, self.net[4](hidden))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.read(self(batch[0])), batch[1])


def merged(pruner):
    return {one.layer for one in pruner.records if one.done}


def test_tensors_of_a_subclass_are_recorded_as_plain_ones(tmp_path):
    monitor, pruner = EmbeddingMonitor(every_n_steps=4), EmbeddingPruner(**EXACT)
    run = trainer(tmp_path, [monitor, pruner])
    run.fit(OnLabels(), loader())
    assert merged(pruner) == {"net.0", "net.2"}
    assert "mpc/net.0" in run.callback_metrics
    run.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = trainer(tmp_path, [EmbeddingMonitor(every_n_steps=4), EmbeddingPruner(**EXACT)], max_epochs=7)
    again.fit(OnLabels(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.current_epoch == 7


@pytest.mark.parametrize("kind", RETURNED)
def test_outputs_of_any_kind_are_those_that_lead_to_the_loss(tmp_path, kind):
    pruner = EmbeddingPruner(**EXACT)
    trainer(tmp_path, [EmbeddingMonitor(every_n_steps=4), pruner]).fit(Rich(kind), loader())
    assert merged(pruner) == {"net.0", "net.2"}


@pytest.mark.parametrize("kind", [kind for kind in RETURNED if kind != "mixture"])
def test_outputs_of_any_kind_are_measured_offline(kind):
    model = Rich(kind)
    found = {one.layer: one.merge_neurons for one in le.measure(model, torch.randn(64, 4), output=model.read).layers}
    assert found == {"net.0": None, "net.2": None}


def test_output_says_what_counts_where_a_hidden_layer_must_stay_as_it_is(tmp_path):
    said = []
    for output in (lambda out: out["hidden"], lambda out: out["logits"]):
        pruner = EmbeddingPruner(**EXACT, output=output)
        trainer(tmp_path, [pruner]).fit(Rich("dictionary"), loader())
        said.append(merged(pruner))
    assert said == [{"net.0"}, {"net.0", "net.2"}]


def test_output_that_fits_no_call_is_said_and_training_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lightning_embed"):
        trainer(tmp_path, [EmbeddingMonitor(4, output=lambda out: out["nothing"])]).fit(Rich("dictionary"), loader())
    assert [one for one in caplog.messages if "output= fits none of the recorded calls: KeyError" in one]
    with pytest.raises(le.InputError, match="output"):
        EmbeddingPruner(output="logits")


class Unseen(Planted):
    """A step whose outputs do not come from calls that can be recorded; it says itself how to run a batch."""

    def training_step(self, batch, _):
        weights = dict(self.net.named_parameters())
        logits = torch.func.functional_call(self.net, {name: 1.0 * one for name, one in weights.items()}, batch[0])
        return nn.functional.cross_entropy(logits, batch[1])


class Calibrated(Unseen):
    def calibration_step(self, batch):
        return self.net(batch[0])


@pytest.mark.parametrize(
    ("kind", "options"), [(Calibrated, {}), (Unseen, {"call": lambda module, batch: module.net(batch[0])})]
)
def test_a_module_or_the_user_says_how_a_batch_is_run(tmp_path, kind, options):
    monitor, pruner = EmbeddingMonitor(every_n_steps=4, **options), EmbeddingPruner(**EXACT, **options)
    run = trainer(tmp_path, [monitor, pruner])
    run.fit(kind(), loader())
    assert merged(pruner) == {"net.0", "net.2"}
    assert "mpc/net.0" in run.callback_metrics


class Condition(nn.Module):
    """A loss that holds the network and differentiates it by its inputs, as packages for physics have them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        x = x.clone().requires_grad_()
        u = self.net(x)
        slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        return (slope - x.cos()).square().mean()


class Physics(Planted):
    def __init__(self):
        super().__init__()
        self.conditions = nn.ModuleList([Condition(self.net)])
        del self.net

    def training_step(self, batch, _):
        return sum(one(batch[0]) for one in self.conditions)


def test_networks_inside_losses_that_differentiate_them_are_reached(tmp_path, caplog):
    monitor, pruner = EmbeddingMonitor(every_n_steps=4), EmbeddingPruner(**EXACT)
    run = trainer(tmp_path, [monitor, pruner])
    with caplog.at_level(logging.WARNING, "lightning_embed"):
        run.fit(Physics(), loader())
    assert merged(pruner) >= {"conditions.0.net.0", "conditions.0.net.2"}
    assert "mpc/conditions.0.net.0" in run.callback_metrics
    assert not [one for one in caplog.records if one.name.startswith("lightning_embed") and one.levelno > logging.INFO]


def test_callbacks_are_copied_and_pickled_without_what_is_under_way(tmp_path):
    monitor, pruner = EmbeddingMonitor(every_n_steps=4), EmbeddingPruner(**EXACT)
    kept = {}

    class Keep(EmbeddingMonitor):
        def on_train_batch_end(self, *_):
            kept.setdefault("copies", copy.deepcopy([monitor, pruner]))

    run = trainer(tmp_path, [monitor, pruner, Keep()])
    run.fit(Planted(), loader())
    for one in (*kept["copies"], *pickle.loads(pickle.dumps([monitor, pruner])), *copy.deepcopy([monitor, pruner])):
        assert type(one) in (EmbeddingMonitor, EmbeddingPruner)
        trainer(tmp_path, [one]).fit(Planted(), loader())
    copied = copy.deepcopy(pruner)
    assert [one.to_dict() for one in copied.records] == [one.to_dict() for one in pruner.records]
    assert copied.records is not pruner.records
    torch.save({"callbacks": [monitor, pruner]}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["callbacks"]
    assert len(loaded[1].records) == len(pruner.records)


class Lagging(Planted):
    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(12, momentum=0.001))
        with torch.no_grad():
            self.net[0].bias += 5.0


def test_batch_norms_that_lag_are_settled_with_the_event(tmp_path):
    model, pruner = Lagging(), EmbeddingPruner(**EXACT)
    trainer(tmp_path, [pruner], max_epochs=3).fit(model, loader(1024))
    assert merged(pruner) >= {"net.0", "batch norms"}
    x = loader(1024).dataset.tensors[0]
    pre = model.net[0](x)
    assert (model.net[1].running_mean - pre.mean(0)).abs().max() < 0.5  # it began five away
    again, none = Lagging(), EmbeddingPruner(criteria=le.Criteria(None, None, None), when=2)
    trainer(tmp_path, [none], max_epochs=3).fit(again, loader(1024))
    assert (again.net[1].running_mean - again.net[0](x).mean(0)).abs().max() > 2  # nothing merged: as it was


def test_epochs_without_a_sample_are_not_measured(tmp_path, monkeypatch):
    monitor, calls = EmbeddingMonitor(every_n_steps=20), []
    measure = monitor._measure
    monkeypatch.setattr(monitor, "_measure", lambda *args, **kwargs: calls.append(kwargs) or measure(*args, **kwargs))
    run = trainer(tmp_path, [monitor], max_epochs=40)
    run.fit(Planted(), loader(32, 32))
    assert len(calls) == 4  # two samples, in the step and at the end of the epoch
    assert run.callback_metrics["width"] == 20


def test_an_event_in_vain_doubles_the_time_to_the_next(tmp_path):
    asked = []

    class Asked(EmbeddingPruner):
        def _note(self, trainer, pl_module, records):
            asked.append(trainer.current_epoch)
            super()._note(trainer, pl_module, records)

    criteria = le.Criteria(linearization=None, condensation=None, span=None)
    trainer(tmp_path, [Asked(criteria, when=1)], max_epochs=20).fit(Planted(), loader())
    assert asked == [1, 3, 7, 15]


@pytest.mark.parametrize("merges", [False, True])
def test_a_module_in_which_nothing_was_merged_is_pickled_as_it_came(tmp_path, merges):
    options = EXACT if merges else {"criteria": le.Criteria(None, None, None), "when": 2}
    model = Planted()
    trainer(tmp_path, [EmbeddingMonitor(4), EmbeddingPruner(**options)]).fit(model, loader())
    assert (b"lightning_embed" in pickle.dumps(model.net)) == merges
    assert bool(model._state_dict_hooks) == merges
