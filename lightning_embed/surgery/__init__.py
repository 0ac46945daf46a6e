"""The only place that changes a model."""

from lightning_embed.surgery.apply import apply
from lightning_embed.surgery.checkpoint import KEY, attach, detach, load_from_checkpoint, read_architecture
from lightning_embed.surgery.criteria import Criteria, Tolerance
from lightning_embed.surgery.distill import distill
from lightning_embed.surgery.embed import deepen, widen
from lightning_embed.surgery.embedding import Null, Split, embed
from lightning_embed.surgery.export import export
from lightning_embed.surgery.measure import LayerMeasurement, Measurement
from lightning_embed.surgery.merging import merge
from lightning_embed.surgery.plan import LayerMerge, NeuronMerge, Plan, Record, records_table
from lightning_embed.surgery.prune import Result, measure, propose, prune
from lightning_embed.surgery.sequential import mlp, theta_of
from lightning_embed.surgery.snapshot import Size, Snapshot, snapshot

__all__ = [
    "KEY",
    "Criteria",
    "LayerMeasurement",
    "LayerMerge",
    "Measurement",
    "NeuronMerge",
    "Null",
    "Plan",
    "Record",
    "Result",
    "Size",
    "Snapshot",
    "Split",
    "Tolerance",
    "apply",
    "attach",
    "deepen",
    "detach",
    "distill",
    "embed",
    "export",
    "load_from_checkpoint",
    "measure",
    "merge",
    "mlp",
    "propose",
    "prune",
    "read_architecture",
    "records_table",
    "snapshot",
    "theta_of",
    "widen",
]
