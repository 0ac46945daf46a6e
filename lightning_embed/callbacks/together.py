"""One merge for all processes: the first one merges on everybody's data, the others become what it has become.

Nothing is computed twice, so processes cannot come to different results: architecture, tensors and optimizer state
that changed are sent as they are. Every process says whether it could follow, and if one could not, all of them
stop with its message.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_embed.errors import EmbeddingError
from lightning_embed.surgery import attach
from lightning_embed.surgery.change.optimizer import clear_flat_state
from lightning_embed.surgery.persist.checkpoint import become, describe
from lightning_embed.tape import Tape, decode, encode, from_plain, to_plain
from lightning_embed.tape.tape import model_device, tensors_by_name

log = logging.getLogger(__name__)


class ProcessError(EmbeddingError, RuntimeError):
    """A process of a distributed training could not take part in a merge, so all of them stop."""


@dataclass(frozen=True, eq=False)
class Training:
    """What a merge changes: the model, its averaged copies, the optimizers; and how their groups are bound by name."""

    model: nn.Module
    copies: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    names: Callable[[], Any]
    bind: Callable[[Any, Sequence[nn.Parameter]], None]

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The model and its copies."""
        return (self.model, *self.copies)


def gather(mine: Any) -> list[Any]:
    """What every process has, on the first one; an empty list on the others."""
    first = dist.get_rank() == 0
    found: list[Any] = [None] * dist.get_world_size() if first else []
    dist.gather_object(mine, found if first else None, dst=0)
    return found


def everywhere(mine: Any) -> list[Any]:
    """What every process has, on all of them."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def merge_together(
    training: Training, tapes: Sequence[Tape], merge: Callable[[Sequence[Tape]], list[dict[str, Any]] | None]
) -> list[dict[str, Any]] | None:
    """Let the first process merge on the tapes of all, and all others follow. Every process has to call.

    Args:
        training: what is changed.
        tapes: what this process recorded.
        merge: merges in place on the first process and returns the records as plain data, or None when it waits for
            more data.

    Returns:
        What `merge` returned, on every process.

    Raises:
        ProcessError: on every process, when one of them failed.
    """
    for one in training.models:
        attach(one)
    given = gather(_attempt(lambda: _sendable(tapes)))
    news = [_attempt(lambda: _lead(training, given, merge)) if given else None]
    dist.broadcast_object_list(news, src=0)
    assert news[0] is not None
    told, error = news[0]
    if dist.get_rank() and not error and told["records"] is not None:
        _, error = _attempt(lambda: _follow(training, told))
    failed = [f"process {rank}: {one}" for rank, one in enumerate(everywhere(error)) if one]
    if failed:
        raise ProcessError(
            f"A merge failed in {'; '.join(failed[:1] if news[0][1] else failed)}. All processes stop here, because "
            "they would hold different models; resume from the last checkpoint."
        )
    records: list[dict[str, Any]] | None = told["records"]
    return records


def _sendable(tapes: Sequence[Tape]) -> list[bytes]:
    """Tapes as bytes; what cannot be pickled is left out, as if it had not been recorded."""
    found = []
    for tape in tapes:
        try:
            found.append(pickle.dumps(to_plain(tape, strict=False)))
        except Exception as error:  # noqa: BLE001  # whatever an object's own pickling raises
            log.warning("A recorded step cannot be sent to the first process, and is left out: %s", error)
    return found


def _attempt(work: Callable[[], Any]) -> tuple[Any, str]:
    """What some work returns, and how it failed: other processes wait for an answer either way."""
    try:
        return work(), ""
    except Exception as error:  # noqa: BLE001  # it is raised again in every process
        return None, f"{type(error).__name__}: {error}"


def _lead(
    training: Training,
    given: Sequence[tuple[Any, str]],
    merge: Callable[[Sequence[Tape]], list[dict[str, Any]] | None],
) -> dict[str, Any]:
    for rank, (_, error) in enumerate(given):
        if error:
            raise ProcessError(f"process {rank} could not send what it recorded: {error}")
    device = model_device(training.model)
    tapes = [from_plain(pickle.loads(one), device, strict=False) for sent, _ in given for one in sent]  # noqa: S301  # by a process of this run
    before = [tensors_by_name(one) for one in training.models]
    records = merge(tapes)
    changed = [_changed(one, old) for one, old in zip(training.models, before, strict=True)]
    names = {id(tensor): name for name, tensor in changed[0].items()}
    states = [
        {
            names[id(parameter)]: encode(state, parameter.device)
            for parameter, state in optimizer.state.items()
            if id(parameter) in names
        }
        for optimizer in training.optimizers
    ]
    return {
        "records": records,
        "architectures": [describe(one) for one in training.models],
        "tensors": [{name: one.detach().cpu() for name, one in tensors.items()} for tensors in changed],
        "groups": training.names(),
        "states": states,
    }


def _changed(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are others than before: a merge never writes into one."""
    return {name: one for name, one in tensors_by_name(model).items() if before.get(name) is not one}


def _follow(training: Training, told: dict[str, Any]) -> None:
    if not any(told["tensors"]):
        return
    before = list(training.model.parameters())
    for model, architecture, tensors in zip(training.models, told["architectures"], told["tensors"], strict=True):
        become(model, architecture)
        named = tensors_by_name(model)
        with torch.no_grad():
            for name, value in tensors.items():
                named[name].copy_(value)
    training.bind(told["groups"], before)
    named = tensors_by_name(training.model)
    for optimizer, states in zip(training.optimizers, told["states"], strict=True):
        clear_flat_state(optimizer)
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        for gone in [one for one in before if id(one) not in held]:
            optimizer.state.pop(gone, None)
        for name in told["tensors"][0]:
            parameter = named[name]
            if name in states:
                optimizer.state[parameter] = decode(states[name], parameter.device)
            else:
                optimizer.state.pop(parameter, None)
