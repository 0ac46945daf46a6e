"""What is asked for: the criteria that nominate merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning_embed.errors import InputError
from lightning_embed.surgery.nominate.amplitude import Amplitude
from lightning_embed.surgery.nominate.condensation import Condensation
from lightning_embed.surgery.nominate.criterion import Criterion
from lightning_embed.surgery.nominate.linearization import Linearization
from lightning_embed.surgery.nominate.null import Null
from lightning_embed.surgery.nominate.span import SpanCriterion

# thresholds of `Criteria`, by name, and the criterion that each of them makes
BY_THRESHOLD: dict[str, Callable[[float], Criterion]] = {
    "amplitude": Amplitude,
    "linearization": Linearization,
    "condensation": Condensation,
    "span": SpanCriterion,
}


def fraction(name: str, value: float | None) -> None:
    """Refuse what is no share."""
    if value is not None and not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise InputError(f"{name} must lie in 0..1 (or be None to leave it out), got {value!r}.")


@dataclass(frozen=True)
class Criteria:
    """Thresholds that *nominate* what may be merged; None leaves a criterion out.

    Nothing is merged because of a threshold alone: what is nominated is tried, and the measured change of the
    output (`Tolerance`) decides. `prune` without criteria nominates everything.

    Args:
        linearization: nominate hidden layers whose minimal Pearson correlation of pre- and post-activations
            (paper 000, eq. 5.1) is at least this.
        condensation: nominate groups of neurons whose augmented input weights [w, b] have pairwise cosine
            similarity of at least this.
        span: nominate the neurons whose features lie in the span of the kept ones and the constant, up to this
            share (Frobenius norm) of the layer's contribution to its consumers.
        extra: criteria of your own (see `Criterion`), tried beside these.
        amplitude: nominate the neurons whose amplitude (norm of the input weights times norm of the output weights) is
            below this share of the largest in their layer, and leave them out of what is measured; they go first, by
            a refit. The papers take 0.1 (000, App. C; 004, Fig. 5). Off by default.

    Raises:
        InputError: a threshold lies outside 0..1, or an extra one is no criterion or has the name of another.

    >>> Criteria(condensation=None).span
    0.01
    """

    linearization: float | None = 0.99
    condensation: float | None = 0.9
    span: float | None = 0.01
    extra: tuple[Criterion, ...] = ()
    amplitude: float | None = None

    def __post_init__(self) -> None:
        for name in BY_THRESHOLD:
            fraction(f"Criteria({name}=…)", getattr(self, name))
        names = {Null.name, "size", "reconstruction", *BY_THRESHOLD}
        for criterion in self.extra:
            if not isinstance(criterion, Criterion):
                raise InputError(f"Criteria(extra=…) takes objects of a subclass of Criterion, got {criterion!r}.")
            if criterion.name in names:
                raise InputError(f"There is a criterion of the name {criterion.name!r} already; give it another one.")
            names.add(criterion.name)

    def chosen(self) -> tuple[Criterion, ...]:
        """The criteria that nominate, in the order of their turns: null neurons, small ones, then the others."""
        thresholds = {name: getattr(self, name) for name in BY_THRESHOLD}
        built_in: list[Criterion] = [
            BY_THRESHOLD[name](value) for name, value in thresholds.items() if value is not None
        ]
        return (Null(), *built_in, *self.extra)
