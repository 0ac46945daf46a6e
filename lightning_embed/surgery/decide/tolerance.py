"""What decides: how much a merge may change."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.surgery.nominate.criteria import fraction


@dataclass(frozen=True)
class Tolerance:
    """How much a merge may change what the network computes, on calibration data that no fit has seen.

    All bounds that are given hold together, and each for all merges of the call (of the merging event, in training).

    Args:
        change: bound of ‖f′ − f‖_F / ‖f − mean f‖_F, where f are the outputs of the network as it was at the
            start and f′ the present ones; the standard error over the samples that decide counts on top of it. Of
            several output tensors, and of columns in different units, the worst counts, and what no merge can change
            (masks, offsets computed from the inputs alone) does not count in f. `math.inf` leaves the decision
            to the other bounds.
        agreement: least share of samples on which the arg-max over the last dimension stays the same; None where
            the outputs are no scores of classes.
        metric: a measure of your own: a function that takes the model and returns a number, the higher the better,
            such as the accuracy on validation data (of a loss, the negative). It may not fall by more than `drop`
            below its value at the start. The model is in eval mode and autograd is off; modes, buffers and random
            state are put back afterwards. It is called once at the start and once for every merge that the other
            bounds allow. A merge on which it fails is refused.
        drop: how far the metric may fall, in its own units.

    Raises:
        InputError: a bound is negative, not a number, or an agreement outside 0..1; the metric cannot be called, or
            there is a drop and no metric.

    >>> Tolerance().allows(change=0.04, agreement=0.97)
    True
    >>> Tolerance(metric=lambda model: 0.9, drop=0.01).allows(change=0.04, agreement=0.97, fall=0.02)
    False
    """

    change: float = 0.05
    agreement: float | None = None
    metric: Callable[[nn.Module], float] | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("change", self.change), ("drop", self.drop)):
            if not (isinstance(value, (int, float)) and value >= 0.0):
                raise InputError(f"Tolerance({name}=…) must be a number of at least 0, got {value!r}.")
        fraction("Tolerance(agreement=…)", self.agreement)
        if self.metric is not None and not callable(self.metric):
            raise InputError(f"Tolerance(metric=…) must be a function of the model, got {self.metric!r}.")
        if self.metric is None and self.drop > 0.0:
            raise InputError("Tolerance(drop=…) bounds how far the metric may fall; give metric= too.")

    def allows(self, change: float, agreement: float, fall: float = 0.0, error: float = 0.0) -> bool:
        """Whether a measured effect stays within the bounds (NaN never does).

        Args:
            change: what was measured.
            agreement: what was measured.
            fall: of the metric.
            error: standard error of the change, which counts on top of it: few samples may show too little.
        """
        kept = self.agreement is None or agreement >= self.agreement
        # 0.95 - 0.94 is a little more than 0.01, and a metric may be computed in single precision
        held = self.metric is None or fall <= self.drop or math.isclose(fall, self.drop, rel_tol=1e-5)
        return change + error <= self.change and kept and held
