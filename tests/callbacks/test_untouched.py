"""In a training only what an optimizer trains is touched."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import EmbeddingPruner
from tests.callbacks.runs import loader, trainer


def net(out=3):
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, out))


class Trained(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = net()

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=1e-2)


class FrozenTeacher(Trained):
    """Its outputs are targets; nothing trains it."""

    def __init__(self):
        super().__init__()
        self.other = net().requires_grad_(False)

    def training_step(self, batch, _):
        with torch.no_grad():
            soft = self.other(batch[0]).softmax(1)
        return -(soft * self.net(batch[0]).log_softmax(1)).sum(1).mean()


class TargetNetwork(Trained):
    """It follows the trained one by steps of its own; no optimizer holds it, though it requires gradients."""

    def __init__(self):
        super().__init__()
        self.other = copy.deepcopy(self.net)

    def training_step(self, batch, _):
        with torch.no_grad():
            aim = self.other(batch[0])
        return nn.functional.mse_loss(self.net(batch[0]), aim + nn.functional.one_hot(batch[1], 3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


class BackboneAtRest(Trained):
    """A frozen backbone under a head that is trained: the backbone's last layer feeds trained weights, and stays."""

    def __init__(self):
        super().__init__()
        self.other, self.net = net(8).requires_grad_(False), nn.Sequential(nn.Tanh(), *net())
        self.net[1] = nn.Linear(8, 16)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(self.other(batch[0])), batch[1])


LOOSE = le.Criteria(linearization=0.0, condensation=0.5, span=0.3)


@pytest.mark.parametrize("kind", [FrozenTeacher, TargetNetwork, BackboneAtRest])
@pytest.mark.parametrize(
    "size", [{"criteria": LOOSE, "tolerance": le.Tolerance(change=0.5)}, {"budget": 0.75}], ids=["thresholds", "budget"]
)
def test_what_nobody_trains_stays_bit_for_bit(tmp_path, kind, size):
    model = kind()
    before = {name: one.clone() for name, one in model.other.state_dict().items()}
    pruner = EmbeddingPruner(**size, when=2)
    trainer(tmp_path, [pruner]).fit(model, loader())
    after = model.other.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert any(one.done and one.layer.startswith("net") for one in pruner.records)


def test_excluded_layers_stay_and_wrong_names_are_told_before_training(tmp_path):
    pruner = EmbeddingPruner(LOOSE, le.Tolerance(change=0.5), when=2, exclude="net.0")
    model = Trained()
    trainer(tmp_path, [pruner]).fit(model, loader())
    assert model.net[0].out_features == 16
    assert all(one.layer != "net.0" for one in pruner.records if one.done and one.kind != "reconstruction")
    with pytest.raises(le.InputError, match="exclude names 'nett'"):
        trainer(tmp_path, [EmbeddingPruner(exclude="nett")]).fit(Trained(), loader())
