"""Which entries answer when I move these? Dependence found by moving pools of entries and looking what changes.

Nothing is known of the functions in between. A question moves a pool of entries and tells which columns of the readers'
inputs answer. A guess of the whole map (an identity, blocks, halves, …) is tested by a few random halves; where no
guess holds, pools by the binary digits of the entries' numbers and then random pools narrow down which entries each
column can depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Ask = Callable[[Tensor], list[Tensor]]
"""From a pool, bool (entries,), to the columns of each reader that answer, bool (columns,)."""

_SPLITS = 2  # random halves by which a guess is tested
_DIGITS = 5  # and by so many binary digits of the entries' numbers
_ALONE = 3  # entries that are moved alone, to see whether everything mixes
_SINGLES = 512  # entries that are asked for one by one where pools do not tell them apart
_QUESTIONS = 100


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs (entry, column) that depend on each other, for one reader: int64, both of one length."""

    entries: Tensor
    columns: Tensor


def dependence(ask: Ask, entries: int, columns: Sequence[int], generator: torch.Generator) -> list[Links] | None:
    """Which columns of each reader depend on which entries.

    Args:
        ask: asks a question.
        entries: how many entries there are.
        columns: how many columns each reader has.
        generator: of the pools.

    Returns:
        The links of each reader; None where entries mix.
    """
    inquiry = _Inquiry(ask, entries, columns, generator)
    for _ in range(_SPLITS):
        half = torch.rand(entries, generator=generator) < 0.5
        inquiry.question(half)
        inquiry.question(~half)
    if inquiry.mixes():
        return None
    for digit in range(min(_DIGITS, (entries - 1).bit_length())):  # small maps are told apart for certain
        inquiry.question(inquiry.numbers >> digit & 1 == 1)
    return inquiry.guess() or inquiry.search()


class _Inquiry:
    """Questions that were asked about some entries, and what follows from the answers.

    Attributes:
        numbers: of the entries.
        answers: pools, and what each reader answered.
        hits: for each reader, the columns that ever answered.
    """

    def __init__(self, ask: Ask, entries: int, columns: Sequence[int], generator: torch.Generator) -> None:
        self._ask, self.entries, self._generator = ask, entries, generator
        self.numbers = torch.arange(entries)
        self.answers: list[tuple[Tensor, list[Tensor]]] = []
        self.hits = [torch.zeros(count, dtype=torch.bool) for count in columns]

    def question(self, pool: Tensor) -> list[Tensor]:
        """Ask, and remember the answer."""
        answer = self._ask(pool)
        self.answers.append((pool, answer))
        for hit, answered in zip(self.hits, answer, strict=True):
            hit.logical_or_(answered)
        return answer

    def mixes(self) -> bool:
        """Whether single entries change nearly all columns, of some reader that has several."""
        if self.entries < 2:
            return False
        alone = torch.randperm(self.entries, generator=self._generator)[:_ALONE]
        answers = [self.question(self.numbers == entry) for entry in alone]
        for reader, hit in enumerate(self.hits):
            shares = [int(answer[reader].sum()) / max(1, int(hit.sum())) for answer in answers]
            answering = [share for share in shares if share > 0]
            if int(hit.sum()) > 8 and answering and min(answering) > 0.9:
                return True
        return False

    # ---- regular maps ----

    def guess(self) -> list[Links] | None:
        """Regular maps that all answers agree with, one for each reader; None where there is none for some."""
        guessed = []
        for reader in range(len(self.hits)):
            links = self._guess(reader)
            if links is None:
                return None
            guessed.append(links)
        return None if self._claim_too_much(guessed) else guessed

    def _guess(self, reader: int) -> Links | None:
        hit = self.hits[reader]
        answering = torch.nonzero(hit).flatten()
        if not len(answering):
            return Links(answering, answering)
        for columns, of_columns, of_entries in _regular_maps(self.entries, len(hit), answering):
            outside = torch.ones(len(hit), dtype=torch.bool)
            outside[columns] = False
            if bool((hit & outside).any()) or int(hit[columns].sum()) <= len(columns) // 2:
                continue  # it claims too little or too much
            if all(
                _agrees(columns, of_columns, of_entries, pool, answer[reader], hit) for pool, answer in self.answers
            ):
                return _links(columns, of_columns, of_entries)
        return None

    def _claim_too_much(self, guessed: Sequence[Links]) -> bool:
        """Whether an entry is said to reach a reader in which nothing answers to it, though it answers in another."""
        claims = []
        for links, hit in zip(guessed, self.hits, strict=True):
            claimed = torch.zeros(self.entries, dtype=torch.bool)
            answering = torch.zeros(self.entries, dtype=torch.bool)
            claimed[links.entries] = True
            answering[links.entries[hit[links.columns]]] = True
            claims.append((claimed, answering))
        anywhere = torch.stack([answering for _, answering in claims]).any(dim=0)
        return any(bool((claimed & ~answering & anywhere).any()) for claimed, answering in claims)

    # ---- irregular ones ----

    def search(self) -> list[Links] | None:
        """Narrow down, column by column, which entries it can depend on.

        A column that does not answer depends on no entry of the pool. Pools by binary digits leave one entry where a
        column depends on one; random pools, smaller the more are possible, go on from there; what stays in doubt is
        asked for alone.
        """
        for digit in range(max(1, (self.entries - 1).bit_length())):
            for value in (0, 1):
                self.question(self.numbers >> digit & 1 == value)
        quiet, possible = 0, self._possible()
        while quiet < 4 and len(self.answers) < _QUESTIONS:
            before = [int(can.sum()) for can in possible]
            most = max(int(can.sum(dim=1).max()) for can in possible)
            if most <= 1:
                break
            self.question(torch.rand(self.entries, generator=self._generator) < 1 / max(3, most))
            possible = self._possible()
            quiet = quiet + 1 if [int(can.sum()) for can in possible] == before else 0
        doubtful = torch.stack([can[can.sum(dim=1) > 1].any(dim=0) for can in possible]).any(dim=0)
        if int(doubtful.sum()) > _SINGLES:
            return None
        for entry in torch.nonzero(doubtful).flatten().tolist():
            for can, answered in zip(possible, self.question(self.numbers == entry), strict=True):
                can[:, entry] = answered
        if self.entries > 1 and any(bool((can.sum(dim=1) == self.entries).any()) for can in possible):
            return None
        silent = ~torch.stack([can.any(dim=0) for can in possible]).any(dim=0)
        return [_completed(can, silent) for can in possible]

    def _possible(self) -> list[Tensor]:
        """For each reader, bool (columns, entries): what no answer has ruled out."""
        possible = [hit[:, None].repeat(1, self.entries) for hit in self.hits]
        for pool, answer in self.answers:
            for can, answered in zip(possible, answer, strict=True):
                can[~answered] &= ~pool
        return possible


def _links(columns: Tensor, of_columns: Tensor, of_entries: Tensor) -> Links:
    """All pairs of a column and an entry of one class."""
    order = of_entries.argsort(stable=True)
    counts = torch.bincount(of_entries, minlength=int(of_columns.max()) + 1)
    first = counts.cumsum(0) - counts
    repeated = counts[of_columns]
    within = torch.arange(int(repeated.sum())) - (repeated.cumsum(0) - repeated).repeat_interleave(repeated)
    return Links(order[first[of_columns].repeat_interleave(repeated) + within], columns.repeat_interleave(repeated))


def _agrees(columns: Tensor, of_columns: Tensor, of_entries: Tensor, pool: Tensor, answer: Tensor, hit: Tensor) -> bool:
    """Whether exactly those columns answer that have an entry in the pool; columns that never answer are excused."""
    moved = torch.zeros(int(max(of_columns.max(), of_entries.max())) + 1, dtype=torch.bool)
    moved[of_entries[pool]] = True
    expected = torch.zeros(len(answer), dtype=torch.bool)
    expected[columns[moved[of_columns]]] = True
    return not bool((answer & ~expected).any()) and not bool((expected & hit & ~answer).any())


def _regular_maps(entries: int, count: int, answering: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Maps worth a test, as (columns, the class of each, the class of each entry), the simplest first.

    Among the columns that answer and, as some of a reader's may be silent, the range that they span and all columns.
    An entry for each block of neighbouring columns, or in turn; where there are fewer columns than entries, a column
    for each block of entries, or in turn, as the parts of a gate; at last whole heads: blocks of entries, of each of
    up to four parts, for blocks of columns.
    """
    low, high = int(answering.min()), int(answering.max()) + 1
    ranges = [answering, torch.arange(low, high), torch.arange(count)]
    distinct = {(int(columns[0]), int(columns[-1]), len(columns)): columns for columns in reversed(ranges)}
    every = torch.arange(entries)
    for columns in reversed(distinct.values()):
        number = len(columns)
        turn = torch.arange(number)
        if number % entries == 0:
            yield columns, turn // (number // entries), every
            if number > entries:
                yield columns, turn % entries, every
        elif entries % number == 0:
            yield columns, turn, every % number
            yield columns, turn, every // (entries // number)
    for columns in reversed(distinct.values()):
        number = len(columns)
        turn = torch.arange(number)
        for parts in (1, 2, 3, 4):
            of_part = entries // parts
            for heads in range(min(of_part, number) // 2, 1, -1):
                if entries % parts == 0 and of_part % heads == 0 and number % heads == 0:
                    yield columns, turn // (number // heads), (every % of_part) // (of_part // heads)


def _completed(can: Tensor, silent: Tensor) -> Links:
    """The links of a matrix (columns, entries).

    An entry that answered in no reader (a dead unit) gets the columns that lie as regularly as those of two others.
    """
    columns_of = {entry: torch.nonzero(can[:, entry]).flatten() for entry in range(can.shape[1])}
    answering = [entry for entry, columns in columns_of.items() if len(columns)]
    alike = len({len(columns_of[entry]) for entry in answering}) == 1
    if len(answering) >= 2 and bool(silent.any()) and alike:
        can = can.clone()
        for entry in torch.nonzero(silent).flatten().tolist():
            near, far = sorted(answering, key=lambda other: abs(other - entry))[:2]
            slope = (columns_of[far] - columns_of[near]).double() / (far - near)
            if bool((slope != slope[0]).any()) or float(slope[0]) != round(float(slope[0])):
                continue
            filled = columns_of[near] + round(float(slope[0])) * (entry - near)
            if int(filled.min()) >= 0 and int(filled.max()) < len(can) and not bool(can[filled].any()):
                can[filled, entry] = True
    columns, entries = torch.nonzero(can, as_tuple=True)
    return Links(entries, columns)
