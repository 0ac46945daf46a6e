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
from torch import Tensor

from lightning_embed.graph.layout import Layout, input_dim, output_layout
from lightning_embed.graph.observer import Observation
from lightning_embed.graph.probe import Part, Probe, parts_of
from lightning_embed.graph.reasons import Reason
from lightning_embed.graph.units import Links, dependence
from lightning_embed.graph.verification import Site, Verification
from lightning_embed.tape.functions import function_name


@dataclass(frozen=True, eq=False)
class Reach:
    """What one call of a layer leads to: calls that read it, events on the way, or why it is no hidden layer."""

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
        alone: list[list[str]] = []  # groups that cannot be cut by themselves
        for producers in self._united(links):
            of_group = self._sites({name: links[name] for name in producers})
            sites += of_group
            if all(site.cut is not None for site in of_group):
                alone.append(producers)
        together = self._together(links, alone)
        held = {name for site in together for name in site.producers}
        sites = [site for site in sites if site.cut is None or not held & site.producers.keys()] + together
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
        reason = self._no_units(name)
        if reason is not None:
            return reason
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

    def _no_units(self, name: str) -> Reason | None:
        """Why a layer's outputs hold no units, whatever lies behind it."""
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
        return None

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

    def _together(self, links: Mapping[str, Mapping[str, Links]], groups: Sequence[list[str]]) -> list[Site]:
        """Sites of groups that can only be cut with each other, where the classes of one lie within those of another.

        So do the values of attention within its heads, which queries and keys tie together.
        """
        division = {name: self._division(name, links[name]) for group in groups for name in group}
        sites: list[Site] = []
        done: set[str] = set()
        for group in groups:
            within = [
                other
                for other in groups
                if other is not group
                and any(_nested(division[inner], division[outer]) for inner in other for outer in group)
            ]
            names = [*group, *(name for other in within for name in other)]
            if within and not done & set(names):
                united = self._sites({name: links[name] for name in sorted(names, key=self.order.__getitem__)})
                of_group = [site for site in united if site.cut is None]
                sites += of_group
                done |= set(names) if of_group else set()
        return sites

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
                site = self._with_between(site, calls)
                self.known[key] = Verification(site, Probe(parts, self.named), self.refused).run()
            except Exception as error:  # noqa: BLE001  # whatever a re-executed function raises
                self.known[key] = Reason("cannot be cut", f"re-executing what lies between fails: {error}")
        result: Site | Reason = self.known[key]
        return result

    def _with_between(self, site: Site, calls: Sequence[Mapping[int, Sequence[int]]]) -> Site:
        """The site with what lies on the ways to its readers; those of its producers that others read do not count."""
        own = [
            {
                number: [reader for reader in readers if seen.calls[reader].layer in site.reads]
                for number, readers in readers_of.items()
            }
            for seen, readers_of in zip(self.observations, calls, strict=True)
        ]
        probe = Probe(parts_of(self.observations, own), self.named)
        return replace(site, fixed=probe.fixed, functions=probe.functions)


def _components(
    rows: int, columns: int, row_parts: Sequence[np.ndarray], column_parts: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The class of every row and every column, where pairs hang together."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

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


def _nested(inner: Mapping[str, np.ndarray], outer: Mapping[str, np.ndarray]) -> bool:
    """Whether every class of one layer, in the columns that both reach, lies in one of several classes of another."""
    pairs = []
    for reader in inner.keys() & outer.keys():
        both = (inner[reader] >= 0) & (outer[reader] >= 0)
        pairs.append(np.stack([inner[reader][both], outer[reader][both]], axis=1))
    if not pairs:
        return False
    shared = np.unique(np.concatenate(pairs), axis=0)
    return len(np.unique(shared[:, 1])) > 1 and len(np.unique(shared[:, 0])) == len(shared)


def _index(block: np.ndarray, units: np.ndarray, size: int) -> Tensor:
    """The places of a layer's entries in each unit, (units, size)."""
    place = np.full(int(block.max()) + 1, -1)
    inside = units[units < len(place)]
    place[inside] = np.arange(len(units))[units < len(place)]
    unit_of = place[block]
    entries = np.nonzero(unit_of >= 0)[0]
    return torch.from_numpy(entries[np.argsort(unit_of[entries], kind="stable")].reshape(len(units), size))
