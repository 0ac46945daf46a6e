"""Record training steps from inside a callback, and observe a model once per architecture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_embed.errors import EmbeddingError
from lightning_embed.graph import Graph, observe
from lightning_embed.tape import Recorder, Tape

log = logging.getLogger(__name__)


class StepRecording:
    """The recording of one training step: `start` and `stop` between two hooks, `take` what came of it.

    Attributes:
        last: the latest tape, kept until the next one.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self.last: Tape | None = None
        self._recorder: Recorder | None = None
        self._fresh: Tape | None = None

    def start(self, module: nn.Module) -> None:
        """Put hooks on a module; they see the calls of this step alone."""
        self.stop()
        self._fresh = None
        self._recorder = Recorder(module)
        self._recorder.start()

    def stop(self) -> None:
        """Take the hooks off. Calling it again does nothing."""
        recorder, self._recorder = self._recorder, None
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
    """The graph of a model, observed anew only when names or shapes of its parameters or the calls have changed."""

    def __init__(self) -> None:
        self._key: Any = None
        self._graph: Graph | None = None

    def graph(self, module: nn.Module, tapes: Sequence[Tape]) -> Graph:
        """The graph of a module as it is now."""
        shapes = [(name, one.shape) for name, one in module.named_parameters()]
        key = (shapes, [tape.structure for tape in tapes])
        if self._graph is None or key != self._key:
            self._graph, self._key = observe(module, tapes), key
        return self._graph
