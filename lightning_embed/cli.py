"""The command `lightning-embed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_embed import __version__
from lightning_embed.errors import EmbeddingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 on success and 2 on bad input."""
    parser = argparse.ArgumentParser(prog="lightning-embed", description="Find the smaller network inside a network.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train on handwritten digits, merge during training, compare, reload (about a minute)",
        description="Train a five-layer tanh MLP on scikit-learn's digits twice, with and without merging.",
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    demo.add_argument("--max-epochs", type=_positive, default=None, metavar="N", help="default: 60")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    try:
        return _demo(options)
    except EmbeddingError as error:
        print(f"lightning-embed: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _demo(options: argparse.Namespace) -> int:
    try:
        from lightning_embed import demo
    except ImportError as error:
        print(
            f"lightning-embed demo needs packages that are missing ({error}): pip install 'lightning-embed[demo]'",
            file=sys.stderr,
        )
        return 2
    epochs = demo.EPOCHS if options.max_epochs is None else options.max_epochs
    demo.run(options.output, seed=options.seed, epochs=epochs, quiet=options.quiet)
    return 0
