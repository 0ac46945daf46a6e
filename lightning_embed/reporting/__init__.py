"""The history of a run, its figures, and one page that tells its story."""

from lightning_embed.reporting.curves import Curve, plateaus, thin
from lightning_embed.reporting.environment import environment
from lightning_embed.reporting.figures import figures
from lightning_embed.reporting.history import History, HistoryFile, read_history
from lightning_embed.reporting.page import report

__all__ = [
    "Curve",
    "History",
    "HistoryFile",
    "environment",
    "figures",
    "plateaus",
    "read_history",
    "report",
    "thin",
]
