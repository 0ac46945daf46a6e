"""Values over time: thinned so that dips survive, and the plateaus in them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, eq=False)
class Curve:
    """Values at increasing steps; NaN where there is none."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    @staticmethod
    def of(steps: Iterable[int], values: Iterable[float]) -> Curve:
        """A curve of any numbers."""
        return Curve(array("q", steps), array("d", values))

    def __len__(self) -> int:
        return len(self.steps)

    def set(self, step: int, value: float) -> None:
        """Add a value; at the last step it takes the place of the one there, and what comes too late is left out."""
        if self.steps and step == self.steps[-1]:
            self.values[-1] = value
        elif not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)

    def cut(self, step: int) -> None:
        """Take away what was at this step and later."""
        while self.steps and self.steps[-1] >= step:
            del self.steps[-1], self.values[-1]


def thin(curve: Curve, buckets: int) -> Curve:
    """Of every bucket of neighbouring points the lowest and the highest, so that no dip and no peak is lost.

    Args:
        curve: any number of points.
        buckets: a curve of at most twice as many points is returned as it is.

    Returns:
        At most two points of every bucket, in order, and the first and the last of all.

    >>> low = thin(Curve.of(range(1000), [1.0] * 500 + [0.0] + [1.0] * 499), 10)
    >>> len(low) <= 22, min(low.values), low.steps[0], low.steps[-1]
    (True, 0.0, 0, 999)
    """
    count = len(curve)
    if count <= 2 * buckets:
        return curve
    values = np.asarray(curve.values)
    kept = {0, count - 1}
    for bucket in np.array_split(np.arange(count), buckets):
        known = bucket[~np.isnan(values[bucket])]
        of = (known[values[known].argmin()], known[values[known].argmax()]) if len(known) else bucket[:1]
        kept.update(int(at) for at in of)
    order = sorted(kept)
    return Curve.of((curve.steps[at] for at in order), (curve.values[at] for at in order))


def total(curves: Iterable[Curve]) -> Curve:
    """The sum at every step at which any of the curves has a value; one that has none there counts 0.

    >>> list(total([Curve.of([0, 1], [1.0, 2.0]), Curve.of([0], [5.0])]).values)
    [6.0, 2.0]
    """
    sums: dict[int, float] = {}
    for curve in curves:
        for step, value in zip(curve.steps, curve.values, strict=True):
            if math.isfinite(value):
                sums[step] = sums.get(step, 0.0) + value
    return Curve.of(sorted(sums), (sums[step] for step in sorted(sums)))


def plateaus(curve: Curve, *, windows: int = 60, length: int = 3, share: float = 0.01) -> list[tuple[int, int]]:
    """Stretches in which a loss rests: the dynamics stay near a critical point (000, Fig. 4).

    The curve is cut into windows of equal numbers of points. In a plateau the median of no window differs from that
    of the window before by more than a share of what the medians span altogether, on a logarithmic scale where all are
    positive.

    Args:
        curve: a loss over time.
        windows: how many; of a curve with fewer than two points a window there are fewer of them.
        length: changes in a row that make a plateau.
        share: largest change, as a share of the span.

    Returns:
        (first step, last step) of each, in order.

    >>> plateaus(Curve.of(range(300), [1.0] * 100 + [1 - k / 100 for k in range(100)] + [0.0] * 100))
    [(0, 99), (200, 299)]
    """
    known = [at for at, value in enumerate(curve.values) if math.isfinite(value)]
    parts = np.array_split(np.array(known, dtype=int), max(1, min(windows, len(known) // 2)))
    if len(parts) <= length:
        return []
    medians = [float(np.median([curve.values[at] for at in part])) for part in parts]
    if min(medians) > 0.0:
        medians = [math.log(median) for median in medians]
    span = max(medians) - min(medians)
    still = [abs(b - a) <= share * span for a, b in pairwise(medians)]
    return [
        (curve.steps[int(parts[first][0])], curve.steps[int(parts[last][-1])])
        for first, last in _runs(still)
        if last - first >= length
    ]


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Of every run of true flags the first place and the place behind the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, dtype=int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
