"""Find sites: classes of producer rows and reader columns that depend on each other, several layers at once if need be.

1. Every call of a layer is followed forward to the calls of layers that read what is computed from it.
2. Which columns of the readers depend on which rows is asked layer by layer (`units`), the outputs of all other layers
   being data.
3. Layers that divide the columns that they share alike are producers of one site; where they do not, each is data to
   the other, as a gate of one column is.
4. Rows and columns that hang together are a unit; units with equally many rows and columns of each layer are a site.
5. Every site is verified as a whole, and so is the cut to some of its units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lightning_embed.graph.layout import Layout, input_dim, output_layout
from lightning_embed.graph.observer import Observation
from lightning_embed.graph.probe import Part, Probe, parts_of
from lightning_embed.graph.reasons import Reason
from lightning_embed.graph.units import Links, dependence
from lightning_embed.tape.functions import function_name


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


@dataclass(frozen=True, eq=False)
class Reach:
    """What one call of a layer leads to: the calls that read it, the events on the way, or why it is no hidden layer."""

    readers: tuple[int, ...]
    members: frozenset[int]
    reason: Reason | None = None


def reach_of(seen: Observation) -> list[Reach]:
    """Follow every call of a layer forward, whatever joins on the way."""
    users: dict[int, list[int]] = defaultdict(list)
    for number, event in enumerate(seen.events):
        for value in dict.fromkeys(event.inputs):
            users[value].append(number)
    every = []
    for number, call in enumerate(seen.calls):
        readers, members, done = set[int](), set[int](), set[int]()
        waiting, weight_of = [call.made], ""
        while waiting:
            value = waiting.pop()
            if value in done:
                continue
            done.add(value)
            for user in users[value]:
                event = seen.events[user]
                if event.call is None:
                    members.add(user)
                    waiting.extend(made for made in event.made if seen.values[made].name is None)
                elif seen.calls[event.call].read == value:
                    readers.add(event.call)
                else:
                    weight_of = seen.calls[event.call].layer
        every.append(Reach(tuple(sorted(readers)), frozenset(members), _no_end(seen, number, done, weight_of)))
    return every


def _no_end(seen: Observation, call: int, values: set[int], weight_of: str) -> Reason | None:
    if call in seen.lost:
        return Reason("lost from sight in", seen.lost[call])
    if call in seen.read:
        return Reason("value read by code", seen.read[call])
    if values & set(seen.outputs):
        return Reason("is the model's output")
    if weight_of:
        return Reason("weight computed", f"of {weight_of!r}, from it")
    return None


def site_events(seen: Observation, site: Site) -> frozenset[int]:
    """The numbers of the events between the producers and the readers of a site."""
    reaches = reach_of(seen)
    calls = {number: reaches[number].readers for number, call in enumerate(seen.calls) if call.layer in site.producers}
    return frozenset().union(*(part.events for part in parts_of([seen], [calls])))


def find_sites(
    observations: Sequence[Observation],
    plain: Mapping[str, Reason],
    named: Mapping[str, Tensor],
    known: dict[Any, Any],
) -> tuple[list[Site], dict[str, Reason]]:
    """All sites of a model, and why other layers are in none.

    Args:
        observations: all in eval mode.
        plain: layers that are refused whatever is around them.
        named: parameters and buffers.
        known: results for regions that were probed before; added to.
    """
    search = _Search(observations, plain, named, known)
    return search.run()


class _Search:
    def __init__(
        self,
        observations: Sequence[Observation],
        plain: Mapping[str, Reason],
        named: Mapping[str, Tensor],
        known: dict[Any, Any],
    ) -> None:
        self.observations, self.plain, self.named, self.known = observations, plain, named, known
        self.reaches = [reach_of(seen) for seen in observations]
        self.refused: dict[str, Reason] = {}
        calls = [call for seen in observations for call in seen.calls]
        self.order = {name: place for place, name in enumerate(dict.fromkeys(call.layer for call in calls))}
        self.neurons = {call.layer: call.neurons for call in calls}
        self.columns = {call.layer: call.given.shape[input_dim(call.module)] for call in calls}

    def run(self) -> tuple[list[Site], dict[str, Reason]]:
        links: dict[str, dict[str, Links]] = {}
        for name in self.order:
            result = self.plain.get(name) or self._links(name)
            if isinstance(result, Reason):
                self.refused[name] = result
            else:
                links[name] = result
        sites: list[Site] = []
        for producers in self._united(links):
            sites += self._sites({name: links[name] for name in producers})
        held = {name for site in sites for name in site.producers}
        return sites, {name: reason for name, reason in self.refused.items() if name not in held}

    # ---- one layer ----

    def _calls(self, names: Sequence[str]) -> list[dict[int, tuple[int, ...]]]:
        """For every observation, the calls of some layers and who reads each."""
        return [
            {
                number: reaches[number].readers
                for number, call in enumerate(seen.calls)
                if call.layer in names and reaches[number].readers
            }
            for seen, reaches in zip(self.observations, self.reaches, strict=True)
        ]

    def _links(self, name: str) -> dict[str, Links] | Reason:
        """Which columns of which readers depend on which rows of a layer."""
        sort = next(call for seen in self.observations for call in seen.calls if call.layer == name)
        if type(sort.pre) is not Tensor:
            return Reason("not measurable", f"a {type(sort.pre).__name__}")
        if not sort.pre.is_floating_point() or not sort.neurons:
            return Reason("not measurable", f"{sort.neurons} neurons of {sort.pre.dtype}")
        if output_layout(sort.module).positions and sort.pre.dim() != -sort.layout.dim + 1:
            return Reason("no batch dimension")
        for seen, reaches in zip(self.observations, self.reaches, strict=True):
            for call, reach in zip(seen.calls, reaches, strict=True):
                if call.layer == name and reach.reason is not None:
                    return reach.reason
        calls = self._calls([name])
        if not any(calls):
            return Reason("no consumer")
        parts = parts_of(self.observations, calls)
        loose = self._loose(name, parts)
        if loose:
            return Reason("no consumer", f"of the result of {', '.join(loose)}")
        probe = Probe(parts, self.named)
        for reader in probe.readers:
            if reader in self.plain:
                return Reason(self.plain[reader].key, f"of its consumer {reader!r}")
        key = ("links", name, *(part.region.signature(sizes=True) for part in parts))
        if key not in self.known:
            self.known[key] = self._ask(name, probe)
        result: dict[str, Links] | Reason = self.known[key]
        return result

    def _ask(self, name: str, probe: Probe) -> dict[str, Links] | Reason:
        try:
            reason = probe.refusal()
            if reason is not None:
                return reason
            links = dependence(
                lambda pool: list(probe.answers({name: pool}).values()),
                self.neurons[name],
                list(probe.columns.values()),
                probe.generator,
            )
        except Exception as error:  # noqa: BLE001  # whatever a re-executed function raises
            return Reason("cannot be cut", f"re-executing what lies behind it fails: {error}")
        if links is None:
            return Reason("columns mix", ", ".join(probe.functions))
        return dict(zip(probe.columns, links, strict=True))

    def _loose(self, name: str, parts: Sequence[Part]) -> list[str]:
        """Functions of what a layer computes whose results no layer reads."""
        names: list[str] = []
        for seen, reaches in zip(self.observations, self.reaches, strict=True):
            members = set[int]()
            for number, call in enumerate(seen.calls):
                if call.layer == name:
                    members |= reaches[number].members
            for part in parts:
                if part.seen is seen:
                    members -= part.events
            names += [function_name(seen.events[number].function) for number in sorted(members)]
        return list(dict.fromkeys(names))

    # ---- several layers ----

    def _united(self, links: Mapping[str, Mapping[str, Links]]) -> list[list[str]]:
        """Layers that belong together: they divide the columns that they share alike."""
        division = {name: self._division(name, own) for name, own in links.items()}
        member = {name: {name} for name in links}
        for one, other in combinations(links, 2):
            if any(reader in links[other] for reader in links[one]) and _alike(division[one], division[other]):
                together = member[one] | member[other]
                for name in together:
                    member[name] = together
        groups = {id(names): sorted(names, key=self.order.__getitem__) for names in member.values()}
        return list(groups.values())

    def _division(self, name: str, links: Mapping[str, Links]) -> dict[str, np.ndarray]:
        """For every reader, the class of each of its columns that a layer makes; -1 where it does not reach."""
        rows, columns = [], []
        first = {reader: sum(self.columns[r] for r in list(links)[:place]) for place, reader in enumerate(links)}
        for reader, pairs in links.items():
            rows.append(pairs.entries.numpy())
            columns.append(pairs.columns.numpy() + first[reader])
        classes = _components(self.neurons[name], sum(self.columns[r] for r in links), rows, columns)[1]
        reached = np.zeros(len(classes), dtype=bool)
        reached[np.concatenate(columns).astype(int)] = True
        classes = np.where(reached, classes, -1)
        return {reader: classes[first[reader] : first[reader] + self.columns[reader]] for reader in links}

    def _sites(self, links: Mapping[str, Mapping[str, Links]]) -> list[Site]:
        """The sites of layers that belong together."""
        producers = list(links)
        readers = sorted({reader for own in links.values() for reader in own}, key=self.order.__getitem__)
        first_row = {name: sum(self.neurons[p] for p in producers[:place]) for place, name in enumerate(producers)}
        first_column = {name: sum(self.columns[r] for r in readers[:place]) for place, name in enumerate(readers)}
        rows, columns = [], []
        for name, own in links.items():
            for reader, pairs in own.items():
                rows.append(pairs.entries.numpy() + first_row[name])
                columns.append(pairs.columns.numpy() + first_column[reader])
        row_count, column_count = sum(map(self.neurons.get, producers)), sum(map(self.columns.get, readers))  # type: ignore[arg-type]
        of_rows, of_columns = _components(row_count, column_count, rows, columns)
        blocks = [of_rows[first_row[p] : first_row[p] + self.neurons[p]] for p in producers]
        blocks += [of_columns[first_column[r] : first_column[r] + self.columns[r]] for r in readers]
        count = int(max(of_rows.max(initial=-1), of_columns.max(initial=-1))) + 1
        sizes = np.stack([np.bincount(block, minlength=count) for block in blocks], axis=1)  # (classes, layers)
        has_rows = sizes[:, : len(producers)].any(axis=1)
        has_columns = sizes[:, len(producers) :].any(axis=1)
        classes = np.nonzero(has_rows & has_columns)[0]
        sites = []
        for signature in np.unique(sizes[classes], axis=0):
            units = classes[(sizes[classes] == signature).all(axis=1)]
            layouts = [
                _index(block, units, size) if size else None for block, size in zip(blocks, signature, strict=True)
            ]
            order = next(index for index in layouts if index is not None)[:, 0].argsort()
            held = {
                name: Layout(self._output_dim(name), index[order])
                for name, index in zip(producers, layouts, strict=False)
                if index is not None
            }
            read = {
                name: Layout(self._input_dim(name), index[order])
                for name, index in zip(readers, layouts[len(producers) :], strict=True)
                if index is not None
            }
            site = self._verified(Site(held, read))
            if isinstance(site, Site):
                sites.append(site)
            else:
                for name in held:
                    self.refused.setdefault(name, site)
        return sites

    def _output_dim(self, name: str) -> int:
        return next(call.layout.dim for seen in self.observations for call in seen.calls if call.layer == name)

    def _input_dim(self, name: str) -> int:
        return next(input_dim(call.module) for seen in self.observations for call in seen.calls if call.layer == name)

    # ---- a site as a whole ----

    def _verified(self, site: Site) -> Site | Reason:
        """The site with all that is known of it, or why it is none."""
        calls = self._calls(list(site.producers))
        for seen, readers_of in zip(self.observations, calls, strict=True):
            reading = {reader for readers in readers_of.values() for reader in readers}
            for number, call in enumerate(seen.calls):
                if call.layer in site.reads and number not in reading:
                    return Reason("consumer shared", f"{call.layer!r} is called on other data too")
        if site.units < 2 and any(self.neurons[name] > 1 for name in site.producers):
            names = dict.fromkeys(
                function for part in parts_of(self.observations, calls) for function in part.region.functions
            )
            return Reason("columns mix", ", ".join(names))
        parts = parts_of(self.observations, calls)
        key = (
            "site",
            str(site.producers),
            str(site.reads),
            *(part.region.signature(sizes=True) for part in parts),
        )
        if key not in self.known:
            try:
                site = replace(site, **self._between(site, calls))
                self.known[key] = _Verification(site, Probe(parts, self.named), self.refused).run()
            except Exception as error:  # noqa: BLE001  # whatever a re-executed function raises
                self.known[key] = Reason("cannot be cut", f"re-executing what lies between fails: {error}")
        result: Site | Reason = self.known[key]
        return result

    def _between(self, site: Site, calls: Sequence[Mapping[int, Sequence[int]]]) -> dict[str, tuple[str, ...]]:
        """What lies on the ways to the readers of a site; those of its producers that others read are not counted."""
        own = [
            {
                number: [reader for reader in readers if seen.calls[reader].layer in site.reads]
                for number, readers in readers_of.items()
            }
            for seen, readers_of in zip(self.observations, calls, strict=True)
        ]
        probe = Probe(parts_of(self.observations, own), self.named)
        return {"fixed": probe.fixed, "functions": probe.functions}


def _components(
    rows: int, columns: int, row_parts: Sequence[np.ndarray], column_parts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The class of every row and every column, where pairs hang together."""
    i = np.concatenate([np.empty(0, int), *row_parts]).astype(int)
    j = np.concatenate([np.empty(0, int), *column_parts]).astype(int) + rows
    graph = coo_matrix((np.ones(len(i), dtype=np.int8), (i, j)), shape=(rows + columns, rows + columns))
    classes = connected_components(graph, directed=False)[1]
    return classes[:rows], classes[rows:]


def _alike(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether two layers divide the columns that both reach into the same classes, and there are such columns."""
    pairs = []
    for reader in one.keys() & other.keys():
        both = (one[reader] >= 0) & (other[reader] >= 0)
        pairs.append(np.stack([one[reader][both], other[reader][both]], axis=1))
    shared = np.unique(np.concatenate(pairs), axis=0)
    return len(shared) > 0 and len(np.unique(shared[:, 0])) == len(np.unique(shared[:, 1])) == len(shared)


def _index(block: np.ndarray, units: np.ndarray, size: int) -> Tensor:
    """The places of a layer's entries in each unit, (units, size)."""
    place = np.full(int(block.max()) + 1, -1)
    inside = units[units < len(place)]
    place[inside] = np.arange(len(units))[units < len(place)]
    unit_of = place[block]
    entries = np.nonzero(unit_of >= 0)[0]
    return torch.from_numpy(entries[np.argsort(unit_of[entries], kind="stable")].reshape(len(units), size))


class _Verification:
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
        if self._leaks(site):
            return Reason("columns mix", ", ".join(site.functions))
        site = self._cuttable(site)
        if site.fixed and (site.cut is not None or site.units < 2):
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
            if failure:
                return replace(site, cut=Reason("cannot be cut", failure))
        return replace(site, written_sizes=tuple(dict.fromkeys(rewritten)))

    def _coarser(self, site: Site) -> list[Site]:
        """Units put together: one of every head, or whole heads, for numbers of heads that stand in some shape."""
        sizes: set[int] = set()
        for part in self.probe.parts:
            for event in part.seen.events:
                for number in event.results:
                    sizes.update(part.seen.values[number].tensor.shape)
        coarser = []
        for heads in sorted(size for size in sizes if 1 < size < site.units and site.units % size == 0):
            for whole in (False, True):
                coarser.append(_together(site, heads, whole=whole))
        return coarser

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
