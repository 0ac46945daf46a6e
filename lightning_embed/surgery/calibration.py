"""Calibration data: from what a user gives to tapes, one half that fits and one half that decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import is_layer
from lightning_embed.surgery.persist.copying import lazy_refused
from lightning_embed.tape import Tape, deal, record
from lightning_embed.tape.tree import tensors_of

MAX_SAMPLES = 4096
BATCH = 256


def halves(
    model: nn.Module,
    data: Any,
    call: Callable[[Any], Any] | None,
    output: Callable[[Any], Any] | None,
    seed: int,
) -> tuple[list[Tape], list[Tape]]:
    """Record calibration tapes and deal them out in two halves, one that fits and one that decides."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not any(is_layer(one) for one in model.modules()):
        raise InputError(
            f"{type(model).__name__} has no nn.Linear and no convolution, so there is no hidden layer that could be "
            "measured or merged."
        )
    empty = [name for name, one in model.named_parameters() if one.is_meta]
    if empty:
        raise InputError(f"{empty[0]} is on the meta device and holds no values; load or initialise the model first.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed devices that are not put back
        batches = batches_of(data)
    with lazy_refused(model):
        fit, decide = deal(record(model, batches, call=call, output=output))
    if not decide:
        raise InputError(
            "data holds a single calibration sample; one half of the data fits and the other half decides, "
            "so at least two are needed (some hundreds are sensible)."
        )
    return fit, decide


def batches_of(data: Any) -> list[Any]:
    """Batches of together about `MAX_SAMPLES` samples, of a tensor at least two."""
    if isinstance(data, Tensor):
        batches: list[Any] = (
            list(data[:MAX_SAMPLES].split(max(1, min(BATCH, -(-len(data) // 2))))) if data.dim() else []
        )
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, dict)):
        batches, samples = [], 0
        for batch in data:
            if _samples(batch) == 0:
                continue
            batches.append(batch)
            samples += _samples(batch)
            if samples >= MAX_SAMPLES:
                break
    else:
        raise InputError(f"data must be a DataLoader, an iterable of batches or a tensor, got {type(data).__name__}.")
    if not any(map(_samples, batches)):
        raise InputError("data is empty: there is no calibration sample to measure anything on.")
    return batches


def _samples(batch: Any) -> int:
    first = next(iter(tensors_of(batch)), None)
    return 1 if first is None or first.dim() == 0 else len(first)
