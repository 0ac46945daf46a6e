"""Poisson's equation on a square, by a physics-informed network on labelled tensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pina import Trainer
from pina.model import FeedForward
from pina.optim import TorchOptimizer
from pina.problem.zoo import Poisson2DSquareProblem
from pina.solver import PINN

from tests.packages.training import Trained, timed

LINES = """
    trainer = Trainer(solver, callbacks=[EmbeddingMonitor(), EmbeddingPruner()])
    trainer.train()

    with le.loading():
        solver = PINN.load_from_checkpoint(path, problem=problem, model=model)
"""


def network() -> FeedForward:
    return FeedForward(input_dimensions=2, output_dimensions=1, layers=[40, 40, 40], func=torch.nn.Tanh)


def train(callbacks: list[Any], folder: Path) -> Trained:
    problem = Poisson2DSquareProblem()
    problem.discretise_domain(20, mode="grid", domains="D") if "D" in problem.domains else None
    for domain in problem.domains:
        if domain != "D":
            problem.discretise_domain(30, mode="grid", domains=domain)
    solver = PINN(problem, network(), optimizer=TorchOptimizer(torch.optim.Adam, lr=3e-3))
    trainer = Trainer(
        solver,
        max_epochs=300,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found: dict[str, float] = {}
    with timed(found):
        trainer.train()
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(1))

    def predict(one: Any) -> torch.Tensor:
        from pina import LabelTensor

        with torch.no_grad():
            return one(LabelTensor(points.clone(), ["x", "y"])).as_subclass(torch.Tensor)

    truth = problem.solution(__import__("pina").LabelTensor(points, ["x", "y"])).as_subclass(torch.Tensor)
    return Trained(
        solver,
        trainer,
        lambda: predict(solver),
        lambda: float((predict(solver) - truth).norm() / truth.norm()),
        lambda path: trainer.save_checkpoint(path / "model.ckpt"),
        lambda path: predict(
            PINN.load_from_checkpoint(path / "model.ckpt", problem=problem, model=network(), weights_only=False)
        ),
        found["cpu"],
    )


MODELS = {"Poisson": partial(train)}
