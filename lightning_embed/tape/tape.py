"""Tapes, and their replay on a model as it is now."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from operator import is_
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_embed.errors import ReplayError
from lightning_embed.tape.functions import function_name, in_eval
from lightning_embed.tape.tree import Leaf, canonical_name, leaves, map_leaves, map_tensors, tensors_of

Collected = TypeVar("Collected")


@dataclass(frozen=True)
class Ref(Leaf):
    """Tensor number `index` of what step number `step` of the same tape returned."""

    step: int
    index: int


@dataclass(frozen=True)
class Named(Leaf):
    """A parameter or buffer, by its canonical qualified name."""

    name: str


@dataclass(frozen=True)
class Autocast:
    """The state of autocast for one type of device."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    def enter(self) -> torch.autocast:
        """A context in which autocast is in this state."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a module or of a tensor function.

    Attributes:
        module: canonical qualified name of the module ("" is the model itself); None for a function.
        function: the function; None for a module.
        args: positional arguments, whose tensors are `Ref`, `Named` or detached copies.
        kwargs: keyword arguments, likewise.
        writes: tensors that the call changes in place, as position among the tensors of its arguments or as `Ref`;
            they count as returned after what it returns.
        autocast: the state in which it ran.
        dtype: the default dtype in which it ran (Lightning's bf16-true changes it during a step).
    """

    module: str | None
    function: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    writes: tuple[int | Ref, ...] = ()
    autocast: tuple[Autocast, ...] = ()
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """What is called, in words."""
        if self.function is not None:
            return f"function {function_name(self.function)}"
        return f"module {self.module!r}" if self.module else "the model"


@dataclass(frozen=True, eq=False)
class Tape:
    """Recorded calls that can be replayed: the inputs of a model as some code gave them, without that code.

    Attributes:
        steps: the calls in order.
        outputs: which of their results are the model's outputs.
        samples: leading dimension of the first recorded tensor argument.
        nbytes: size of the recorded copies.
        device: the model's device when it was recorded.
    """

    steps: tuple[Step, ...]
    outputs: tuple[Ref, ...]
    samples: int
    nbytes: int
    device: str = "cpu"

    @property
    def structure(self) -> tuple[Any, ...]:
        """What two tapes of the same code have in common: the calls and their wiring, not the values."""

        def kind(leaf: Any) -> Any:
            return leaf if isinstance(leaf, (Ref, Named, bool, str)) else type(leaf).__name__

        return tuple((step.name, repr(map_leaves(kind, (step.args, step.kwargs)))) for step in self.steps)

    def first(self, samples: int) -> Tape:
        """A tape with the first samples alone: of what has the leading dimension of `samples` the beginning."""

        def beginning(tensor: Tensor) -> Tensor:
            return tensor[:samples] if tensor.dim() and len(tensor) == self.samples else tensor

        steps = tuple(
            replace(step, args=map_tensors(beginning, step.args), kwargs=map_tensors(beginning, step.kwargs))
            for step in self.steps
        )
        return replace(self, steps=steps, samples=samples, nbytes=self.nbytes * samples // max(1, self.samples))

    def halves(self) -> list[Tape]:
        """Two tapes with every other sample each: what has the leading dimension of `samples` is taken apart."""

        def part(begin: int) -> Tape:
            def every_other(tensor: Tensor) -> Tensor:
                return tensor[begin::2] if tensor.dim() and len(tensor) == self.samples else tensor

            steps = tuple(
                replace(step, args=map_tensors(every_other, step.args), kwargs=map_tensors(every_other, step.kwargs))
                for step in self.steps
            )
            return replace(self, steps=steps, samples=len(range(begin, self.samples, 2)), nbytes=self.nbytes // 2)

        return [part(0), part(1)]


def deal(tapes: Sequence[Tape]) -> tuple[list[Tape], list[Tape]]:
    """Deal tapes out in two halves, one that fits and one that decides; a single tape is cut in two.

    Of the tapes of one structure each goes to the half that has fewer samples of it, so that a training that alternates
    between two kinds of steps has both kinds in both halves, and batches of different sizes make halves alike.
    """
    if len(tapes) == 1 and tapes[0].samples > 1:
        tapes = tapes[0].halves()
    kinds: dict[tuple[Any, ...], list[Tape]] = {}
    for tape in tapes:
        kinds.setdefault(tape.structure, []).append(tape)
    halves: tuple[list[Tape], list[Tape]] = ([], [])
    for kind in kinds.values():
        samples = [0, 0]
        for tape in kind:
            half = min((0, 1), key=lambda one: (samples[one], len(halves[one])))
            samples[half] += tape.samples
            halves[half].append(tape)
    return halves


def model_device(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU for a model without any.

    >>> model_device(nn.Linear(1, 1))
    device(type='cpu')
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by canonical name; the wrappers of `torch.compile` are looked through."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[canonical_name(name)] = module  # a wrapped module comes after its wrapper
    return found


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by canonical name."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {canonical_name(name): tensor for name, tensor in named}


def autocast_now(device: torch.device) -> tuple[Autocast, ...]:
    """The present state of autocast on the CPU and on a device."""
    types = [name for name in dict.fromkeys(("cpu", device.type)) if torch.amp.is_autocast_available(name)]
    return tuple(Autocast(name, torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in types)


class _Stance:
    """The compiler's stance while something runs eagerly: how many need it, and the way back for the last of them."""

    users = 0
    way_back = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written; does nothing where the compiler was never loaded.

    The recordings of two callbacks overlap without being nested, so the last to leave restores the stance.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    if not _Stance.users:
        _Stance.way_back.enter_context(torch.compiler.set_stance("force_eager"))
    _Stance.users += 1
    try:
        yield
    finally:
        _Stance.users -= 1
        if not _Stance.users:
            _Stance.way_back.close()


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave a model's modes, attributes and buffers and all random state as they were, whatever happens inside.

    Modes are flags here: `train()` and `eval()`, which a model may override, are not called.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]  # the modes among them, and what forward keeps on `self`
    buffers = [
        (module, name, buffer, None if buffer is None or nn.parameter.is_lazy(buffer) else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    devices = _cuda_devices(model)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    cuda = [torch.cuda.get_rng_state(device) for device in devices]
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        for device, state in zip(devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
        for module, saved in zip(modules, attributes, strict=True):
            _restore(vars(module), saved)
        with torch.no_grad():
            for module, name, buffer, copied in buffers:
                module._buffers[name] = buffer
                # batch norm changes its statistics without counting a version; a needless copy would count one
                if buffer is not None and copied is not None and not torch.equal(buffer, copied):
                    buffer.copy_(copied)


def _restore(attributes: dict[str, Any], saved: dict[str, Any]) -> None:
    if attributes.keys() == saved.keys() and all(map(is_, attributes.values(), saved.values())):
        return  # as nearly always
    for name in [name for name in attributes if name not in saved]:
        del attributes[name]
    for name, value in saved.items():
        if attributes.get(name, attributes) is not value:
            attributes[name] = value


def set_modes(model: nn.Module, *, training: bool) -> None:
    """Set the mode flags of all modules without calling `train()` or `eval()`."""
    for module in model.modules():
        own = vars(module)
        if "training" in own:
            own["training"] = training  # torch's own way of setting an attribute costs more than small layers do
        else:  # a scripted module keeps its mode elsewhere
            module.training = training


def _cuda_devices(model: nn.Module) -> list[int]:
    if not torch.cuda.is_initialized():
        return []
    found = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}
    return sorted(device.index for device in found if device.index is not None)


def _seed(devices: Sequence[int], seed: int) -> None:
    # not torch.manual_seed, which would also seed devices whose state is not put back
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    for device in devices:
        torch.cuda.default_generators[device].manual_seed(seed)


def replay(model: nn.Module, tape: Tape, *, grad: bool = False) -> list[Tensor]:
    """Run recorded calls on a model as it is now.

    Everything runs in eval mode, in the autocast state of the recording and from a fixed seed before every step, so
    that two replays of one model agree bit for bit.

    Args:
        model: the recorded model, or a changed copy of it with the same names.
        tape: what `Recorder` or `record` made.
        grad: build the autograd graph; otherwise `no_grad`.

    Returns:
        The tape's outputs, in order; shape (samples, …) as the model gives them.

    Raises:
        ReplayError: a step failed on this model; the message names it.

    Training modes, buffers and random state are preserved, also on errors.

    >>> from lightning_embed.tape import record
    >>> net = nn.Linear(2, 1, bias=False)
    >>> [tape] = record(net, [torch.ones(3, 2)])
    >>> net.weight.data.fill_(2.0).shape
    torch.Size([1, 2])
    >>> replay(net, tape)[0].flatten()
    tensor([4., 4., 4.])
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(eager())
        stack.enter_context(preserved(model))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the model's own warnings were shown when it was recorded
        set_modes(model, training=False)
        return execute(model, tape, bind(model, tape), lambda output: output.clone())


def bind(model: nn.Module, tape: Tape) -> list[tuple[Any, Any]]:
    """Fresh copies of every step's arguments, on the device where the model is now; `Ref`s stay."""
    device = model_device(model)
    moved = str(device) != tape.device

    def fresh(constant: Tensor) -> Tensor:
        if moved and str(constant.device) == tape.device:
            return constant.to(device, copy=True)
        return constant.clone()

    with torch.no_grad():
        return [(map_tensors(fresh, step.args), map_tensors(fresh, step.kwargs)) for step in tape.steps]


def execute(
    model: nn.Module,
    tape: Tape,
    arguments: Sequence[tuple[Any, Any]],
    collect: Callable[[Tensor], Collected],
    *,
    training: bool = False,
) -> list[Collected]:
    """Run the steps of a tape in the present modes; `collect` sees each output before later steps can change it."""
    devices = _cuda_devices(model)
    modules = modules_by_name(model) if any(step.module for step in tape.steps) else {"": model}
    named = tensors_by_name(model) if any(isinstance(leaf, Named) for leaf in leaves(arguments)) else {}
    values: list[list[Tensor]] = []
    outputs: dict[Ref, Collected] = {}
    for number, (step, given) in enumerate(zip(tape.steps, arguments, strict=True)):

        def resolve(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                return values[leaf.step][leaf.index]
            return named[leaf.name] if isinstance(leaf, Named) else leaf

        try:
            args, kwargs = map_leaves(resolve, given[0]), map_leaves(resolve, given[1])
            called: Callable[..., Any]
            if step.function is None:
                called = modules[step.module or ""]
            else:
                called = step.function
                if not training:
                    args, kwargs = in_eval(called, args, kwargs)
            _seed(devices, number)
            with ExitStack() as stack:
                for state in step.autocast:
                    stack.enter_context(state.enter())
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(step.dtype)
                result = called(*args, **kwargs)
            written = [tensors_of((args, kwargs))[at] if isinstance(at, int) else resolve(at) for at in step.writes]
            values.append([*tensors_of(result), *written])
            outputs.update({ref: collect(resolve(ref)) for ref in tape.outputs if ref.step == number})
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise ReplayError(f"Step {number + 1} of the tape ({step.name}) failed on this model: {what}") from error
    return [outputs[ref] for ref in tape.outputs]
