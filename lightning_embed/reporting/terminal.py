"""Tables for a terminal: with rich where it is installed and someone looks, plain text when piped."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TextIO

from tabulate import tabulate

from lightning_embed.reporting.checkpoint import Description
from lightning_embed.surgery.change.step import describe_evidence

LAYERS = ("layer", "inputs", "neurons", "parameters", "merged")
MERGES = ("epoch", "layer", "criterion", "neurons", "evidence", "change", "agreement")
NUMBERS = {"inputs", "neurons", "parameters", "change", "agreement", "epoch"}


def show(description: Description, file: TextIO | None = None) -> None:
    """Print what a checkpoint holds.

    Args:
        description: from `describe_checkpoint`.
        file: standard output if None.
    """
    file = sys.stdout if file is None else file
    tables = [("Layers", LAYERS, _layers(description)), ("Merges", MERGES, _merges(description))]
    if not file.isatty() or not _rich(description, tables, file):
        _plain(description, tables, file)


def headline(description: Description) -> str:
    """One line: the file, when it was saved, how large it is."""
    when = "" if description.epoch is None else f", epoch {description.epoch}, step {description.step}"
    return f"{description.file}{when}: {description.parameters:,} numbers"


def remark(description: Description) -> str:
    """What there is to say of the merges beyond the tables."""
    if not description.described:
        return "It does not describe its architecture: nothing was merged, or it was exported or detached before."
    return "" if description.records else "Nothing was merged."


def _layers(description: Description) -> list[list[str]]:
    return [
        [
            one.name,
            "" if one.inputs is None else f"{one.inputs:,}",
            "identity" if one.width is None else f"{one.width:,}",
            f"{one.parameters:,}" if one.parameters else "",
            one.merges,
        ]
        for one in description.layers
    ]


def _merges(description: Description) -> list[list[str]]:
    return [
        [
            "" if one.epoch is None else str(one.epoch),
            one.layer,
            one.criterion,
            f"{one.width[0]:,} → {one.width[1]:,}" if any(one.width) else "",
            describe_evidence(one.evidence),
            "" if math.isnan(one.change) else f"{one.change:.4f}",
            "" if math.isnan(one.agreement) else f"{one.agreement:.4f}",
        ]
        for one in description.records
    ]


Tables = Sequence[tuple[str, Sequence[str], list[list[str]]]]


def _plain(description: Description, tables: Tables, file: TextIO) -> None:
    lines = [headline(description)]
    for title, heads, rows in tables:
        if rows:
            align = ["right" if head in NUMBERS else "left" for head in heads]
            table = tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True, colalign=align)
            lines += ["", title, str(table)]
    lines += [""] * bool(remark(description)) + [remark(description)] * bool(remark(description))
    file.write("\n".join(lines) + "\n")


def _rich(description: Description, tables: Tables, file: TextIO) -> bool:
    """Print with rich; false where it is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console = Console(file=file)
    console.print(Text(headline(description), style="bold"))
    for title, heads, rows in tables:
        if not rows:
            continue
        table = Table(title=title, title_justify="left", title_style="bold")
        for head in heads:
            table.add_column(head, justify="right" if head in NUMBERS else "left", overflow="fold")
        for row in rows:  # as texts: a name in brackets is no markup
            table.add_row(*(Text(cell) for cell in row), style="dim" if "identity" in row else None)
        console.print(table)
    if remark(description):
        console.print(Text(remark(description)))
    return True
