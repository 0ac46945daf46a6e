"""Figures and texts to whatever a logger offers: TensorBoard, W&B, MLflow, Comet; figures to PNG files otherwise."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_embed.errors import InputError
from lightning_embed.reporting import figures, read_history
from lightning_embed.surgery import Record
from lightning_embed.surgery.change.step import describe_evidence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "figures"
COLUMNS = ("epoch", "step", "layer", "criterion", "neurons before", "neurons after", "evidence", "change", "agreement")

log = logging.getLogger(__name__)


def check_drawing(owner: str, every_n_epochs: int | None) -> None:
    """Refuse at once what would fail after an epoch.

    Raises:
        InputError: it is no positive integer.
        ImportError: figures are asked for, and matplotlib is not installed.
    """
    if every_n_epochs is None:
        return
    if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
        raise InputError(
            f"{owner}(figures_every_n_epochs=…) must be a positive integer or None, got {every_n_epochs!r}."
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{owner}(figures_every_n_epochs=…) needs matplotlib: pip install 'lightning-embed[figures]'")


def send_figures(loggers: Sequence[Any], history: Path, step: int) -> None:
    """Draw the figures of a run and hand them to every logger that takes any, or write them as PNG files if none does.

    Args:
        loggers: Lightning's.
        history: the run's `history.jsonl`, beside which PNG files go.
        step: on the x-axis of step metrics.
    """
    drawn = figures(read_history(history))
    for name, figure in drawn.items():
        tag = f"lightning-embed/{name}"
        taken = [_try(_send_figure, logger, tag, figure, step) for logger in loggers]
        if not any(taken):
            path = history.parent / FOLDER / f"{name}-{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)


def send_merges(loggers: Sequence[Any], records: Sequence[Record], known: Sequence[Record], step: int) -> None:
    """A text entry for the merges of an event.

    Args:
        loggers: Lightning's.
        records: of this event.
        known: of the whole run, these included: some dashboards keep one table.
        step: on the x-axis of step metrics.
    """
    if any(record.done for record in records):
        for logger in loggers:
            _try(_send_text, logger, [one for one in records if one.done], [one for one in known if one.done], step)


def _try(send: Any, logger: Any, *what: Any) -> bool:
    """Send, and say whether it was taken; a dashboard that fails is no reason to end a training."""
    try:
        return bool(send(logger, *what))
    except Exception as error:  # noqa: BLE001  # whatever a dashboard's client raises, a lost connection for one
        log.warning("%s did not take a figure or text: %s", type(logger).__name__, error)
        return False


def _send_figure(logger: Any, tag: str, figure: Figure, step: int) -> bool:
    if hasattr(logger, "log_image"):  # W&B, which wants a picture
        logger.log_image(key=tag, images=[_image(figure)], step=step)
        return True
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):  # TensorBoard
        experiment.add_figure(tag, figure, global_step=step, close=False)
    elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):  # MLflow
        experiment.log_figure(logger.run_id, figure, f"{tag}-{step:08d}.png")
    elif hasattr(experiment, "log_figure"):  # Comet
        experiment.log_figure(figure_name=tag, figure=figure, step=step)
    else:
        return False
    return True


def _image(figure: Figure) -> Any:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer)


def _send_text(logger: Any, records: Sequence[Record], known: Sequence[Record], step: int) -> bool:
    if hasattr(logger, "log_text"):  # W&B, a table of the whole run
        logger.log_text(
            key="lightning-embed/merges", columns=list(COLUMNS), data=[_row(one) for one in known], step=step
        )
        return True
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_text"):  # TensorBoard, which reads Markdown
        experiment.add_text("lightning-embed/merges", "\n".join(f"- {_line(one, '`')}" for one in records), step)
    elif hasattr(experiment, "log_text") and hasattr(logger, "run_id"):  # MLflow, a file of the whole run
        experiment.log_text(logger.run_id, "".join(f"{_line(one)}\n" for one in known), "lightning-embed/merges.txt")
    elif hasattr(experiment, "log_text"):  # Comet
        experiment.log_text("\n".join(_line(one) for one in records), step=step)
    else:
        return False
    return True


def _row(record: Record) -> list[Any]:
    evidence = describe_evidence(record.evidence)
    numbers = [record.change, record.agreement]
    return [record.epoch, record.step, record.layer, record.criterion, *record.width, evidence, *numbers]


def _line(record: Record, quote: str = "") -> str:
    """One merge in words; in Markdown the layer's name is quoted so that its underscores stay."""
    layer = f"{quote}{re.sub('`', '', record.layer) if quote else record.layer}{quote}"
    width = f", {record.width[0]} → {record.width[1]} neurons" if any(record.width) else ""
    return (
        f"Epoch {record.epoch}: {record.verdict} {layer} ({record.criterion}){width}, change {record.change:.4f} "
        f"[{describe_evidence(record.evidence)}]"
    )
