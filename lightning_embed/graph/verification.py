"""Everything that is asked of one site: what it leaves apart, what is cut with it, what it does to every unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_embed.graph.layout import Layout
from lightning_embed.graph.probe import Probe
from lightning_embed.graph.reasons import Reason
from lightning_embed.graph.units import dependence


@dataclass(frozen=True, eq=False)
class Site:
    """A class of units, verified.

    Attributes:
        producers: layers whose outputs hold the units, and where.
        reads: layers that read them, and where.
        per_neuron: parameters and buffers between that are cut with the units, and where.
        fixed: other layers, or "input", whose values are used between.
        functions: names of the functions between.
        rows_mix: whether samples or positions mix between, or their number changes.
        uniform, odd, homogeneous: see `HiddenLayer`.
        rows_differ: why rows taken out of their places do not stand for themselves; empty if they do.
        cut: why units cannot be cut; None if they can.
        cut_alone: whether what is in the way is a function of the units alone, and not what they meet.
        written_sizes: functions whose sizes must follow the cut, which the model itself may not do.
    """

    producers: Mapping[str, Layout]
    reads: Mapping[str, Layout]
    per_neuron: tuple[tuple[str, Layout], ...] = ()
    fixed: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    rows_mix: bool = False
    uniform: bool = False
    odd: bool = False
    homogeneous: bool = False
    rows_differ: str = ""
    cut: Reason | None = None
    cut_alone: bool = False
    written_sizes: tuple[str, ...] = ()

    @property
    def units(self) -> int:
        """Number of units."""
        return next(iter(self.producers.values())).units

    def kept_sets(self, generator: torch.Generator) -> list[Tensor]:
        """Units to leave when the cut is tried: one random set may lie, so the ends and all but one are tried too."""
        half = self.units // 2
        random = torch.randperm(self.units, generator=generator)[:half].sort().values
        sets = [random, torch.arange(half), torch.arange(self.units - half, self.units), torch.arange(1, self.units)]
        return [*{tuple(kept.tolist()): kept for kept in sets if len(kept)}.values()]


class Verification:
    """Everything that is asked of one site."""

    def __init__(self, site: Site, probe: Probe, refused: Mapping[str, Reason]) -> None:
        self.site, self.probe, self.refused = site, probe, refused

    def run(self) -> Site | Reason:
        """The site with its traits, or why it is none."""
        probe = self.probe
        reason = probe.refusal()
        if reason is not None:
            return reason
        site = self.site
        if len(site.producers) > 1 and self._leaks(site):
            return Reason("columns mix", ", ".join(site.functions))
        site = self._cuttable(site)
        if site.fixed and (site.units < 2 or (site.cut is not None and not site.cut_alone)):
            return self._joined(site)
        rows_mix = probe.rows_mix()
        single = len(site.producers) == 1 and not site.fixed
        uniform = not site.per_neuron and probe.uniform(site.producers, site.reads)
        return replace(
            site,
            rows_mix=rows_mix,
            rows_differ=probe.rows_differ() if single and not rows_mix else "",
            uniform=uniform,
            odd=uniform and single and probe.scaled(-1.0),
            homogeneous=uniform and single and probe.scaled(2.0),
        )

    def _joined(self, site: Site) -> Reason:
        """Why a site cannot be cut that data of other layers come into."""
        others = []
        for name in site.fixed:
            why = self.refused.get(name)
            others.append(repr(name) if why is None or why.key == "joined by" else f"{name!r} ({why.key})")
        return Reason("joined by", f"{', '.join(site.functions)} with {', '.join(others)}")

    def _leaks(self, site: Site) -> bool:
        """Whether moving half of the units changes columns that are not theirs."""
        half = torch.rand(site.units, generator=self.probe.generator) < 0.5
        for pool in (half, ~half):
            rows = {name: torch.zeros(count, dtype=torch.bool) for name, count in self.probe.producers.items()}
            for name, layout in site.producers.items():
                rows[name][layout.entries(torch.nonzero(pool).flatten())] = True
            for reader, answer in self.probe.answers(rows).items():
                theirs = torch.zeros_like(answer)
                if reader in site.reads:
                    theirs[site.reads[reader].entries(torch.nonzero(pool).flatten())] = True
                if bool((answer & ~theirs).any()):
                    return True
        return False

    # ---- the cut ----

    def _cuttable(self, site: Site) -> Site:
        """The site with the tensors that are cut with it; coarser, in whole heads for one, where only that works."""
        if site.units < 2:
            return site
        guessed = replace(site, per_neuron=tuple(self._tensors(site, guess=True)))
        tried = self._tried(guessed)
        if tried.cut is None:
            return tried
        searched = replace(site, per_neuron=tuple(self._tensors(site, guess=False)))
        if [name for name, _ in searched.per_neuron] != [name for name, _ in guessed.per_neuron] or any(
            mine != theirs for (_, mine), (_, theirs) in zip(searched.per_neuron, guessed.per_neuron, strict=True)
        ):
            again = self._tried(searched)
            if again.cut is None:
                return again
        for coarser in self._coarser(guessed):
            again = self._tried(coarser)
            if again.cut is None:
                return again
        return tried

    def _tried(self, site: Site) -> Site:
        """The site, with why it cannot be cut."""
        rewritten: list[str] = []
        for kept in site.kept_sets(self.probe.generator):
            failure = self.probe.cut(kept, site.producers, site.reads, site.per_neuron, rewritten)
            if failure is not None:
                return replace(site, cut=Reason("cannot be cut", failure.why), cut_alone=failure.alone)
        return replace(site, written_sizes=tuple(dict.fromkeys(rewritten)))

    def _coarser(self, site: Site) -> list[Site]:
        """Units put together: one of every head, or whole heads, for numbers of heads that stand in some shape."""
        sizes: set[int] = set()
        for part in self.probe.parts:
            for event in part.seen.events:
                for number in event.results:
                    sizes.update(part.seen.values[number].tensor.shape)
        numbers = sorted(size for size in sizes if 1 < size < site.units and site.units % size == 0)
        return [_together(site, heads, whole=whole) for heads in numbers for whole in (False, True)]

    def _tensors(self, site: Site, *, guess: bool) -> list[tuple[str, Layout]]:
        """The dimensions of parameters and buffers whose entries act on single units."""
        unit_of_column = {}
        for reader, count in self.probe.columns.items():
            unit_of_column[reader] = torch.full((count,), -1)
            if reader in site.reads:
                index = site.reads[reader].index
                assert index is not None
                unit_of_column[reader][index.flatten()] = torch.arange(site.units).repeat_interleave(index.shape[1])
        layouts = []
        for name in self.probe.names:
            tensor = self.probe.tensor(name)
            if not tensor.is_floating_point():
                continue
            for dim in range(tensor.dim()):
                if tensor.shape[dim] > 1:
                    layout = self._tensor_layout(site, name, dim, unit_of_column, guess=guess)
                    if layout is not None:
                        layouts.append((name, layout))
        return layouts

    def _tensor_layout(
        self, site: Site, name: str, dim: int, unit_of_column: Mapping[str, Tensor], *, guess: bool
    ) -> Layout | None:
        count = self.probe.tensor(name).shape[dim]
        if guess:
            for unit_of_entry in self._guesses(site, count, unit_of_column):
                if self._acts_so(name, dim, unit_of_entry, unit_of_column):
                    return _layout_of(dim, unit_of_entry, site.units)
        links = dependence(
            lambda pool: list(self.probe.answers_of_tensor(name, dim, pool).values()),
            count,
            list(self.probe.columns.values()),
            self.probe.generator,
        )
        if links is None:
            return None
        unit_of_entry = torch.full((count,), -1)
        for (_, units), pairs in zip(unit_of_column.items(), links, strict=True):
            of_pairs = units[pairs.columns]
            taken = unit_of_entry[pairs.entries]
            if bool(((taken >= 0) & (of_pairs >= 0) & (taken != of_pairs)).any()):
                return None
            unit_of_entry[pairs.entries] = torch.maximum(taken, of_pairs)
        return _layout_of(dim, unit_of_entry, site.units)

    def _guesses(self, site: Site, count: int, unit_of_column: Mapping[str, Tensor]) -> list[Tensor]:
        """Maps from entries to units worth a test: as in what a producer puts out, as in what a reader gets."""
        guesses = []
        for name, layout in site.producers.items():
            if self.probe.producers[name] == count and layout.index is not None:
                unit_of_row = torch.full((count,), -1)
                unit_of_row[layout.index.flatten()] = torch.arange(site.units).repeat_interleave(layout.size)
                guesses.append(unit_of_row)
        guesses += [units for units in unit_of_column.values() if len(units) == count]
        return list({tuple(guess.tolist()): guess for guess in guesses}.values())

    def _acts_so(self, name: str, dim: int, unit_of_entry: Tensor, unit_of_column: Mapping[str, Tensor]) -> bool:
        """Whether moving a random half of a tensor's entries changes columns of their units alone, and some."""
        half = torch.rand(len(unit_of_entry), generator=self.probe.generator) < 0.5
        anything = False
        for pool in (half, ~half):
            moved = torch.zeros(int(unit_of_entry.max()) + 2, dtype=torch.bool)
            moved[unit_of_entry[pool]] = True  # the last place stands for -1
            moved[-1] = True
            for reader, answer in self.probe.answers_of_tensor(name, dim, pool).items():
                anything |= bool(answer.any())
                units = unit_of_column[reader].clone()
                units[units > int(unit_of_entry.max())] = -2
                inside = units >= -1
                if bool((answer & (~inside | ~moved[units.clamp_min(-1)])).any()):
                    return False
        return anything


def _layout_of(dim: int, unit_of_entry: Tensor, units: int) -> Layout | None:
    """The layout of a tensor's entries; None unless every unit has equally many of them."""
    counts = torch.bincount(unit_of_entry[unit_of_entry >= 0], minlength=units)
    if len(counts) != units or not int(counts.min()) or int(counts.min()) != int(counts.max()):
        return None
    entries = torch.nonzero(unit_of_entry >= 0).flatten()
    order = unit_of_entry[entries].argsort(stable=True)
    return Layout(dim, entries[order].reshape(units, -1))


def _together(site: Site, heads: int, *, whole: bool) -> Site:
    """A site of coarser units: all units of each of `heads` runs of neighbours, or those at the same place in them."""

    def coarse(layout: Layout) -> Layout:
        assert layout.index is not None
        apart = layout.index.reshape(heads, -1, layout.size)
        index = apart if whole else apart.transpose(0, 1)
        return Layout(layout.dim, index.reshape(index.shape[0], -1).sort(dim=1).values)

    return replace(
        site,
        producers={name: coarse(layout) for name, layout in site.producers.items()},
        reads={name: coarse(layout) for name, layout in site.reads.items()},
        per_neuron=tuple((name, coarse(layout)) for name, layout in site.per_neuron),
    )
