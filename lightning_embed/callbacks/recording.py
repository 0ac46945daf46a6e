"""Record training steps from inside a callback, and observe a model once per architecture."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Container, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_embed.callbacks._trainer import unlogged
from lightning_embed.errors import EmbeddingError, InputError, ReplayError
from lightning_embed.graph import Graph, observe
from lightning_embed.surgery.nominate.features import MomentCollector
from lightning_embed.tape import Recorder, Tape, record, replay
from lightning_embed.tape.tape import modules_by_name

log = logging.getLogger(__name__)
_KINDS = 8  # of steps whose graphs are kept


class StepRecording:
    """The recording of one training step: `start` and `stop` between two hooks, `take` what came of it.

    Where a module says itself what is to be recorded, with `call` or a `calibration_step(batch)` of its own, that is
    run on the step's batch in place of recording the step.

    A call that cannot be replayed, because it differentiates what it computes, or that returns nothing but a loss is
    looked through from then on: the calls inside it are recorded.

    Args:
        output: picks the outputs from what a call returned.
        call: (module, batch) → outputs.

    Attributes:
        last: the latest tape, kept until the next one.
        again: whether the latest step was in vain, and the next one will be recorded in another way.
        collected: the moments of the hidden layers in the recorded step itself; None unless `start` was given a graph
            and all went well.
    """

    def __init__(
        self, output: Callable[[Any], Any] | None = None, call: Callable[[Any, Any], Any] | None = None
    ) -> None:
        self._output, self._call = output, call
        self._warned: set[str] = set()
        self._through: set[str] = set()
        self._known: set[Any] = set()  # kinds of steps that can be replayed, or never will
        self.last: Tape | None = None
        self.again = False
        self.collected: MomentCollector | None = None
        self._collector: MomentCollector | None = None
        self._recorder: Recorder | None = None
        self._fresh: Tape | None = None

    def asked(self, module: Any) -> Callable[[Any], Any] | None:
        """What runs a batch in place of the training step; None where the step itself is recorded."""
        if self._call is not None:
            return functools.partial(self._call, module)
        own: Callable[[Any], Any] | None = getattr(module, "calibration_step", None)
        return own

    def start(self, module: Any, batch: Any, graph: Graph | None = None) -> None:
        """Put hooks on a module, and on the hidden layers of its graph; they see the calls of this step alone."""
        self.stop()
        self._fresh = self.collected = None
        self.again = False
        call = self.asked(module)
        if call is not None:
            try:
                with unlogged(module):
                    [self._fresh] = record(module, [batch], call=call, output=self._output)
            except Exception as error:  # noqa: BLE001  # whatever it does, training goes on
                why = error if isinstance(error, EmbeddingError) else f"{type(error).__name__}: {error}"
                self.warn("A batch could not be recorded with call= or calibration_step, so it is not measured", why)
            return
        self._recorder = Recorder(module, self._through, self._output)
        self._recorder.start()
        if graph is not None:
            self._collector = MomentCollector(module, graph.layers).start()

    def leads_to(self, loss: Any) -> None:
        """Tell of a loss of the step, which says what its outputs are."""
        if self._recorder is not None:
            self._recorder.leads_to(loss)

    def stop(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        recorder, self._recorder = self._recorder, None
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.stop()
            self.collected = collector if collector.error is None else None
        if recorder is not None:
            try:
                self._fresh = recorder.stop()
                if self._fresh is None:
                    self.warn("A training step could not be recorded, so it is not measured", recorder.reason)
            except EmbeddingError as error:
                self.warn("A training step could not be recorded, so it is not measured", error)

    def warn(self, what: str, why: object) -> None:
        """Say what cannot be done and why, once for every reason: training goes on."""
        if str(why) not in self._warned:
            self._warned.add(str(why))
            log.warning("%s: %s", what, why)

    def take(self, module: Any) -> Tape | None:
        """The tape of the step that was just recorded, once."""
        fresh, self._fresh = self._fresh, None
        if fresh is not None and fresh.structure not in self._known:
            closed = self._closed(module, fresh) - self._through
            if closed:
                self._through |= closed
                self.again = True
                return None
            self._known.add(fresh.structure)
        self.last = fresh or self.last
        return fresh

    def _closed(self, module: Any, tape: Tape) -> set[str]:
        """The calls that have to be looked through: those that fail in a replay, and those that return only a loss."""
        try:
            with unlogged(module):
                outputs = replay(module, tape)
        except ReplayError as error:
            found = {error.module}
        else:
            found = (
                set() if any(one.dim() for one in outputs) else {tape.steps[ref.step].module for ref in tape.outputs}
            )
        named = modules_by_name(module)
        return {name for name in found if name is not None and _has_inner(named[name])}


def check_functions(callback: str, **options: Any) -> None:
    """Refuse an option that is no function.

    Raises:
        InputError: there is one.
    """
    for name, value in options.items():
        if value is not None and not callable(value):
            raise InputError(f"{callback}({name}=…) must be a function or None, got {value!r}.")


def without(callback: Any, live: Container[str]) -> dict[str, Any]:
    """The attributes of a callback that may be copied: packages copy and pickle what they are given.

    Lightning leaves the module's `log` and `log_dict` on callbacks, and with them the whole module.
    """
    theirs = ("log", "log_dict")
    return {name: value for name, value in vars(callback).items() if name not in live and name not in theirs}


def _has_inner(module: nn.Module) -> bool:
    """Whether a module holds others with parameters, whose calls can be seen in place of its own."""
    return any(any(True for _ in one.parameters()) for one in module.children())


class Observed:
    """The graphs of a model, one for each kind of step; observed anew when its parameters or modes have changed."""

    def __init__(self) -> None:
        self._state: Any = None
        self._graphs: dict[Any, Graph] = {}
        self._latest: Graph | None = None

    def latest(self, module: nn.Module) -> Graph | None:
        """The graph that was asked for last, if the module is still as it was then."""
        return self._latest if self._graphs and self._state == _state(module) else None

    def graph(self, module: nn.Module, tapes: Sequence[Tape]) -> Graph:
        """The graph of a module as it is now."""
        state, key = _state(module), tuple(tape.structure for tape in tapes)
        if state != self._state:
            self._graphs, self._state = {}, state
        if key not in self._graphs:
            if len(self._graphs) == _KINDS:
                self._graphs.clear()
            self._graphs[key] = observe(module, tapes)
        self._latest = self._graphs[key]
        return self._latest


def _state(module: nn.Module) -> Any:
    """Names and shapes of the parameters, modes, rates of dropout: a graph holds as long as they stay."""
    return (
        [(name, one.shape) for name, one in module.named_parameters()],
        [(one.training, one.p if isinstance(one, _DropoutNd) else None) for one in module.modules()],
    )
