"""Record training steps from inside a callback, and observe a model once per architecture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_embed.errors import EmbeddingError
from lightning_embed.graph import Graph, observe
from lightning_embed.surgery.nominate.features import MomentCollector
from lightning_embed.tape import Recorder, Tape

log = logging.getLogger(__name__)
_KINDS = 8  # of steps whose graphs are kept


class StepRecording:
    """The recording of one training step: `start` and `stop` between two hooks, `take` what came of it.

    Attributes:
        last: the latest tape, kept until the next one.
        collected: the moments of the hidden layers in the recorded step itself; None unless `start` was given a graph
            and all went well.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self.last: Tape | None = None
        self.collected: MomentCollector | None = None
        self._collector: MomentCollector | None = None
        self._recorder: Recorder | None = None
        self._fresh: Tape | None = None

    def start(self, module: nn.Module, graph: Graph | None = None) -> None:
        """Put hooks on a module, and on the hidden layers of its graph; they see the calls of this step alone."""
        self.stop()
        self._fresh = self.collected = None
        self._recorder = Recorder(module)
        self._recorder.start()
        if graph is not None:
            self._collector = MomentCollector(module, graph.layers).start()

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
            self.last = self._fresh or self.last

    def warn(self, what: str, why: object) -> None:
        """Say what cannot be done and why, once for every reason: training goes on."""
        if str(why) not in self._warned:
            self._warned.add(str(why))
            log.warning("%s: %s", what, why)

    def take(self) -> Tape | None:
        """The tape of the step that was just recorded, once."""
        fresh, self._fresh = self._fresh, None
        return fresh


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
