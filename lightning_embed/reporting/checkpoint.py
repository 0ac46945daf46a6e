"""What a checkpoint tells of its own architecture and of the merges that led to it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_embed.errors import CheckpointError, InputError
from lightning_embed.surgery import KEY, Record, read_architecture


@dataclass(frozen=True)
class LayerRow:
    """A layer of a checkpoint.

    Attributes:
        name: qualified name.
        inputs: number of values or channels that it reads; None of a slot that is an identity now.
        width: number of neurons; None likewise.
        parameters: of the layer.
        merges: what was done to it, in order, in words.
    """

    name: str
    inputs: int | None
    width: int | None
    parameters: int
    merges: str


@dataclass(frozen=True, eq=False)
class Description:
    """What a checkpoint holds.

    Attributes:
        file: its name.
        epoch: epoch and step at which it was saved; None of a plain state dict.
        step: likewise.
        parameters: numbers in the floating-point tensors of its state dict.
        described: whether it describes its own architecture.
        layers: weighted layers and merged slots, in order.
        records: the merges that were done.
    """

    file: str
    epoch: int | None
    step: int | None
    parameters: int
    described: bool
    layers: tuple[LayerRow, ...]
    records: tuple[Record, ...]


def describe_checkpoint(path: Path | str) -> Description:
    """Read what a checkpoint says of its architecture; no model is built and no code in the file is run.

    Args:
        path: a Lightning checkpoint, or a file with a state dict.

    Raises:
        InputError: there is no such file.
        CheckpointError: it holds no state dict, or one whose architecture key is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a checkpoint, such as epoch=9-step=150.ckpt.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as a checkpoint of plain tensors and data: {reason}") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(one, Tensor) for one in state.values()):
        raise CheckpointError(f"{path} holds no state dict.")
    prefixes = [key.removesuffix(KEY) for key in state if isinstance(key, str) and key.endswith(KEY)]
    prefix = min(prefixes, key=len, default="")  # parts of a model describe themselves too
    architecture = read_architecture(state, prefix)
    told = architecture or {"slots": {}, "history": []}
    records = tuple(Record.from_dict(one) for one in told["history"])
    tensors = {name: one for name, one in state.items() if isinstance(one, Tensor) and not name.endswith(KEY)}
    return Description(
        file=path.name,
        epoch=checkpoint.get("epoch"),
        step=checkpoint.get("global_step"),
        parameters=sum(one.numel() for one in tensors.values() if one.is_floating_point()),
        described=architecture is not None,
        layers=_layers(tensors, prefix, told["slots"], records),
        records=records,
    )


def _layers(
    tensors: Mapping[str, Tensor], prefix: str, slots: Mapping[str, Any], records: tuple[Record, ...]
) -> tuple[LayerRow, ...]:
    sizes = {
        name.removeprefix(prefix).removesuffix(".weight"): one.shape
        for name, one in tensors.items()
        if name.endswith(".weight") and one.dim() >= 2
    }
    gone = [name for name, shapes in slots.items() if shapes is None and any(one.layer == name for one in records)]
    rows = []
    for name in sorted({*sizes, *gone}, key=_order):
        shape = sizes.get(name)
        held = [one for key, one in tensors.items() if key.removeprefix(prefix).rpartition(".")[0] == name]
        done = [f"{one.width[0]} → {one.width[1]} ({one.criterion})" for one in records if one.layer == name]
        rows.append(
            LayerRow(
                name=name,
                inputs=None if shape is None else int(shape[1]),
                width=None if shape is None else int(shape[0]),
                parameters=sum(one.numel() for one in held),
                merges=", ".join(done),
            )
        )
    return tuple(rows)


def _order(name: str) -> list[tuple[int, int, str]]:
    """Numbers in names count as numbers, so that layer 10 comes after layer 2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
