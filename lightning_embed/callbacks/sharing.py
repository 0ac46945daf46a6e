"""Monitor and pruner of one Trainer use the same criteria unless they are told otherwise."""

from __future__ import annotations

import logging
from typing import Any

from lightning_embed.surgery import Criteria

log = logging.getLogger(__name__)


class HasCriteria:
    """A callback that was given criteria, or none (`given_criteria`), and works with those that are in force."""

    given_criteria: Criteria | None
    _criteria: Criteria

    @property
    def criteria(self) -> Criteria:
        """The criteria in force; setting them is the same as giving them at first."""
        return self._criteria

    @criteria.setter
    def criteria(self, criteria: Criteria) -> None:
        self.given_criteria, self._criteria = criteria, criteria


def shared_criteria(trainer: Any, callback: Any) -> Criteria:
    """The criteria of a callback: those that it was given, else those of another one that was given some.

    Args:
        trainer: whose callbacks are looked at; those that have criteria keep what they were given in `given_criteria`.
        callback: one of them.

    Returns:
        Its criteria; the defaults if none was given any. Where two differ, a line in the log says so.
    """
    others = [other for other in trainer.callbacks if other is not callback and hasattr(other, "given_criteria")]
    given = [(other, other.given_criteria) for other in others if other.given_criteria is not None]
    own: Criteria | None = callback.given_criteria
    if own is None:
        return given[0][1] if given else Criteria()
    for other, criteria in given:
        # of each pair the one that comes later says it
        later = trainer.callbacks.index(callback) > trainer.callbacks.index(other)
        if criteria != own and later and trainer.is_global_zero:
            log.warning("%s uses %s, but %s uses %s.", type(callback).__name__, own, type(other).__name__, criteria)
    return own
