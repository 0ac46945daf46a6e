"""Lightning callbacks: watch a training, merge in training. Needs the extra `lightning`."""

from torch.serialization import add_safe_globals

from lightning_embed.callbacks.monitor import EmbeddingMonitor
from lightning_embed.callbacks.pruner import EmbeddingPruner
from lightning_embed.callbacks.when import After, Metric, NearCriticalPoint, NearEnd, Once, OnPlateau, When
from lightning_embed.surgery import Criteria, Measurement, Record, Tolerance
from lightning_embed.surgery.nominate.measure import LayerMeasurement

__all__ = [
    "After",
    "EmbeddingMonitor",
    "EmbeddingPruner",
    "NearCriticalPoint",
    "NearEnd",
    "OnPlateau",
    "Once",
    "When",
]

# what a pickled callback consists of: packages keep callbacks among a model's arguments and save them with it
PICKLED = (
    EmbeddingMonitor,
    EmbeddingPruner,
    After,
    NearEnd,
    Once,
    OnPlateau,
    NearCriticalPoint,
    Metric,
    Criteria,
    Tolerance,
    Record,
    Measurement,
    LayerMeasurement,
)
add_safe_globals(list(PICKLED))
