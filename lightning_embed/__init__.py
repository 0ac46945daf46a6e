"""Find the smaller network inside a network in training: watch, merge, check, train on.

The Lightning callbacks are in `lightning_embed.callbacks`; importing this package does not import Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_embed.analysis import escape_by_widening
from lightning_embed.errors import CheckpointError, EmbeddingError, InputError, ReplayError
from lightning_embed.graph import register_layer
from lightning_embed.operators import (
    Embedding,
    add_null_neurons,
    compatible_embedding,
    drop_null_neurons,
    lift_layer,
    merge_layers,
    merge_neurons,
    split_neuron,
)
from lightning_embed.reporting import report
from lightning_embed.statistics import minimal_pearson_correlation
from lightning_embed.surgery import (
    Criteria,
    Criterion,
    LayerMerge,
    LayerView,
    Measurement,
    NeuronMerge,
    Null,
    Plan,
    Reconstruction,
    Record,
    Result,
    Split,
    Tolerance,
    apply,
    attach,
    deepen,
    detach,
    distill,
    embed,
    export,
    load_from_checkpoint,
    loading,
    measure,
    propose,
    prune,
    widen,
)

if TYPE_CHECKING:
    from lightning_embed.statistics import MinimalPearsonCorrelation

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Criteria",
    "Criterion",
    "Embedding",
    "EmbeddingError",
    "InputError",
    "LayerMerge",
    "LayerView",
    "Measurement",
    "MinimalPearsonCorrelation",
    "NeuronMerge",
    "Null",
    "Plan",
    "Reconstruction",
    "Record",
    "ReplayError",
    "Result",
    "Split",
    "Tolerance",
    "add_null_neurons",
    "apply",
    "attach",
    "compatible_embedding",
    "deepen",
    "detach",
    "distill",
    "drop_null_neurons",
    "embed",
    "escape_by_widening",
    "export",
    "lift_layer",
    "load_from_checkpoint",
    "loading",
    "measure",
    "merge_layers",
    "merge_neurons",
    "minimal_pearson_correlation",
    "propose",
    "prune",
    "register_layer",
    "report",
    "split_neuron",
    "widen",
]


def __getattr__(name: str) -> Any:
    """Import torchmetrics only where its metric is asked for."""
    if name == "MinimalPearsonCorrelation":
        from lightning_embed.statistics import MinimalPearsonCorrelation

        return MinimalPearsonCorrelation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
