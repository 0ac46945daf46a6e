"""The only place that changes a model."""

from lightning_embed.surgery.change.apply import apply
from lightning_embed.surgery.change.embed import deepen, widen
from lightning_embed.surgery.change.embedding import Null, Split, embed
from lightning_embed.surgery.change.layer_merge import LayerMerge
from lightning_embed.surgery.change.neuron_merge import Fit, NeuronMerge
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.reconstruction import Reconstruction
from lightning_embed.surgery.change.records import Record, records_table
from lightning_embed.surgery.change.step import Step
from lightning_embed.surgery.decide.merging import merge
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.distill import distill
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.criterion import Criterion, LayerView
from lightning_embed.surgery.nominate.measure import LayerMeasurement, Measurement
from lightning_embed.surgery.persist.checkpoint import KEY, attach, detach, read_architecture
from lightning_embed.surgery.persist.export import export
from lightning_embed.surgery.persist.loading import load_from_checkpoint, loading
from lightning_embed.surgery.persist.snapshot import Size, Snapshot, snapshot
from lightning_embed.surgery.prune import Result, measure, propose, prune
from lightning_embed.surgery.sequential import mlp, theta_of

__all__ = [
    "KEY",
    "Criteria",
    "Criterion",
    "Fit",
    "LayerMeasurement",
    "LayerMerge",
    "LayerView",
    "Measurement",
    "NeuronMerge",
    "Null",
    "Plan",
    "Reconstruction",
    "Record",
    "Result",
    "Size",
    "Snapshot",
    "Split",
    "Step",
    "Tolerance",
    "apply",
    "attach",
    "deepen",
    "detach",
    "distill",
    "embed",
    "export",
    "load_from_checkpoint",
    "loading",
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
