"""The scale of a model's outputs: by what a change is divided, so that it means the same for every output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.errors import ReplayError
from lightning_embed.graph import HiddenLayer, Layout
from lightning_embed.surgery.collect import Collector
from lightning_embed.tape import Tape, replay

ALIKE = 10.0  # columns whose spreads differ by more are in different units
ROUNDING = 1e-6  # of a column's values: a spread at or below is none


@dataclass(frozen=True, eq=False)
class Scale:
    r"""By what a change of one output is divided.

    Counted is what hidden layers contribute: with f⁰ the outputs when every hidden layer puts out a constant,
    d = f − f⁰ and the mean over the rows, a group of columns has the spread $\lVert d - \bar d \rVert_F$. What no merge
    can change (masks, offsets that are computed from the inputs alone) is in f⁰ as well and does not count. Columns
    whose spreads differ by more than a factor of ten are in different units and make different groups; constant ones
    count with the largest.

    Attributes:
        output: f, shape (rows, columns), with zeros where it is infinite.
        infinite: where it is infinite in f and f⁰ alike, and may be nothing else.
        deviation: d less its mean.
        groups: numbers of the columns of each group, those of the largest spread first.
    """

    output: Tensor
    infinite: Tensor
    deviation: Tensor
    groups: tuple[Tensor, ...]

    @staticmethod
    def of(output: Tensor, still: Tensor | None) -> Scale | None:
        """That of an output, and of the same with hidden layers held still; None where it is not finite."""
        infinite = torch.isinf(output)
        if still is None or not bool((still == output)[infinite].all()) or bool(torch.isnan(still).any()):
            still = torch.zeros_like(output)
            infinite = torch.zeros_like(infinite)
        output, still = output.masked_fill(infinite, 0.0), still.masked_fill(torch.isinf(still), 0.0)
        if not bool(torch.isfinite(output).all()):
            return None
        added = output - still
        deviation = added - added.mean(dim=0)
        spread = deviation.square().mean(dim=0).sqrt()
        constant = spread <= ROUNDING * added.abs().amax(dim=0)
        return Scale(output, infinite, deviation, _groups(spread.masked_fill(constant, 0.0)))

    @property
    def squares(self) -> Tensor:
        """For every column the squared spread of its group; infinite where the output is constant."""
        whole = self.output.new_full((self.output.shape[1],), math.inf)
        for columns in self.groups:
            square = self.deviation[:, columns].square().sum()
            if square > 0:
                whole[columns] = square
        return whole

    def change(self, new: Tensor, samples: int) -> tuple[float, float, Tensor]:
        """The largest change of a group, its standard error over samples, and the group's columns."""
        if bool((torch.isinf(new) != self.infinite).any()) or bool(torch.isnan(new).any()):
            return math.inf, 0.0, torch.arange(new.shape[1])
        difference = new.masked_fill(self.infinite, 0.0) - self.output
        changes = [relative(difference[:, columns], self.deviation[:, columns]) for columns in self.groups]
        worst = max(range(len(changes)), key=lambda place: changes[place])
        columns = self.groups[worst]
        return changes[worst], standard_error(difference[:, columns], self.deviation[:, columns], samples), columns


def _groups(spread: Tensor) -> tuple[Tensor, ...]:
    order = torch.argsort(spread, descending=True)
    groups: list[list[int]] = [[]]
    largest = float(spread[order[0]])
    constant = []
    for column in order.tolist():
        if not spread[column] > 0:
            constant.append(column)
        elif spread[column] * ALIKE < largest:
            groups.append([column])
            largest = float(spread[column])
        else:
            groups[-1].append(column)
    groups[0].extend(constant)
    return tuple(torch.tensor(sorted(columns)) for columns in groups)


def relative(difference: Tensor, deviation: Tensor) -> float:
    """‖difference‖_F / ‖deviation‖_F; infinite where only the second is 0."""
    size = torch.linalg.vector_norm(difference).item()
    scale = torch.linalg.vector_norm(deviation).item()
    if size == 0.0:
        return 0.0
    return size / scale if scale > 0.0 else math.inf


def standard_error(difference: Tensor, deviation: Tensor, samples: int) -> float:
    r"""Standard error of `relative`, the root of a ratio of two means over samples; 0 where nothing differs.

    With $d_i$ and $s_i$ the squares of a sample's difference and deviation, and $R = \sum d / \sum s$, the change is
    $\sqrt R$, and its error $\mathrm{sd}(d - R s) / (2 \sqrt{n R}\, \bar s)$.
    """
    rows = len(difference)
    apart = samples if samples and rows % samples == 0 else rows  # positions of one sample belong together
    squares, spread = (values.square().sum(dim=1).reshape(apart, -1).sum(dim=1) for values in (difference, deviation))
    if apart < 2 or not float(spread.sum()) > 0 or not float(squares.sum()) > 0:
        return 0.0
    ratio = squares.sum() / spread.sum()
    scatter = (squares - ratio * spread).std()
    return float(scatter / (2 * (apart * ratio).sqrt() * spread.mean()))


def outputs_of(model: nn.Module, tapes: Sequence[Tape]) -> list[Tensor]:
    """Outputs over all tapes, one (samples, columns) matrix in float64 for every output and number of columns."""
    columns: dict[tuple[int, int], list[Tensor]] = {}
    for tape in tapes:
        for place, output in enumerate(replay(model, tape)):
            if output.is_floating_point() and output.numel():
                rows = as_rows(output)
                columns.setdefault((place, rows.shape[1]), []).append(rows)
    return [torch.cat(parts) for parts in columns.values()]


def as_rows(output: Tensor) -> Tensor:
    """An output as (samples, columns) in float64."""
    return (output.reshape(-1, output.shape[-1]) if output.dim() > 1 else output.reshape(-1, 1)).double()


def still_outputs(model: nn.Module, layers: Sequence[HiddenLayer], tapes: Sequence[Tape]) -> list[Tensor] | None:
    """The outputs when all hidden layers put out constants, their means in the first call; None where that fails."""
    layouts: dict[str, list[Layout]] = {}
    for layer in layers:
        if layer.merge_neurons is None or layer.merge_layer is None:
            for name, layout in layer.producers.items():
                layouts.setdefault(name, []).append(layout)
    collector = Collector(model)
    for name, where in layouts.items():
        collector.alter(name, _Held(where))
    try:
        collector.start()
        return outputs_of(model, tapes)
    except ReplayError:
        return None
    finally:
        collector.stop()


class _Held:
    """Holds a layer's neurons at their means in its first call."""

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self._layouts = layouts
        self._means: list[Tensor | None] = [None] * len(layouts)

    def __call__(self, value: Tensor) -> Tensor:
        for place, layout in enumerate(self._layouts):
            assert layout.index is not None
            entries = layout.index.flatten().to(value.device)
            part = value.index_select(layout.dim, entries)
            mean = self._means[place]
            if mean is None:
                others = [dim for dim in range(value.dim()) if dim != layout.dim % value.dim()]
                mean = self._means[place] = part.mean(dim=others, keepdim=True)
            value = value.index_copy(layout.dim, entries, mean.expand_as(part).to(value.dtype))
        return value
