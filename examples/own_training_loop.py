"""Cut a network in the middle of a training loop of your own, without Lightning, and train on.

    python examples/own_training_loop.py

Trains a tanh MLP on scikit-learn's digits, merges what `prune` allows, carries the same plan over to the model and the
optimizer that are in use, and goes on with the smaller network.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import lightning_embed as le

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
train, test = slice(0, 1200), slice(1200, None)

model = nn.Sequential(
    nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10)
)
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.05)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def train_epochs(count):
    for _ in range(count):
        for batch in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
            optimizer.step()


def accuracy():
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


train_epochs(20)
print(f"before: accuracy {accuracy():.3f}")

result = le.prune(model, images[train], tolerance=le.Tolerance(change=0.05, agreement=0.99))
print(result)

le.apply(model, result.plan, optimizers=optimizer)  # the model and the optimizer in use, by the plan that was checked
print(f"right after: accuracy {accuracy():.3f}, {sum(p.numel() for p in model.parameters()):,} parameters")

train_epochs(10)
print(f"trained on: accuracy {accuracy():.3f}")
