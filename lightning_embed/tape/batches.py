"""Record calls of a model on batches, offline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.tape.recorder import Recorder
from lightning_embed.tape.tape import Tape, model_device, preserved, set_modes
from lightning_embed.tape.tree import map_tensors, tensors_of


def record(
    model: nn.Module,
    batches: Iterable[Any],
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
) -> list[Tape]:
    """Record one tape for every batch, in eval mode and under `no_grad`.

    Args:
        model: the module that is called.
        batches: an iterable of batches, such as a DataLoader.
        call: batch → outputs, in whatever way it calls the model. By default the model's `calibration_step(batch)`
            if it has one, else `model(batch)`, or `model(batch[0])` for a tuple or list.
        output: which of the returned tensors are the outputs; by default all floating-point ones.

    Returns:
        The tapes, whose outputs are what `call` (or `output`) returned.

    Raises:
        InputError: there is no batch; a batch cannot be run without `call=`; what was returned holds no tensor that
            the model computed.

    Training modes, buffers and random state are preserved.

    >>> from lightning_embed.tape import replay
    >>> [tape] = record(nn.Linear(2, 1), [(torch.ones(3, 2), "targets")])
    >>> tape.samples, [tuple(output.shape) for output in replay(nn.Linear(2, 1), tape)]
    (3, [(3, 1)])
    """
    run = call or getattr(model, "calibration_step", None) or _default_call(model)
    tapes = []
    with torch.inference_mode(mode=False), torch.no_grad(), preserved(model):
        for number, batch in enumerate(batches):
            set_modes(model, training=False)
            tapes.append(_record_batch(model, number, batch, run, output, asked=call is not None))
    if not tapes:
        raise InputError("batches is empty: there is no batch to record. Give at least one batch of inputs.")
    return tapes


def _record_batch(
    model: nn.Module,
    number: int,
    batch: Any,
    run: Callable[[Any], Any],
    output: Callable[[Any], Any] | None,
    *,
    asked: bool,
) -> Tape:
    recorder = Recorder(model)
    with recorder:
        try:
            returned = run(batch)
        except Exception as error:
            if asked or isinstance(error, InputError):
                raise
            raise InputError(
                f"Batch {number} of type {type(batch).__name__} could not be run through {type(model).__name__} "
                f"({type(error).__name__}: {error}). Pass call=, a function that takes a batch, calls the model on "
                "it and returns the outputs, for example call=lambda batch: model(batch['x'])."
            ) from error
        selected = returned if output is None else output(returned)
        wanted = [tensor for tensor in tensors_of(selected) if tensor.is_floating_point()]
        if not wanted:
            got = type(selected).__name__ + _dtypes(selected)
            raise InputError(
                f"Running batch {number} returned no floating-point tensor (got {got}). "
                "Pass call= that returns the model's outputs, or output= that selects them; torch.view_as_real turns "
                "complex ones into real ones."
            )
        tape = recorder.stop_with(wanted)
    if tape is None:
        raise InputError(
            f"The outputs of batch {number} cannot be traced to the model: {recorder.reason}. "
            "Pass call= that calls the model, or its layers, on the batch and returns tensors that they computed."
        )
    return tape


def _dtypes(returned: Any) -> str:
    found = {str(tensor.dtype) for tensor in tensors_of(returned)}
    return f" of {', '.join(sorted(found))}" if found else ""


def _default_call(model: nn.Module) -> Callable[[Any], Any]:
    def call(batch: Any) -> Any:
        given = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        device = model_device(model)
        return model(map_tensors(lambda tensor: tensor.to(device), given))

    return call
