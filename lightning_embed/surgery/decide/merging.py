"""The one pipeline: observe, measure, propose, try, check, keep or undo, record.

`prune`, `propose` and the training callback all run `merge`; they differ in which model they hand over and in
whether a tolerance decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.records import Record
from lightning_embed.surgery.decide.event import Bench, Event
from lightning_embed.surgery.decide.sizing import merge_to_sizes
from lightning_embed.surgery.decide.thresholds import merge_constants, merge_layers, merge_neurons
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.sizes import Sizes
from lightning_embed.tape import Tape


@torch.inference_mode(mode=False)
@torch.enable_grad()
def merge(
    model: nn.Module,
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    *,
    criteria: Criteria,
    tolerance: Tolerance | None,
    seed: int = 0,
    sizes: Sizes | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    epoch: int | None = None,
    step: int | None = None,
) -> tuple[Plan, list[Record]]:
    """Merge what the criteria nominate and the tolerance allows, in place.

    Order: null neurons, then layers, then neurons, because one dead neuron hides a linear layer. At the end, and
    wherever a merge would be refused for the change that it makes, the Linears are corrected towards what they put out
    before the first merge.

    Args:
        model: changed in place; every refused merge is undone bit for bit.
        fit: tapes from which everything is measured and fitted.
        decide: tapes on which the effect is measured.
        criteria: what nominates.
        tolerance: what decides; None accepts every nominated merge that can be computed.
        seed: of the random combination of outputs that weights the fits.
        sizes: how many neurons to leave in which layers (0 removes a layer), in place of the criteria for neurons.
        optimizers: edited in place with every merge that is kept.
        copies: models of the same architecture with weights of their own (running averages) that follow every merge.
        epoch: written into the records.
        step: written into the records.

    Returns:
        The merges that were made, in order, and the record of everything that was nominated.

    Raises:
        InputError: the sizes cannot be had, the outputs are not finite; nothing is changed then.
    """
    event = Event(model, fit, decide, tolerance, seed, optimizers, copies, epoch, step)
    bench = Bench(event)
    if sizes is not None:
        sizes.check(bench.graph)
    nominating = criteria.chosen()
    try:
        if bench.ready():
            merge_constants(bench, nominating)
            merge_layers(bench, nominating)
            if sizes is None:
                merge_neurons(bench, nominating)
            else:
                merge_to_sizes(bench, sizes.choose(model, bench.graph, bench.features(), fit))
            bench.reconstruct()
    finally:
        plan = bench.close()
    return plan, bench.records
