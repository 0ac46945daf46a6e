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
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_embed.errors import CheckpointError
from lightning_embed.surgery.change.edit import Edits, submodule
from lightning_embed.tape.tape import modules_by_name
from lightning_embed.tape.tree import canonical_name

KEY = (
    "lightning_embed (call lightning_embed.attach on the model before loading this state dict, "
    "or load it inside lightning_embed.loading())"
)
FORMAT = 1
_ATTRIBUTE = "_lightning_embed_attachment"
_SLOTS = "_lightning_embed_slots"

Shapes = dict[str, list[int]]
Original = tuple[nn.Module | None, Shapes | None]  # a slot as the user's code builds it: its skeleton, tensor shapes


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
    """What a model knows of its own merging.

    How a slot was built is noted in the module that holds the slot, so that any part of the model knows of its own.

    Attributes:
        history: records of the merges that were done, as plain data.
    """

    history: list[dict[str, Any]] = field(default_factory=list)

    def remember(self, model: nn.Module, name: str) -> None:
        """Note how a slot was built, before it is changed for the first time; the modules around it will tell."""
        parent_name, _, child = name.rpartition(".")
        modules = modules_by_name(model)
        noted = vars(modules[parent_name]).setdefault(_SLOTS, {})
        if child not in noted:
            if name:
                _note_inside(modules[name])  # an emptied container is to grow back with what it held
            noted[child] = (_skeleton(modules[name]) if name else None, _shapes(modules[name]))
        around = parent_name
        while around:
            _hook(modules[around])
            around = around.rpartition(".")[0]

    def forget_untouched(self, model: nn.Module) -> None:
        """Forget the slots that are (again) as they were built."""
        changed = self.architecture(model)
        for path, module in modules_by_name(model).items():
            noted = vars(module).get(_SLOTS, {})
            for child in [child for child in noted if _join(path, child) not in changed]:
                del noted[child]
            if not noted:
                vars(module).pop(_SLOTS, None)
        around = {""}
        for name in changed:
            around |= {name[:at] for at, letter in enumerate(name) if letter == "."}
        for path, module in modules_by_name(model).items():
            if path not in around and not is_attached(module):
                _unhook(module)

    def architecture(self, model: nn.Module) -> dict[str, Shapes | None]:
        """The present shapes of every slot that differs from how it was built; None for an identity."""
        modules = modules_by_name(model)
        present = {name: _shapes(modules[name]) for name in _originals(model)}
        return {name: present[name] for name, (_, shapes) in _originals(model).items() if present[name] != shapes}


def _note_inside(module: nn.Module) -> None:
    """Note how the slots inside a module are built, in the modules that hold them; the innermost first."""
    for holder in reversed(list(module.modules())):
        for child, held in holder._modules.items():
            if held is not None:
                noted = vars(holder).setdefault(_SLOTS, {})
                noted.setdefault(child, (_skeleton(held), _shapes(held)))


def _join(path: str, child: str) -> str:
    return f"{path}.{child}" if path and child else path or child


def _originals(model: nn.Module) -> dict[str, Original]:
    """How the slots were built that were ever changed, by name; those inside a slot that is gone are gone with it."""
    return {
        _join(path, child): original
        for path, module in modules_by_name(model).items()
        for child, original in vars(module).get(_SLOTS, {}).items()
    }


def _names(model: nn.Module) -> Iterator[str]:
    """The names of all modules, those inside of slots that are identities now too."""
    yield from modules_by_name(model)
    for name, (skeleton, _) in _originals(model).items():
        if skeleton is not None:
            yield from (_join(name, inner) for inner in _names(skeleton))


def _hook(module: nn.Module) -> None:
    """Let a module write its part of the architecture into its state dict, and read it."""
    if not _is_hooked(module):
        module.register_state_dict_post_hook(_write)
        module.register_load_state_dict_pre_hook(_read)


def _is_hooked(module: nn.Module) -> bool:
    return any(hook is _write for hook in module._state_dict_hooks.values())


def _unhook(module: nn.Module) -> None:
    for hooks, ours in ((module._state_dict_hooks, _write), (module._load_state_dict_pre_hooks, _read)):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) is ours:
                del hooks[key]


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
        _hook(model)
    assert isinstance(attachment, Attachment)
    return attachment


def is_attached(model: nn.Module) -> bool:
    """Whether `attach` was called on the model."""
    return getattr(model, _ATTRIBUTE, None) is not None


def detach(model: nn.Module) -> None:
    """Undo `attach`: the state dict holds the model's own keys only, and loads only into a model of its size."""
    for module in model.modules():
        for ours in (_ATTRIBUTE, _SLOTS):
            vars(module).pop(ours, None)
        _unhook(module)


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
    described = describe(module)
    if described["slots"]:  # else the state dict loads anywhere
        text = json.dumps({"format": FORMAT, **described}, sort_keys=True)
        state_dict[prefix + KEY] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def describe(module: nn.Module) -> dict[str, Any]:
    """What a model, or a part of one, has become, as plain data for `become`; the history is the whole model's."""
    attachment: Attachment = vars(module).get(_ATTRIBUTE) or Attachment()
    return {"slots": attachment.architecture(module), "history": attachment.history}


def _read(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rebuild what the keys at and below a module describe; the outermost hooked module does it for all inside."""
    keys = [key for key in state_dict if key.startswith(prefix) and key.endswith(KEY)]
    if prefix + KEY in keys and not state_dict[prefix + KEY].numel():
        del state_dict[prefix + KEY]  # done by a module around this one
        return
    described: dict[str, Any] = {"slots": {}, "history": []}
    for key in sorted(keys, key=len, reverse=True):  # where they differ, which they should not, the outermost counts
        inner = key.removesuffix(KEY)
        found = read_architecture(state_dict, inner)
        assert found is not None
        path = canonical_name(inner.removeprefix(prefix).removesuffix("."))
        described["slots"].update({_join(path, name): shapes for name, shapes in found["slots"].items()})
        described["history"] = found["history"] or described["history"]
    for key in keys:
        del state_dict[key]
    _check(module, state_dict, prefix, described["slots"])
    become(module, described)
    for path, one in module.named_modules(remove_duplicate=False):
        if path and _is_hooked(one):
            state_dict[f"{prefix}{path}.{KEY}"] = torch.empty(0, dtype=torch.uint8)


def become(module: nn.Module, described: Mapping[str, Any]) -> None:
    """Give a model the architecture that `describe` told of; what is new holds no numbers yet."""
    attachment: Attachment = vars(module).get(_ATTRIBUTE) or Attachment()
    slots, edits = described["slots"], Edits()
    done: set[str] = set()
    try:
        while True:
            originals = _originals(module)  # those inside a slot are there again once it is
            waiting = (originals.keys() | slots.keys()) & modules_by_name(module).keys() - done
            if not waiting:
                break
            name = min(waiting, key=lambda one: (one.count("."), one))  # outer slots first
            done.add(name)
            attachment.remember(module, name)
            skeleton, shapes = _originals(module)[name]
            rebuild(module, name, slots.get(name, shapes), skeleton, edits)
    except Exception:
        edits.undo()
        attachment.forget_untouched(module)
        raise
    attachment.history = list(described["history"])
    attachment.forget_untouched(module)


def _check(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, slots: Mapping[str, Any]) -> None:
    """Refuse a description that does not belong to this model or to these tensors, before anything is changed."""
    known = set(_names(module))
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


def rebuild(model: nn.Module, name: str, shapes: Shapes | None, skeleton: nn.Module | None, edits: Edits) -> None:
    """Give a slot the described shapes (None: an identity); its numbers are loaded afterwards."""
    present = submodule(model, name)
    if shapes is None:
        if not isinstance(present, nn.Identity):
            edits.set_slot(model, name, nn.Identity().train(present.training))
        return
    if _shapes(present) == shapes:
        return
    if isinstance(present, nn.Identity) and skeleton is not None:
        near = next(model.parameters(), torch.empty(0))
        present = copy.deepcopy(skeleton).train(present.training)
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
