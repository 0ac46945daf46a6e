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
    answers: list[tuple[Tensor, list[Tensor]]] = []

    def question(pool: Tensor) -> list[Tensor]:
        answer = ask(pool)
        answers.append((pool, answer))
        return answer

    everything = [torch.zeros(count, dtype=torch.bool) for count in columns]
    for _ in range(_SPLITS):
        half = torch.rand(entries, generator=generator) < 0.5
        for hit, one, other in zip(everything, question(half), question(~half), strict=True):
            hit |= one | other
    if _mixes(question, entries, everything, generator):
        return None
    for digit in range(min(_DIGITS, (entries - 1).bit_length())):  # small maps are told apart for certain
        for hit, answer in zip(everything, question((torch.arange(entries) >> digit) & 1 == 1), strict=True):
            hit |= answer
    guessed = [_guess(entries, hit, answers, reader) for reader, hit in enumerate(everything)]
    if all(links is not None for links in guessed) and not _claims_too_much(guessed, everything, entries):
        return [links for links in guessed if links is not None]
    return _search(question, entries, everything, answers, generator)


def _mixes(question: Ask, entries: int, everything: Sequence[Tensor], generator: torch.Generator) -> bool:
    """Whether single entries change nearly all columns, of some reader that has several."""
    if entries < 2:
        return False
    alone = torch.randperm(entries, generator=generator)[:_ALONE]
    answers = [question(torch.arange(entries) == entry) for entry in alone]
    for reader, hit in enumerate(everything):
        shares = [int(answer[reader].sum()) / max(1, int(hit.sum())) for answer in answers]
        answering = [share for share in shares if share > 0]
        if int(hit.sum()) > 8 and answering and min(answering) > 0.9:
            return True
    return False


def _guess(entries: int, hit: Tensor, answers: Sequence[tuple[Tensor, list[Tensor]]], reader: int) -> Links | None:
    """A regular map that all answers agree with, such that every entry has a column that may answer."""
    answering = torch.nonzero(hit).flatten()
    if not len(answering):
        return Links(answering, answering)
    for columns, of_columns, of_entries in _regular_maps(entries, len(hit), answering):
        outside = torch.ones(len(hit), dtype=torch.bool)
        outside[columns] = False
        if bool((hit & outside).any()) or int(hit[columns].sum()) <= len(columns) // 2:
            continue  # it claims too little or too much
        if all(_agrees(columns, of_columns, of_entries, pool, answer[reader], hit) for pool, answer in answers):
            return _links(columns, of_columns, of_entries)
    return None


def _links(columns: Tensor, of_columns: Tensor, of_entries: Tensor) -> Links:
    """All pairs of a column and an entry of one class."""
    order = of_entries.argsort(stable=True)
    counts = torch.bincount(of_entries, minlength=int(of_columns.max()) + 1)
    first = counts.cumsum(0) - counts
    repeated = counts[of_columns]
    within = torch.arange(int(repeated.sum())) - (repeated.cumsum(0) - repeated).repeat_interleave(repeated)
    return Links(order[first[of_columns].repeat_interleave(repeated) + within], columns.repeat_interleave(repeated))


def _claims_too_much(guessed: Sequence[Links | None], everything: Sequence[Tensor], entries: int) -> bool:
    """Whether an entry is said to reach a reader in which nothing answers to it, though it answers in another."""
    answers = []
    for links, hit in zip(guessed, everything, strict=True):
        assert links is not None
        claimed, answering = torch.zeros(entries, dtype=torch.bool), torch.zeros(entries, dtype=torch.bool)
        claimed[links.entries] = True
        answering[links.entries[hit[links.columns]]] = True
        answers.append((claimed, answering))
    anywhere = torch.stack([answering for _, answering in answers]).any(dim=0)
    return any(bool((claimed & ~answering & anywhere).any()) for claimed, answering in answers)


def _agrees(
    columns: Tensor, of_columns: Tensor, of_entries: Tensor, pool: Tensor, answer: Tensor, hit: Tensor
) -> bool:
    """Whether exactly those columns answer that have an entry in the pool; columns that never answer are excused."""
    moved = torch.zeros(int(max(of_columns.max(), of_entries.max())) + 1, dtype=torch.bool)
    moved[of_entries[pool]] = True
    expected = torch.zeros(len(answer), dtype=torch.bool)
    expected[columns[moved[of_columns]]] = True
    return not bool((answer & ~expected).any()) and not bool((expected & hit & ~answer).any())


def _regular_maps(entries: int, count: int, answering: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Maps worth a test, as (columns, the class of each, the class of each entry), the simplest first.

    Among the columns that answer and, as some of a reader's may be silent, the range that they span and all columns.
    An entry for each block of neighbouring columns, or in turn; where there are fewer columns than entries, a column for
    each block of entries, or in turn, as the parts of a gate; at last whole heads: blocks of entries, of each of up to
    four parts, for blocks of columns.
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


def _search(
    question: Ask,
    entries: int,
    everything: Sequence[Tensor],
    answers: Sequence[tuple[Tensor, list[Tensor]]],
    generator: torch.Generator,
) -> list[Links] | None:
    """Narrow down, column by column, which entries it can depend on; entries that never answer are filled in."""
    possible = [torch.ones(len(hit), entries, dtype=torch.bool) for hit in everything]
    done = 0

    def narrow() -> None:
        nonlocal done
        for pool, answer in answers[done:]:
            for can, hit, answered in zip(possible, everything, answer, strict=True):
                hit |= answered
                can[~answered] &= ~pool
        done = len(answers)

    numbers = torch.arange(entries)
    for digit in range(max(1, (entries - 1).bit_length())):
        for value in (0, 1):
            question((numbers >> digit) & 1 == value)
    narrow()
    quiet = 0
    while quiet < 4 and len(answers) < _QUESTIONS:
        before = sum(int(can[hit].sum()) for can, hit in zip(possible, everything, strict=True))
        most = max((int(can[hit].sum(1).max()) for can, hit in zip(possible, everything, strict=True) if hit.any()))
        if most <= 1:
            break
        question(torch.rand(entries, generator=generator) < 1 / max(3, most))
        narrow()
        after = sum(int(can[hit].sum()) for can, hit in zip(possible, everything, strict=True))
        quiet = quiet + 1 if after == before else 0
    doubtful = torch.zeros(entries, dtype=torch.bool)
    for can, hit in zip(possible, everything, strict=True):
        can[~hit] = False
        doubtful |= can[can.sum(1) > 1].any(dim=0)
    if int(doubtful.sum()) > _SINGLES:
        return None
    for entry in torch.nonzero(doubtful).flatten().tolist():
        for can, answered in zip(possible, question(numbers == entry), strict=True):
            can[:, entry] = answered
    if any(bool((can.sum(1) == entries).any()) for can in possible if entries > 1):
        return None
    silent = ~torch.stack([can.any(dim=0) for can in possible]).any(dim=0)
    return [_completed(can, silent) for can in possible]


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
