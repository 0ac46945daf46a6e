"""See which function consumes which tensor while a tape is replayed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_embed.graph.kinds import Layer, class_of, kind_of
from lightning_embed.graph.layout import Layout, input_layout, is_layer, output_layout
from lightning_embed.tape.functions import METADATA, function_name, raw_name
from lightning_embed.tape.recorder import in_backward, storage_of, version_of
from lightning_embed.tape.tape import Autocast, Tape, autocast_now, bind, execute, model_device, tensors_by_name
from lightning_embed.tape.tree import Leaf, canonical_name, map_tensors, tensors_of

INPUT = -1  # the origin of recorded data; other origins are numbers of calls of layers
_COMPUTE = (  # what torch's layers do with their weights
    nn.functional.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
)


def is_plain(module: Layer) -> bool:
    """Whether a layer computes exactly what the class that is known does with its weight and bias."""
    known = class_of(module)
    methods = [name for name in ("forward", "_conv_forward") if hasattr(known, name)]
    return all(getattr(type(module), name) is getattr(known, name) and name not in vars(module) for name in methods)


@dataclass(frozen=True)
class Slot(Leaf):
    """A value by its number."""

    number: int


@dataclass
class Value:
    """A tensor at one version: which data it depends on (an outcome of a layer depends on that call alone)."""

    tensor: Tensor
    origins: frozenset[int]
    name: str | None = None  # of the parameter or buffer that it is
    producer: int | None = None  # number of the event that made it


@dataclass
class Event:
    """One call of a function; tensors in its arguments are `Slot`s."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    results: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]  # (new, old) number of a tensor that was changed in place
    frame: int | None
    autocast: tuple[Autocast, ...]
    origins: frozenset[int]
    call: int | None = None

    @property
    def made(self) -> tuple[int, ...]:
        """Numbers of all values that are new after it."""
        return (*self.results, *(new for new, _ in self.writes))


@dataclass
class Frame:
    """One call of a module. `simple`: one tensor in and one out, so that an identity could take its place."""

    parent: int | None
    module: int
    name: str
    given: tuple[int, ...]
    simple: bool
    returned: tuple[int, ...] = ()


@dataclass
class LayerCall:
    """One call of a layer, with copies of its input and output."""

    layer: str
    module: Layer
    event: int
    read: int
    made: int
    given: Tensor
    pre: Tensor

    @property
    def layout(self) -> Layout:
        """Where the neurons are in its output."""
        return output_layout(self.module)

    @property
    def neurons(self) -> int:
        """Number of its neurons."""
        return self.pre.shape[self.layout.dim]

    def reads(self, neurons: int) -> Layout:
        """Where the neurons of a layer before it are in its input."""
        return input_layout(self.module, neurons)


@dataclass
class Observation:
    """All that was seen during one replay."""

    values: list[Value] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    calls: list[LayerCall] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    read: dict[int, str] = field(default_factory=dict)  # origin -> function that handed a value to Python
    lost: dict[int, str] = field(default_factory=dict)  # origin -> module in which it was lost from sight
    hidden_uses: dict[str, str] = field(default_factory=dict)  # parameter -> module that used it out of sight
    constants: dict[int, Tensor] = field(default_factory=dict)  # values that no function made, as they were at first

    def equals(self, other: Observation) -> bool:
        """Whether another replay called the same functions in the same way, and all layers computed the same values."""

        def called(seen: Observation) -> list[Any]:
            return [
                (function_name(one.function), repr((one.args, one.kwargs)), one.results, one.writes)
                for one in seen.events
            ]

        return (
            called(self) == called(other)
            and [one.layer for one in self.calls] == [one.layer for one in other.calls]
            and all(
                torch.equal(mine.given, theirs.given) and torch.equal(mine.pre, theirs.pre)
                for mine, theirs in zip(self.calls, other.calls, strict=True)
            )
        )


class Observer(TorchFunctionMode):
    """Replays one tape on a model and notes every function call, module call and value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen = Observation()
        self._quiet = 0
        self._ids: dict[tuple[int, int], int] = {}
        self._memory: dict[int, list[int]] = defaultdict(list)  # storage -> values in it
        self._unseen: dict[int, frozenset[int]] = {}  # storage -> origins of what was written out of sight
        self._alive: list[Tensor] = []
        self._open: list[int] = []
        self._layers: dict[int, tuple[str, Layer]] = {}
        self._whole: set[int] = set()  # layers that are recognised by their whole call
        self._device = model_device(model)
        self._named = {id(tensor): name for name, tensor in tensors_by_name(model).items()}

    def run(self, tape: Tape, *, training: bool) -> Observation:
        """Replay in the present modes and return what was seen."""
        arguments = bind(self.model, tape)
        for tensor in tensors_of(arguments):
            self._new(tensor, frozenset({INPUT}))
        with ExitStack() as stack:
            self._hook(stack)
            stack.enter_context(_Below(self))
            stack.enter_context(self)
            self.seen.outputs = tuple(execute(self.model, tape, arguments, self._collect, training=training))
        return self.seen

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """What runs inside is seen already, or our own."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    @property
    def watching(self) -> bool:
        """Whether what happens now is to be noted."""
        return not self._quiet and not in_backward()

    @property
    def where(self) -> str:
        """The innermost module that is being called."""
        return repr(self.seen.frames[self._open[-1]].name or "the model") if self._open else "the training step"

    def _collect(self, output: Tensor) -> int:
        with self.quiet():
            return self.number(output)

    # ---- values ----

    def number(self, tensor: Tensor) -> int:
        """The number of the value that a tensor is now."""
        key = (id(tensor), version_of(tensor))
        if key in self._ids:
            return self._ids[key]
        if id(tensor) in self._named:
            return self._new(tensor, frozenset(), name=self._named[id(tensor)])
        storage = storage_of(tensor)
        if storage is None:
            return self._new(tensor, frozenset())
        for number in self._memory.get(storage, ()):
            if self._is_current(number) and _same_place(self.seen.values[number].tensor, tensor):
                self._ids[key] = number
                self._alive.append(tensor)
                return number
        origins = self._origins_in(storage)
        for origin in origins:
            self.seen.lost.setdefault(origin, self.where)
        return self._new(tensor, origins)

    def _is_current(self, number: int) -> bool:
        tensor = self.seen.values[number].tensor
        return self._ids.get((id(tensor), version_of(tensor))) == number

    def _origins_in(self, storage: int) -> frozenset[int]:
        known = (self.seen.values[number].origins for number in self._memory.get(storage, ()))
        return frozenset().union(*known, self._unseen.get(storage, frozenset()))

    def _new(
        self, tensor: Tensor, origins: frozenset[int], *, name: str | None = None, producer: int | None = None
    ) -> int:
        number = len(self.seen.values)
        self.seen.values.append(Value(tensor, origins, name, producer))
        self._ids[id(tensor), version_of(tensor)] = number
        if name is None and producer is None:
            self.seen.constants[number] = tensor.detach().clone()  # it may be written to later
        storage = storage_of(tensor)
        if storage is not None:
            self._memory[storage].append(number)
        return number

    # ---- functions ----

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note one function call."""
        kwargs = kwargs or {}
        if not self.watching:
            return func(*args, **kwargs)
        with self.quiet():
            if raw_name(func) in METADATA:
                return func(*args, **kwargs)
            given = tensors_of((args, kwargs))
            inputs = tuple(self.number(tensor) for tensor in given)
            versions = [version_of(tensor) for tensor in given]
            own = self._own_computation(func)
            before = (given[0].detach().clone(),) if own else ()
            result = func(*args, **kwargs)
            changed = [t for t, version in zip(given, versions, strict=True) if version_of(t) != version]
            self._note(func, (args, kwargs), inputs, result, changed, own, before)
        return result

    def _own_computation(self, func: Callable[..., Any]) -> tuple[str, Layer] | None:
        """The layer whose own computation this is."""
        if func not in _COMPUTE or not self._open:
            return None
        return self._layers.get(self.seen.frames[self._open[-1]].module)

    def _note(
        self,
        func: Callable[..., Any],
        arguments: tuple[Any, Any],
        inputs: tuple[int, ...],
        result: Any,
        changed: list[Tensor],
        own: tuple[str, Layer] | None,
        before: tuple[Tensor, ...],
    ) -> None:
        seen = self.seen
        numbers = iter(inputs)
        args, kwargs = map_tensors(lambda _: Slot(next(numbers)), arguments)
        event, at = len(seen.events), len(seen.calls)
        origins = frozenset().union(*(seen.values[number].origins for number in inputs))
        carried = frozenset({at}) if own else origins
        returned = tensors_of(result)
        results = tuple(self._result(tensor, carried, event) for tensor in returned)
        writes = self._writes(changed, carried, event)
        if not results and not writes:
            if raw_name(func) != "type":  # asks for the name of the type when it returns no tensor
                for origin in origins:
                    seen.read.setdefault(origin, function_name(func))
            return
        if all(number in inputs for number in results) and not writes:
            return  # it returned its argument as it was
        seen.events.append(
            Event(
                func,
                args,
                kwargs,
                inputs,
                results,
                writes,
                self._open[-1] if self._open else None,
                autocast_now(self._device),
                carried,
                at if own else None,
            )
        )
        if own:
            pre = returned[0].detach().clone()
            seen.calls.append(LayerCall(*own, event, inputs[0], results[0], before[0], pre))

    def _note_whole(self, module: nn.Module, given: Tensor, result: Any, read: Tensor) -> None:
        """Note the call of a layer whose functions are not looked at."""
        own = self._layers[id(module)]
        used = [one for one in (given, own[1].weight, getattr(module, "bias", None)) if one is not None]
        inputs = tuple(self.number(tensor) for tensor in used)
        self._note(class_of(own[1]).forward, (used, {}), inputs, result, [], own, (read,))

    def _result(self, tensor: Tensor, origins: frozenset[int], event: int) -> int:
        key = (id(tensor), version_of(tensor))
        if key in self._ids:
            return self._ids[key]
        return self._new(tensor, origins, producer=event)

    def _writes(self, changed: list[Tensor], origins: frozenset[int], event: int) -> tuple[tuple[int, int], ...]:
        """Give new numbers to everything that lives in memory that was changed."""
        writes = []
        for storage in {storage_of(tensor) for tensor in changed} - {None}:
            assert storage is not None
            for old in reversed(self._memory[storage].copy()):  # the latest version of each tensor first
                value = self.seen.values[old]
                if (id(value.tensor), version_of(value.tensor)) in self._ids:
                    continue
                name = self._named.get(id(value.tensor))
                # running statistics are no path of data to a later function
                carried = frozenset() if name else origins | value.origins
                writes.append((self._new(value.tensor, carried, name=name, producer=event), old))
        return tuple(writes)

    # ---- modules ----

    def _hook(self, stack: ExitStack) -> None:
        hooked: set[int] = set()
        for name, module in self.model.named_modules(remove_duplicate=False):
            if id(module) in hooked:
                continue
            hooked.add(id(module))
            if is_layer(module) and is_plain(module):
                kind = kind_of(module)
                assert kind is not None
                self._layers[id(module)] = canonical_name(name), module
                if not kind.known:
                    self._whole.add(id(module))
            before, after = self._hooks(canonical_name(name))
            stack.callback(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        inputs: dict[int, Tensor] = {}  # what layers that are being called were given

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.watching:
                with self.quiet():
                    given = tuple(self.number(tensor) for tensor in tensors_of((args, kwargs)))
                simple = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
                parent = self._open[-1] if self._open else None
                self._open.append(len(self.seen.frames))
                self.seen.frames.append(Frame(parent, id(module), name, given, simple))
                if id(module) in self._whole and simple:
                    self._quiet += 1
                    inputs[id(module)] = args[0].detach().clone()

        def after(module: nn.Module, args: Any, _kwargs: Any, result: Any) -> None:
            read = inputs.pop(id(module), None)
            if read is not None:
                self._quiet -= 1
                with self.quiet():
                    self._note_whole(module, args[0], result, read)
            if self.watching:
                with self.quiet():
                    frame = self.seen.frames[self._open.pop()]
                    frame.returned = tuple(self.number(tensor) for tensor in tensors_of(result))
                    frame.simple = frame.simple and isinstance(result, Tensor)

        return before, after

    # ---- below the functions ----

    def out_of_sight(self, func: Any, given: list[Tensor], returned: list[Tensor]) -> None:
        """Note an operation that no function call announced."""
        read = {storage_of(tensor) for tensor in given} - {None}
        made = {storage_of(tensor) for tensor in returned} - {None}
        if made <= read and not func._schema.is_mutable:
            return  # a view reads no value
        origins: frozenset[int] = frozenset()
        for storage in read:
            assert storage is not None
            origins |= self._origins_in(storage)
            for number in self._memory.get(storage, ()):
                name = self.seen.values[number].name
                if name is not None:
                    self.seen.hidden_uses.setdefault(name, self.where)
        for origin in origins:
            self.seen.lost.setdefault(origin, self.where)
        self._alive.extend(returned)
        self._unseen.update({storage: origins for storage in made if storage is not None})


class _Below(TorchDispatchMode):
    """Tells an observer of the operations that run while no function that it sees is under way."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._observer = observer

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # observation runs eagerly; torch would import its compiler for this, which takes seconds

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        watching = self._observer.watching
        with self._observer.quiet():
            result = func(*args, **(kwargs or {}))
            if watching:
                self._observer.out_of_sight(func, tensors_of((args, kwargs)), tensors_of(result))
        return result


def _same_place(one: Tensor, other: Tensor) -> bool:
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )
