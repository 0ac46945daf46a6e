"""Load merged models where the code that builds them is not one's own."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_embed.errors import CheckpointError
from lightning_embed.surgery.persist.checkpoint import KEY, attach

M = TypeVar("M", bound=nn.Module)


@contextmanager
def loading() -> Iterator[None]:
    """Let whatever is loaded inside take a merged state dict, also where other code builds the module and loads it.

    Packages that build a model in their own `load` leave nothing to call `attach` on. Inside this context every
    module whose `load_state_dict` is given a state dict of a merged model is attached first, be it the whole model or
    the part of it that the package saves.

    >>> from lightning_embed import prune
    >>> def build():
    ...     torch.manual_seed(0)
    ...     return nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2))
    >>> saved = prune(build(), torch.randn(64, 3)).model.state_dict()
    >>> with loading():
    ...     loaded = build()
    ...     _ = loaded.load_state_dict(saved)
    >>> loaded
    Sequential(
      (0): Identity()
      (1): Identity()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    theirs = nn.Module.load_state_dict

    @functools.wraps(theirs)
    def load(self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(key, str) and key.endswith(KEY) for key in state_dict):
            attach(self)
        return theirs(self, state_dict, *args, **kwargs)

    with ExitStack() as stack:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]  # put back below
        stack.callback(setattr, nn.Module, "load_state_dict", theirs)
        if "darts" in sys.modules:  # it reads none but the classes that it is told of
            ours = importlib.import_module("lightning_embed.callbacks").PICKLED
            stack.enter_context(importlib.import_module("darts.utils.serialization").safe_globals(list(ours)))
        yield


def load_from_checkpoint(cls: type[M], path: str | Path, *, weights_only: bool | None = None, **kwargs: Any) -> M:
    """Build a module and load a checkpoint into it at whatever size it was saved, with no trainer.

    A class that has a `load_from_checkpoint` of its own, as every LightningModule, is asked for it.

    Args:
        cls: a LightningModule (its saved hyper-parameters are used) or any other module class.
        path: a Lightning checkpoint, or a file with a plain state dict.
        weights_only: passed on where it is given; None leaves it to the class, or to `torch.load`.
        **kwargs: arguments of the class's own `load_from_checkpoint`, or else of the constructor; they win over saved
            hyper-parameters.

    Returns:
        The module, attached, in the state in which it was saved.

    Raises:
        CheckpointError: the file holds no state dict, or one that does not belong to this class.
    """
    only = {} if weights_only is None else {"weights_only": weights_only}
    own = getattr(cls, "load_from_checkpoint", None)
    try:
        with loading():
            model = _build(cls, path, only, kwargs) if own is None else _own(own, cls, path, only, kwargs)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not belong to {cls.__name__}: {error}") from error
    attach(model)
    return model


def _own(own: Any, cls: type[M], path: str | Path, only: dict[str, Any], kwargs: dict[str, Any]) -> M:
    """What the class's own `load_from_checkpoint` makes of a checkpoint; a plain state dict is none."""
    try:
        model: M = own(path, **only, **kwargs)
    except KeyError:  # a plain state dict has none of a checkpoint's keys
        return _build(cls, path, only, kwargs)
    return model


def _build(cls: type[M], path: str | Path, only: dict[str, Any], kwargs: dict[str, Any]) -> M:
    checkpoint = torch.load(path, map_location="cpu", **only)
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint or a state dict.")
    hyper: Any = checkpoint.get("hyper_parameters") or {}
    if checkpoint.get("hparams_name", "kwargs") not in ("kwargs", None):
        kwargs = {checkpoint["hparams_name"]: hyper, **kwargs}
    else:
        accepted = inspect.signature(cls.__init__).parameters
        anything = any(one.kind is one.VAR_KEYWORD for one in accepted.values())
        kwargs = {**{name: value for name, value in hyper.items() if anything or name in accepted}, **kwargs}
    model = cls(**kwargs)
    attach(model)
    on_load = getattr(model, "on_load_checkpoint", None)
    if callable(on_load) and "state_dict" in checkpoint:
        on_load(checkpoint)
    model.load_state_dict(checkpoint.get("state_dict", checkpoint))
    return model
