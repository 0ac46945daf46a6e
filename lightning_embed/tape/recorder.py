"""See the outermost calls of a model while some code runs, and make a tape of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn, overrides
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode

from lightning_embed.errors import InputError
from lightning_embed.tape.functions import METADATA, portable, raw_name
from lightning_embed.tape.tape import (
    Named,
    Ref,
    Step,
    Tape,
    autocast_now,
    eager,
    model_device,
    plain_tensor,
    tensors_by_name,
)
from lightning_embed.tape.tree import canonical_name, map_leaves, tensors_of


def version_of(tensor: Tensor) -> int:
    """The version counter; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int | None:
    """What two views of the same memory have in common; None for a layout without one storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and nested tensors
        return None


def in_backward() -> bool:
    """Whether autograd is running: checkpointed blocks are called a second time then."""
    return torch._C._current_graph_task_id() != -1


@dataclass
class _Event:
    """One seen call; `uses` are the values that it consumes, `results` what it returned or changed in place."""

    step: Step
    uses: tuple[Ref, ...]
    is_call: bool
    anchor: bool
    from_call: bool
    results: list[Tensor] = field(default_factory=list)


class _Frame:
    """A module call that is under way."""

    def __init__(self, module: nn.Module, *, through: bool) -> None:
        self.module = module
        self.through = through
        self.forward = vars(module).get("forward")
        self.event: tuple[_Event, list[tuple[Tensor, int]]] | None = None

    @property
    def transparent(self) -> bool:
        """Whether the call is looked through: the calls inside count, not this one.

        So it is where a strategy runs `training_step` through a module's `forward`: Lightning puts a function into
        the instance's `forward` and takes it away as soon as it is entered.
        """
        return self.through or vars(self.module).get("forward") is not self.forward


_Begun = tuple[_Event, list[tuple[Tensor, int]]]


class Recorder(TorchFunctionMode):
    """Record the outermost module calls of whatever runs between `start` and `stop`, and what connects them.

    Kept are the calls of modules that have parameters and the tensor functions that carry one call's result into
    another's arguments; what leads to no later call (losses, metrics, logging) is dropped. The outputs are the kept
    results that something dropped consumes, or nothing; once `leads_to` has told of a loss, those of them on which
    it depends. Calls made inside a backward pass are ignored. Parameters are stored by name, every other tensor as a
    detached plain copy, also where it is of a subclass.

    Whatever goes wrong in the recording itself ends the recording, with a `reason`, and nothing else.

    Args:
        model: the module whose calls are recorded, its submodules included. For a `LightningModule` a call of
            `training_step` that a strategy redirects through `forward` is looked through.
        through: qualified names of modules that are looked through: the calls inside theirs are recorded.
        output: picks the outputs from what a recorded call returned.

    Use it as a context manager or call `start` and `stop`; either way the model is left without hooks.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> with Recorder(net) as recorder:
    ...     loss = net(torch.ones(5, 2)).square().mean()
    >>> tape = recorder.tape
    >>> [step.name for step in tape.steps], tape.samples, tape.nbytes
    (['the model'], 5, 40)
    """

    def __init__(
        self, model: nn.Module, through: Container[str] = (), output: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.through = through
        self.output = output
        self.tape: Tape | None = None
        self.reason = ""
        self._contexts: ExitStack | None = None

    def start(self) -> Self:
        """Begin to record."""
        self.tape, self.reason = None, ""
        self._events: list[_Event] = []
        self._frames: list[_Frame] = []
        self._refs: dict[tuple[int, int], Ref] = {}
        self._alive: list[Tensor] = []  # a tensor is known by id and version, so its id must not be given away
        self._copies: dict[tuple[int, int], Tensor] = {}
        self._paused = False
        self._foreign = self._broken = ""
        self._losses: set[Ref] = set()
        self._chosen: list[Ref] = []
        self._unchosen = "none was recorded"
        self._names = {id(tensor): name for name, tensor in tensors_by_name(self.model).items()}
        self._contexts = ExitStack()
        try:
            self._contexts.enter_context(eager())
            hooked: set[int] = set()
            for name, module in self.model.named_modules(remove_duplicate=False):
                if id(module) not in hooked:
                    hooked.add(id(module))
                    self._hook(canonical_name(name), module)
            overrides._push_mode(self)
            self._contexts.callback(self._leave_mode)
        except BaseException:
            self._contexts.close()
            raise
        return self

    def stop(self) -> Tape | None:
        """End the recording and take every hook off.

        Returns:
            The tape; None when nothing was called, and `reason` says so.
        """
        self._close()
        self.tape = self._build(None)
        self._forget()
        return self.tape

    def stop_with(self, outputs: Sequence[Tensor]) -> Tape | None:
        """End the recording; the given tensors, not what is dropped, decide what the outputs are."""
        self._close()
        refs = [self._refs.get((id(tensor), version_of(tensor))) for tensor in outputs]
        if outputs and None not in refs:
            self.tape = self._build([ref for ref in refs if ref is not None])
        else:
            self.reason = "what was returned was not computed by calls of the model"
        self._forget()
        return self.tape

    def leads_to(self, loss: Any) -> None:
        """Tell of a loss of the step: outputs on which none depends need not be kept as they are."""
        ref = self._refs.get((id(loss), version_of(loss))) if isinstance(loss, Tensor) else None
        if ref is not None:
            self._losses.add(ref)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._contexts is None:
            return
        if kind is None:
            self.stop()
        else:
            self._close()
            self.reason = f"the recorded code failed: {kind.__name__}: {error}"
            self._forget()

    def _close(self) -> None:
        contexts, self._contexts = self._contexts, None
        if contexts is None:
            raise InputError("Recorder.stop() was called without start(); start it before the step to be recorded.")
        contexts.close()

    def _forget(self) -> None:
        self._events, self._frames, self._refs, self._alive, self._copies = [], [], {}, [], {}
        self._losses, self._chosen = set(), []

    def _safely(self, work: Callable[..., _Begun | None], *args: Any) -> _Begun | None:
        """Our own part of a call that passes by: it may fail on an odd tensor, but what is recorded goes on."""
        self._paused = True
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return work(*args)
        except Exception as error:  # noqa: BLE001  # whatever a subclass's own methods raise
            self._broken = f"a call takes or returns what cannot be copied ({type(error).__name__}: {error})"
            return None
        finally:
            self._paused = False

    def _leave_mode(self) -> None:
        # modes form a stack, and the code between two hooks may have left another one above this
        above = []
        while _len_torch_function_stack():
            top = overrides._pop_mode()
            if top is self:
                break
            above.append(top)
        for mode in reversed(above):
            overrides._push_mode(mode)

    # ---- what is seen ----

    @property
    def _inside(self) -> bool:
        return bool(self._paused or self._broken or in_backward()) or any(not one.transparent for one in self._frames)

    def _hook(self, name: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if in_backward():
                return
            frame = _Frame(module, through=name in self.through)
            if not frame.through and not self._inside:
                if any(id(parameter) not in self._names for parameter in module.parameters()):
                    self._foreign = name or "the model"
                frame.event = self._safely(self._begin, Step(name, None, args, kwargs), module)
            self._frames.append(frame)

        def after(module: nn.Module, _args: Any, _kwargs: Any, result: Any) -> None:
            if in_backward():
                return
            while self._frames:
                frame = self._frames.pop()
                if frame.module is module:
                    self._returned(frame, result)
                    return

        contexts = self._contexts
        assert contexts is not None
        contexts.callback(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
        contexts.callback(module.register_forward_hook(after, with_kwargs=True, always_call=True).remove)

    def _returned(self, frame: _Frame, result: Any) -> None:
        if frame.event is None or frame.transparent or self._broken:
            return
        self._safely(self._finish, *frame.event, result)
        if self.output is not None and frame.event[0].anchor:
            self._choose(self.output, result)

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See a tensor function pass by."""
        kwargs = kwargs or {}
        if self._inside or raw_name(func) in METADATA:
            return func(*args, **kwargs)
        begun = self._safely(self._begin, Step(None, func, args, kwargs), None)
        result = func(*args, **kwargs)
        if begun is not None:
            self._safely(self._finish, *begun, result)
        return result

    def _choose(self, output: Callable[[Any], Any], result: Any) -> None:
        """Note the outputs that the user picks from what a call returned; another call may return something else."""
        self._paused = True
        try:
            found = [(id(one), version_of(one)) for one in tensors_of(output(result)) if one.is_floating_point()]
            self._chosen += [self._refs[key] for key in found if key in self._refs]
            self._unchosen = "it returns no floating-point tensor of a recorded call"
        except Exception as error:  # noqa: BLE001  # it is told where no call fits
            self._unchosen = f"{type(error).__name__}: {error}"
        finally:
            self._paused = False

    def _begin(self, step: Step, module: nn.Module | None) -> _Begun | None:
        """Note the arguments of a call before it can change them; None where it concerns no value of interest."""
        given = [(tensor, version_of(tensor)) for tensor in tensors_of((step.args, step.kwargs))]
        uses = tuple(self._refs[id(t), v] for t, v in given if (id(t), v) in self._refs)
        anchor = module is not None and any(True for _ in module.parameters())
        if not anchor and not uses and (module is not None or all(id(t) not in self._names for t, _ in given)):
            return None  # it depends on no call: its results are data
        from_call = anchor or any(self._events[ref.step].from_call for ref in uses)
        encoded = replace(
            step,
            function=None if step.function is None else portable(step.function),
            args=map_leaves(self._leaf, step.args),
            kwargs=map_leaves(self._leaf, step.kwargs),
            autocast=autocast_now(model_device(self.model)),
            dtype=torch.get_default_dtype(),
        )
        return _Event(encoded, uses, module is not None, anchor, from_call), given

    def _leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        key = (id(leaf), version_of(leaf))
        if key in self._refs:
            return self._refs[key]
        if id(leaf) in self._names:
            return Named(self._names[id(leaf)])
        if key not in self._copies:
            self._alive.append(leaf)
            self._copies[key] = plain_tensor(leaf).detach().clone()
        return self._copies[key]

    def _finish(self, event: _Event, given: list[tuple[Tensor, int]], result: Any) -> None:
        number = len(self._events)
        changed = [at for at, (tensor, version) in enumerate(given) if version_of(tensor) != version]
        if not event.is_call and any(id(given[at][0]) in self._names for at in changed):
            return  # an optimizer's step or a running average: parameters are read as they are at replay
        writes: list[int | Ref] = [at for at in changed if id(given[at][0]) not in self._names]
        written = [given[at][0] for at in changed if id(given[at][0]) not in self._names]
        if written:
            seen = {id(tensor) for tensor in (*tensors_of(result), *written)}
            for ref, tensor in self._sharing({storage_of(tensor) for tensor in written}):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    writes.append(ref)
                    written.append(tensor)
        event.step = replace(event.step, writes=tuple(writes))
        event.results = [*tensors_of(result), *written]
        self._events.append(event)
        for index, tensor in enumerate(event.results):
            self._alive.append(tensor)
            self._refs[id(tensor), version_of(tensor)] = Ref(number, index)

    def _sharing(self, storages: set[int | None]) -> list[tuple[Ref, Tensor]]:
        """Known values that live in the same memory as something that was just changed."""
        return [
            (Ref(number, index), tensor)
            for number, event in reversed(list(enumerate(self._events)))
            for index, tensor in enumerate(event.results)
            if storage_of(tensor) in storages - {None}
        ]

    # ---- what is kept ----

    def _build(self, chosen: list[Ref] | None) -> Tape | None:
        events = self._events
        if chosen is None and self.output is not None:
            chosen = self._chosen
        anchors = [number for number, event in enumerate(events) if event.anchor]
        # a call that returns only numbers is a loss with weights, unless there is nothing else
        mapping = [number for number in anchors if any(tensor.dim() for tensor in events[number].results)]
        kept = set() if chosen is not None else set(mapping or anchors)
        waiting = [*kept, *(ref.step for ref in chosen or ())]
        while waiting:
            number = waiting.pop()
            kept.add(number)
            needed = {ref.step for ref in (*events[number].uses, *_refs_in(events[number].step.writes))}
            waiting.extend(needed - kept)
        refs = self._outputs(kept) if chosen is None else chosen
        if self._broken:
            self.reason = self._broken
        elif not anchors:
            self.reason = "no module with parameters was called"
        elif not refs and self.output is not None:
            self.reason = f"output= fits none of the recorded calls: {self._unchosen}"
        elif not refs:
            self.reason = "the recorded calls returned no floating-point tensor"
        elif self._foreign:
            self.reason = f"{self._foreign} was called with other tensors in its parameters' places"
        if self.reason:
            return None
        order = {number: position for position, number in enumerate(sorted(kept))}
        return self._tape([events[number].step for number in sorted(kept)], refs, order)

    def _outputs(self, kept: set[int]) -> list[Ref]:
        by_kept: set[Ref] = set()
        by_dropped: set[Ref] = set()
        for number, event in enumerate(self._events):
            (by_kept if number in kept else by_dropped).update(event.uses)
        found = []
        for number in sorted(kept):
            event = self._events[number]
            for index, tensor in enumerate(event.results):
                ref = Ref(number, index)
                unused = event.is_call and ref not in by_kept
                if event.from_call and tensor.is_floating_point() and (ref in by_dropped or unused):
                    found.append(ref)
        found = self._with_dims(found) or found
        leading = self._leading(kept)
        return self._with_dims([ref for ref in found if ref in leading]) or found

    def _with_dims(self, refs: list[Ref]) -> list[Ref]:
        """Those that are no single numbers: a loss that a call returns says little of what the layers compute."""
        return [ref for ref in refs if self._events[ref.step].results[ref.index].dim()]

    def _leading(self, kept: set[int]) -> set[Ref]:
        """The results of kept calls from which the losses were computed."""
        found: set[Ref] = set()
        seen, waiting = set(self._losses), list(self._losses)
        while waiting:
            ref = waiting.pop()
            if ref.step in kept:
                found.add(ref)
            else:
                new = set(self._events[ref.step].uses) - seen
                seen |= new
                waiting.extend(new)
        return found

    def _tape(self, steps: list[Step], refs: list[Ref], order: dict[int, int]) -> Tape:
        def renumber(leaf: Any) -> Any:
            return Ref(order[leaf.step], leaf.index) if isinstance(leaf, Ref) else leaf

        renumbered = tuple(
            replace(
                step,
                args=map_leaves(renumber, step.args),
                kwargs=map_leaves(renumber, step.kwargs),
                writes=tuple(renumber(write) for write in step.writes),
            )
            for step in steps
        )
        constants = tensors_of([(step.args, step.kwargs) for step in renumbered])
        unique = {id(tensor): tensor for tensor in constants}.values()
        return Tape(
            steps=renumbered,
            outputs=tuple(renumber(ref) for ref in refs),
            samples=next((len(tensor) if tensor.dim() else 1 for tensor in constants), 1),
            nbytes=sum(tensor.numel() * tensor.element_size() for tensor in unique),
            device=str(model_device(self.model)),
        )


def _refs_in(items: Iterable[Any]) -> list[Ref]:
    return [item for item in items if isinstance(item, Ref)]
