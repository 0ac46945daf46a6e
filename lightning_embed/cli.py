"""The command `lightning-embed`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_embed import __version__
from lightning_embed.errors import EmbeddingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 on success and 2 on bad input or a missing package."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except EmbeddingError as error:
        print(f"lightning-embed: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"lightning-embed {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-embed",
        description="Find the smaller network inside a network.",
        epilog="In Python: import lightning_embed as le; le.prune, le.measure, le.report, and the callbacks in "
        "lightning_embed.callbacks.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    demo = commands.add_parser(
        "demo",
        help="train on handwritten digits, merge during training, compare, reload (about a minute)",
        description="Train a five-layer tanh MLP on scikit-learn's digits twice, with and without merging. The run's "
        "checkpoint, history, logs and report page are left in DIR.",
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    demo.add_argument("--max-epochs", type=_positive, default=None, metavar="N", help="default: 60")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)
    report = commands.add_parser(
        "report",
        help="write one HTML page about a run",
        description="Write one self-contained HTML page about a training run, finished or still going on, from the "
        "history.jsonl that EmbeddingMonitor and EmbeddingPruner keep in its log folder.",
        epilog="example: lightning-embed report lightning_logs/version_0",
    )
    report.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run's log folder, or its history.jsonl")
    report.add_argument("--output", type=Path, default=None, metavar="FILE", help="default: RUN_DIR/report.html")
    report.set_defaults(run=_report)
    show = commands.add_parser(
        "show",
        help="print the architecture and the merges that a checkpoint holds",
        description="Print the layers of a checkpoint, what was merged in them, from what evidence and with what "
        "effect. No model is built, and nothing in the file is executed.",
        epilog="example: lightning-embed show lightning_logs/version_0/checkpoints/last.ckpt",
    )
    show.add_argument("checkpoint", type=Path, metavar="CKPT", help="a Lightning checkpoint or a saved state dict")
    show.set_defaults(run=_show)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _demo(options: argparse.Namespace) -> None:
    try:
        from lightning_embed import demo
    except ImportError as error:
        raise ImportError(f"packages are missing ({error}): pip install 'lightning-embed[demo]'") from error
    epochs = demo.EPOCHS if options.max_epochs is None else options.max_epochs
    demo.run(options.output, seed=options.seed, epochs=epochs, quiet=options.quiet)


def _report(options: argparse.Namespace) -> None:
    from lightning_embed.reporting import report

    print(report(options.folder, options.output))


def _show(options: argparse.Namespace) -> None:
    from lightning_embed.reporting.checkpoint import describe_checkpoint
    from lightning_embed.reporting.terminal import show

    show(describe_checkpoint(options.checkpoint))
