"""Carry out a plan on a model: new weights computed, checked, then put in place all at once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_embed.surgery.change.optimizer import remap_optimizers
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.records import Record
from lightning_embed.surgery.change.step import Applied
from lightning_embed.surgery.persist.checkpoint import Attachment, attach, detach, is_attached

log = logging.getLogger(__name__)


@torch.inference_mode(mode=False)
def apply(
    model: nn.Module,
    plan: Plan,
    *,
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] = (),
) -> None:
    """Carry out a plan on a model in place, without a check of its effect.

    A layer merge puts W₂ diag(λ) W₁ and W₂ (λ∘b₁ + μ) + b₂ into the consumer (paper 000, eq. 4.2 read from right to
    left); a neuron merge keeps some rows of W₁ and puts W₂ M and W₂ s + b₂ into the consumer, where the features of
    all neurons are M φ_kept + s. The model's state dict describes its architecture from then on (see `attach`).

    Preserved: the outputs as far as the plan's fits hold (`prune` measures that, and undoes what changes too much),
    every other parameter, names of modules, modes, hooks on modules. Not preserved: gradient hooks on the parameters
    that are replaced; the log says so.

    Args:
        model: the model that the plan was proposed for (or one of the same architecture).
        plan: what to merge, from `propose` or `Plan.from_dict`.
        optimizers: optimizers that hold the model's parameters; they are edited in place: the same objects, groups
            and hyper-parameters, with first and second moments carried over where a map exists.

    Raises:
        InputError: a step does not fit the model (a name is missing, a width differs, a value is not finite). The
            model and the optimizers are then as they were before the call.

    >>> from lightning_embed import Criteria, propose
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1))
    >>> for parameter, value in zip(net.parameters(), (2.0, 1.0, 3.0, 0.0)):
    ...     _ = parameter.data.fill_(value)
    >>> apply(net, propose(net, torch.linspace(-1, 1, 64)[:, None]))
    >>> [round(parameter.item(), 4) for parameter in net.parameters()]  # 3 (2 x + 1)
    [6.0, 3.0]
    """
    if isinstance(optimizers, torch.optim.Optimizer):
        optimizers = (optimizers,)
    optimizers = list(optimizers)
    known = is_attached(model)
    attachment = attach(model)
    done: list[Applied] = []
    try:
        for step in plan:
            done.append(step.apply(model, attachment))  # noqa: PERF401  # those before an error are needed
    except Exception:
        for applied in reversed(done):
            applied.undo()
        attachment.forget_untouched(model)
        if not known:
            detach(model)
        raise
    # the steps' moves chain: what one step's move calls new is the next one's old
    for step, applied in zip(plan, done, strict=True):
        settle(attachment, applied, optimizers, Record.of(step))


def settle(
    attachment: Attachment,
    applied: Applied,
    optimizers: Iterable[torch.optim.Optimizer],
    record: Record,
    *,
    anew: bool = False,
) -> None:
    """Make a step final: the optimizers follow (see `remap_optimizers`), the model's history tells of it."""
    remap_optimizers(optimizers, applied.moves, anew=anew)
    attachment.history.append(record.to_dict())
    hooked = sum(bool(move.old is not None and _has_hooks(move.old)) for move in applied.moves)
    if hooked:
        log.warning(
            "%d merged parameters of %s and its consumers had gradient hooks, which the new ones do not have; "
            "register them again.",
            hooked,
            record.layer,
        )


def _has_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))
