"""State dicts that describe their own architecture, so that a merged model loads into one of the original size.

An attached model writes one extra key into its state dict: JSON, as a uint8 tensor, of every slot that merging has
changed. When such a state dict is loaded into an attached model, the slots are rebuilt first, in either direction:
a smaller checkpoint narrows the model, an older and larger one grows it back. Strict loading stays strict. Nothing
else is needed, so it works for plain torch, in every Lightning load path and for `save_weights_only` files.

A model that is not attached meets the key as an unexpected one, and torch's own message then quotes the remedy,
because the key *is* the remedy.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import CheckpointError
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.tape.tape import modules_by_name
from lightning_embed.tape.tree import canonical_name

KEY = "lightning_embed (call lightning_embed.attach on the model before loading this state dict)"
FORMAT = 1
_ATTRIBUTE = "_lightning_embed_attachment"

Shapes = dict[str, list[int]]
M = TypeVar("M", bound=nn.Module)


def _shapes(module: nn.Module) -> Shapes | None:
    """Shapes of a slot's own tensors; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    tensors = {**module._parameters, **module._buffers}
    return {name: list(one.shape) for name, one in tensors.items() if one is not None}


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy of a module without its numbers: enough to rebuild the slot, at no cost in memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().new_empty(0), requires_grad=parameter.requires_grad)
    for one in module.modules():
        for name, buffer in one._buffers.items():
            if buffer is not None and name not in one._non_persistent_buffers_set:  # no checkpoint would bring those
                memo[id(buffer)] = buffer.new_empty(0)
    return copy.deepcopy(module, memo)


@dataclass
class Attachment:
    """What a model knows of its own merging: its slots as the user's code builds them, and what was done.

    Attributes:
        originals: for every slot that was ever changed, its skeleton and tensor shapes before the first change.
        history: records of the merges that were done, as plain data.
    """

    originals: dict[str, tuple[nn.Module, Shapes | None]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, model: nn.Module, name: str) -> None:
        """Note how a slot and those inside it were built, before any is changed for the first time."""
        module = submodule(model, name)
        for path, one in module.named_modules(prefix=name) if name else [(name, module)]:
            if canonical_name(path) not in self.originals:
                self.originals[canonical_name(path)] = (_skeleton(one), _shapes(one))

    def forget_untouched(self, model: nn.Module) -> None:
        """Forget the slots that are (again) as they were built."""
        present = self._present(model)
        self.originals = {
            name: original
            for name, original in self.originals.items()
            if name not in present or present[name] != original[1]
        }

    def architecture(self, model: nn.Module) -> dict[str, Shapes | None]:
        """The present shapes of every slot that differs from how it was built; None for an identity."""
        present = self._present(model)
        return {name: shapes for name, shapes in present.items() if shapes != self.originals[name][1]}

    def _present(self, model: nn.Module) -> dict[str, Shapes | None]:
        """The shapes of the slots that are there; those inside a slot that became an identity are not."""
        modules = modules_by_name(model)
        return {name: _shapes(modules[name]) for name in self.originals if name in modules}


def attach(model: nn.Module) -> Attachment:
    """Let a model's state dict describe its architecture, and let it take such state dicts at any size.

    Call it on a model built at its original size, before `load_state_dict` with a merged state dict. Calling it
    again changes nothing. The hooks are plain functions, so the model can be copied, pickled and distributed.

    Args:
        model: the module whose state dict is saved and loaded (a LightningModule, or any other).

    Returns:
        What the model knows of its own merging: `history` lists the merges that were done.

    >>> small, big = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1))
    >>> _ = attach(small), attach(big)
    >>> big.load_state_dict(small.state_dict())
    <All keys matched successfully>
    """
    attachment = getattr(model, _ATTRIBUTE, None)
    if attachment is None:
        attachment = Attachment()
        object.__setattr__(model, _ATTRIBUTE, attachment)
        model.register_state_dict_post_hook(_write)
        model.register_load_state_dict_pre_hook(_read)
    assert isinstance(attachment, Attachment)
    return attachment


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` was called on the model."""
    return getattr(model, _ATTRIBUTE, None) is not None


def detach(model: nn.Module) -> None:
    """Undo `attach`: the state dict holds the model's own keys only, and loads only into a model of its size."""
    if model.__dict__.pop(_ATTRIBUTE, None) is None:
        return
    for hooks, ours in ((model._state_dict_hooks, _write), (model._load_state_dict_pre_hooks, _read)):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) is ours:
                del hooks[key]


def load_from_checkpoint(cls: type[M], path: str | Path, *, weights_only: bool = True, **kwargs: Any) -> M:
    """Build a module and load a checkpoint into it at whatever size it was saved, with no trainer.

    Args:
        cls: a LightningModule (its saved hyper-parameters are used) or any other module class.
        path: a Lightning checkpoint, or a file with a plain state dict.
        weights_only: passed to `torch.load`.
        **kwargs: arguments of the constructor; they win over saved hyper-parameters.

    Returns:
        The module, attached, in the state in which it was saved.

    Raises:
        CheckpointError: the file holds no state dict, or one that does not belong to this class.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
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
    configure = getattr(model, "configure_model", None)
    if callable(configure):
        configure()
    on_load = getattr(model, "on_load_checkpoint", None)
    if callable(on_load) and "state_dict" in checkpoint:
        on_load(checkpoint)
    try:
        model.load_state_dict(checkpoint.get("state_dict", checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not belong to {cls.__name__}: {error}") from error
    return model


def read_architecture(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any] | None:
    """What the architecture key of a state dict says; None where there is none.

    Raises:
        CheckpointError: the key is damaged or of a later format.
    """
    value = state_dict.get(prefix + KEY)
    if value is None:
        return None
    remedy = "Load a checkpoint that is whole, or take the key out and load into a model of the saved size."
    try:
        text = json.loads(bytes(value.to(torch.uint8).tolist()).decode())
        version, slots, history = text["format"], text["slots"], text["history"]
        assert isinstance(slots, dict)
        assert isinstance(history, list)
    except (AttributeError, AssertionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The architecture key of the state dict is damaged ({error!r}). {remedy}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"The architecture key has format {version!r}; this lightning-embed reads {FORMAT}. Update lightning-embed."
        )
    return {"slots": slots, "history": history}


def _write(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:  # noqa: ARG001  # torch's signature
    attachment: Attachment | None = getattr(module, _ATTRIBUTE, None)
    if attachment is None:
        return
    text = json.dumps({"format": FORMAT, **describe(module)}, sort_keys=True)
    state_dict[prefix + KEY] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def describe(module: nn.Module) -> dict[str, Any]:
    """What an attached model has become, as plain data for `become`."""
    attachment = attach(module)
    return {"slots": attachment.architecture(module), "history": attachment.history}


def _read(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    attachment: Attachment | None = getattr(module, _ATTRIBUTE, None)
    if attachment is None:
        return
    described = read_architecture(state_dict, prefix) or {"slots": {}, "history": []}
    state_dict.pop(prefix + KEY, None)
    _check(module, state_dict, prefix, described["slots"], attachment)
    become(module, described)


def become(module: nn.Module, described: Mapping[str, Any]) -> None:
    """Give an attached model the architecture that `describe` told of; what is new holds no numbers yet."""
    attachment = attach(module)
    target = {name: described["slots"].get(name, original[1]) for name, original in attachment.originals.items()}
    target.update(described["slots"])
    edits = Edits()
    try:
        for name, shapes in sorted(target.items(), key=lambda item: item[0].count(".")):  # outer slots first
            if name in modules_by_name(module):  # not inside one that has become an identity
                attachment.remember(module, name)
                rebuild(module, name, shapes, attachment, edits)
    except Exception:
        edits.undo()
        attachment.forget_untouched(module)
        raise
    attachment.history = list(described["history"])
    attachment.forget_untouched(module)


def _check(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, slots: Mapping[str, Any], attachment: Attachment
) -> None:
    """Refuse a description that does not belong to this model or to these tensors, before anything is changed."""
    known = modules_by_name(module).keys() | attachment.originals.keys()
    for name, shapes in slots.items():
        if name not in known:
            raise CheckpointError(
                f"The state dict describes a merged layer {name!r}, which {type(module).__name__} does not have; "
                "it was saved from another architecture. The model is unchanged."
            )
        for tensor, shape in (shapes or {}).items():
            saved = state_dict.get(f"{prefix}{name}.{tensor}")
            if isinstance(saved, Tensor) and list(saved.shape) != shape:
                raise CheckpointError(
                    f"The state dict says that {name}.{tensor} has shape {shape}, but holds {list(saved.shape)}; "
                    "it was changed after saving. The model is unchanged."
                )


def rebuild(model: nn.Module, name: str, shapes: Shapes | None, attachment: Attachment, edits: Edits) -> None:
    """Give a slot the described shapes (None: an identity); its numbers are loaded afterwards."""
    present = submodule(model, name)
    if shapes is None:
        if not isinstance(present, nn.Identity):
            edits.set_slot(model, name, nn.Identity().train(present.training))
        return
    if _shapes(present) == shapes:
        return
    if isinstance(present, nn.Identity):
        near = next(model.parameters(), torch.empty(0))
        present = copy.deepcopy(attachment.originals[name][0]).train(present.training)
        present.to(near.device)
        edits.set_slot(model, name, present)
    missing = set(shapes) - set(present._parameters) - set(present._buffers)
    if missing:
        raise CheckpointError(f"{name} ({type(present).__name__}) has no {', '.join(sorted(missing))}; another model?")
    like = present._parameters.get("weight")
    for tensor in (*present._parameters, *present._buffers):
        shape = shapes.get(tensor)
        old = getattr(present, tensor)
        if shape is None and old is not None:
            edits.set_tensor(present, tensor, None)
        elif shape is not None and (old is None or list(old.shape) != shape):
            model_like = old if old is not None else like
            assert model_like is not None
            edits.set_tensor(present, tensor, model_like.new_zeros(shape), like=like)
    edits.sync_counts(present)
