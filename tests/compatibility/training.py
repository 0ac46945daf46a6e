"""A training with everything in it that can be turned on one by one: optimizers, schedules, data that resume."""

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import nn

import lightning_embed as le
from lightning_embed.callbacks import After, EmbeddingMonitor, EmbeddingPruner
from tests.callbacks.runs import trainer

__all__ = [
    "EXACT",
    "Batches",
    "Lines",
    "Net",
    "Replant",
    "duplicate",
    "merges",
    "ours",
    "outcome",
    "pruner_of",
    "trainer",
]

SAMPLES, BATCH = 128, 16
EXACT = le.Criteria(linearization=0.9999, condensation=0.9999, span=None)


class Net(L.LightningModule):
    """A classifier whose second hidden layer acts linearly and whose first holds every neuron twice."""

    def __init__(self, optimizer="adam", schedule="none", steps=48, seed=0):
        super().__init__()
        self.optimizer, self.schedule, self.steps = optimizer, schedule, steps
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8), nn.Hardtanh(-50.0, 50.0), nn.Linear(8, 3)
        )
        duplicate(self.net, 6)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self)
        if self.schedule == "none":
            return optimizer
        scheduler, interval = SCHEDULES[self.schedule](optimizer, self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": interval}]


def two_groups(model):
    named = list(model.named_parameters())
    decayed = [one for name, one in named if name.endswith("weight")]
    return torch.optim.AdamW([{"params": decayed}, {"params": [p for n, p in named if n.endswith("bias")], "lr": 2e-3}])


def one_cycle(optimizer, steps):
    cycles = "momentum" in optimizer.defaults or "betas" in optimizer.defaults  # LBFGS has neither
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps, cycle_momentum=cycles)


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "adamw": two_groups,
    "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3),
}
SCHEDULES = {
    "onecycle": lambda o, steps: (one_cycle(o, steps), "step"),
    "warmup": lambda o, _: (torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 20)), "step"),
    "cosine": lambda o, steps: (torch.optim.lr_scheduler.CosineAnnealingLR(o, steps), "step"),
}


def duplicate(net, half):
    """Every neuron of the first layer twice."""
    net = getattr(net, "_orig_mod", net)
    first, second = net[0], net[2] if isinstance(net[2], nn.Linear) else net[4]
    with torch.no_grad():
        first.weight[half:], first.bias[half:] = first.weight[:half], first.bias[:half]
        second.weight[:, half:] = second.weight[:, :half]


class Replant(L.Callback):
    """Makes neurons equal once more before a later merging event, in resumed and uninterrupted runs alike."""

    def __init__(self, epoch=4, half=3):
        self.epoch, self.half = epoch, half

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            duplicate(pl_module.net, self.half)


class Batches:
    """A loader that remembers in a checkpoint how far it is, as `torchdata`'s does; torch's own begins anew."""

    def __init__(self, seed=0, samples=SAMPLES):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 4, generator=generator)
        self.batches = list(zip(x.split(BATCH), (x[:, :3] + x[:, 1:]).argmax(1).split(BATCH), strict=True))
        self.begun, self.resume_at = 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.begun, self.resume_at = self.resume_at, 0
        while self.begun < len(self.batches):
            self.begun += 1
            yield self.batches[self.begun - 1]

    def state_dict(self):
        return {"begun": self.begun}

    def load_state_dict(self, state):
        self.resume_at = state["begun"] % len(self.batches)


class Lines(Logger):
    """Keeps every logged metric with its step."""

    def __init__(self):
        super().__init__()
        self.lines = []

    name, version = "lines", 0

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, {name: float(value) for name, value in metrics.items()}))

    def log_hyperparams(self, *args, **kwargs):
        pass


def ours(**options):
    """Monitor and pruner: merging events at the start of epochs 2 and 4."""
    pruner = {"criteria": EXACT, "when": After(2, every_n_epochs=2), **options}
    return [EmbeddingMonitor(every_n_steps=3), Replant(), EmbeddingPruner(**pruner)]


def pruner_of(run):
    return next(one for one in run.callbacks if isinstance(one, EmbeddingPruner))


def merges(run):
    """What was merged, at which epoch."""
    return [(one.layer, one.criterion, one.epoch) for one in pruner_of(run).records if one.done]


def outcome(run, model):
    """Everything that has to be equal: parameters by name, optimizer state, learning rates."""
    state = {
        "parameters": {name: one.detach().clone() for name, one in model.state_dict().items()},
        "optimizers": [one.state_dict() for one in run.optimizers],
        "schedulers": [one.scheduler.state_dict() for one in run.lr_scheduler_configs],
    }
    return _plain(state)


def _plain(tree):
    if isinstance(tree, torch.Tensor):
        return (tuple(tree.shape), tree.double().flatten().tolist())
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(one) for one in tree]
    return tree if not callable(tree) else None
