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
_MOST = 64  # entries of one column; more are called mixing
_QUESTIONS = 200


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
        first, second = question(half), question(~half)
        for hit, one, other in zip(everything, first, second, strict=True):
            hit |= one | other
            mixed = int((one & other).sum())
            if entries >= 16 and mixed > 8 and mixed > 0.9 * int(hit.sum()):
                return None
    for digit in range(min(_DIGITS, (entries - 1).bit_length())):  # small maps are told apart for certain
        for hit, answer in zip(everything, question((torch.arange(entries) >> digit) & 1 == 1), strict=True):
            hit |= answer
    guessed = [_guess(entries, hit, answers, reader) for reader, hit in enumerate(everything)]
    if all(links is not None for links in guessed) and not _claims_too_much(guessed, everything, entries):
        return [links for links in guessed if links is not None]
    return _search(question, entries, everything, answers, generator)


def _guess(entries: int, hit: Tensor, answers: Sequence[tuple[Tensor, list[Tensor]]], reader: int) -> Links | None:
    """A regular map that all answers agree with, such that every entry has a column that may answer."""
    answering = torch.nonzero(hit).flatten()
    if not len(answering):
        return Links(answering, answering)
    for columns, owners in _regular_maps(entries, len(hit), answering):
        outside = torch.ones(len(hit), dtype=torch.bool)
        outside[columns] = False
        if bool((hit & outside).any()) or int(hit[columns].sum()) <= len(columns) // 2:
            continue  # it claims too little or too much
        if all(_agrees(columns, owners, pool, answer[reader], hit) for pool, answer in answers):
            return Links(owners, columns)
    return None


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


def _agrees(columns: Tensor, owners: Tensor, pool: Tensor, answer: Tensor, hit: Tensor) -> bool:
    """Whether exactly those columns answer that have an entry in the pool; columns that never answer are excused."""
    expected = torch.zeros(len(answer), dtype=torch.bool)
    expected[columns[pool[owners]]] = True
    return not bool((answer & ~expected).any()) and not bool((expected & hit & ~answer).any())


def _regular_maps(entries: int, count: int, answering: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps worth a test, as (columns, the entry that each depends on), the simplest first.

    Among the columns that answer and, as some of a reader's may be silent, the range that they span and all columns:
    blocks of neighbours, then the entries in turn; where there are fewer columns than entries, halves and neighbours.
    """
    low, high = int(answering.min()), int(answering.max()) + 1
    ranges = [answering, torch.arange(low, high), torch.arange(count)]
    seen: set[tuple[int, int, int]] = set()
    for columns in ranges:
        number = len(columns)
        key = (int(columns[0]), int(columns[-1]), number)
        if key in seen:
            continue
        seen.add(key)
        if number % entries == 0:
            yield columns, torch.arange(number) // (number // entries)
            if number > entries:
                yield columns, torch.arange(number) % entries
        elif entries % number == 0:
            times = entries // number
            every = torch.arange(entries)
            yield columns[every % number], every
            yield columns[every // times], every


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
    while quiet < 8 and len(answers) < _QUESTIONS:
        open_ = [can[hit].sum(1) for can, hit in zip(possible, everything, strict=True)]
        most = max((int(sums.max()) for sums in open_ if len(sums)), default=0)
        if most <= 1:
            break
        before = sum(int(sums.sum()) for sums in open_)
        share = 1 / 3 if quiet < 4 else 1 / max(3, most)
        question(torch.rand(entries, generator=generator) < share)
        narrow()
        after = sum(int(can[hit].sum()) for can, hit in zip(possible, everything, strict=True))
        quiet = quiet + 1 if after == before else 0
    for can, hit in zip(possible, everything, strict=True):
        can[~hit] = False
        if bool((can.sum(1) > min(_MOST, max(1, entries - 1))).any()):
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
