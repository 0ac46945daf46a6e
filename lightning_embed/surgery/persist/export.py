"""Export: a merged model as plain torch, with no trace of the merging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import nn

from lightning_embed.errors import ReplayError
from lightning_embed.surgery.calibration import batches_of
from lightning_embed.surgery.persist.checkpoint import detach
from lightning_embed.surgery.persist.copying import copy_of
from lightning_embed.tape import Tape, record, replay


@torch.inference_mode(mode=False)
def export(model: nn.Module, data: Any = None, *, call: Callable[[Any], Any] | None = None) -> nn.Module:
    """A copy of a model that needs no lightning-embed: no hooks and keys of ours, no identities in Sequentials.

    The copy is pickled, saved, compiled and exported like any other module; the extra `onnx` installs what
    `torch.onnx.export` needs. Its state dict loads into a model of its size, no more into one of the original size
    (see `attach`).

    Identities go where the model itself is an `nn.Sequential`, or one in it, and has Sequential's own forward; what
    is behind them moves up: what was called "4.weight" may be called "2.weight" then. A Sequential in code of your own
    may be indexed there, `self.net[4]`; with `data` it is tried, and kept if the outputs are the same bit for bit.
    Identities that are attributes of other modules stay, because code calls them by name.

    Preserved: the outputs, bit for bit; modes, dtypes, devices, your own hooks. The given model is left untouched.

    Args:
        model: a merged module, or any other.
        data: as in `prune`; a batch is enough. None leaves Sequentials in other modules as they are.
        call: as in `prune`.

    Returns:
        The copy.

    Raises:
        InputError: the model cannot be copied; the data are empty or cannot be run.

    >>> export(nn.Sequential(nn.Identity(), nn.Linear(2, 3), nn.Identity(), nn.ReLU()))
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
    )
    """
    copied = copy_of(model)
    detach(copied)
    known = _inner(copied)
    for one in known:
        _drop(one)
    others = [one for one in copied.modules() if _calls_in_turn(one) and one not in known and any(map(_empty, one))]
    if data is not None and others:
        tapes = record(copied, batches_of(data), call=call)
        for one in others:
            _try(copied, one, tapes)
    return copied


def _calls_in_turn(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether a call of a module is a call of its children, one after the other."""
    own = type(module).forward is nn.Sequential.forward and "forward" not in vars(module)
    return isinstance(module, nn.Sequential) and own


def _empty(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not module._forward_hooks and not module._forward_pre_hooks


def _inner(module: nn.Module) -> list[nn.Sequential]:
    """The model and the Sequentials in it, as far as there is no code but torch's that could index them."""
    if type(module) is not nn.Sequential or not _calls_in_turn(module):
        return []
    return [module, *(one for child in module for one in _inner(child))]


def _drop(sequential: nn.Sequential) -> None:
    """Take the identities out; children that are called by number are numbered anew."""
    kept = [(name, child) for name, child in sequential._modules.items() if child is not None and not _empty(child)]
    numbered = all(name.isdigit() for name in sequential._modules)
    sequential._modules = {str(at) if numbered else name: child for at, (name, child) in enumerate(kept)}


def _try(model: nn.Module, sequential: nn.Sequential, tapes: Sequence[Tape]) -> None:
    """Take the identities of one Sequential out, unless the outputs change."""
    before, children = [replay(model, tape) for tape in tapes], sequential._modules
    _drop(sequential)
    try:
        after = [replay(model, tape) for tape in tapes]
        same = all(
            torch.equal(old, new)
            for tape, other in zip(before, after, strict=True)
            for old, new in zip(tape, other, strict=True)
        )
    except ReplayError:
        same = False
    if not same:
        sequential._modules = children
