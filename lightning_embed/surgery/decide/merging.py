"""The one pipeline: observe, measure, propose, try, check, keep or undo, record.

`prune`, `propose` and the training callback all run `merge`; they differ in which model they hand over and in
whether a tolerance decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_embed.graph import Graph, Reason
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.records import Record
from lightning_embed.surgery.decide.event import Bench, Event
from lightning_embed.surgery.decide.sizing import Budget, merge_to_widths
from lightning_embed.surgery.decide.smallest import merge_within_tolerance
from lightning_embed.surgery.decide.thresholds import merge_constants, merge_layers, merge_neurons
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.null import Null
from lightning_embed.surgery.nominate.sizes import Sizes, Widths
from lightning_embed.tape import Tape


@dataclass(frozen=True, eq=False)
class Merged:
    """What was done to a model.

    Attributes:
        plan: the merges that were made, in order.
        records: of everything that was nominated.
        graph: of the model as it is now.
    """

    plan: Plan
    records: list[Record]
    graph: Graph


@torch.inference_mode(mode=False)
@torch.enable_grad()
def merge(
    model: nn.Module,
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    *,
    criteria: Criteria | None,
    tolerance: Tolerance | None,
    seed: int = 0,
    sizes: Sizes | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    copies: Sequence[nn.Module] = (),
    epoch: int | None = None,
    step: int | None = None,
    settle_norms: bool = False,
    graph: Graph | None = None,
    original: nn.Module | None = None,
    anew: bool = False,
    left_alone: Mapping[str, Reason] | None = None,
) -> Merged:
    """Merge what the criteria nominate and the tolerance allows, in place.

    Order: null neurons, then layers, then neurons, because one dead neuron hides a linear layer. At the end, and
    wherever a merge would be refused for the change that it makes, the Linears are corrected towards what they put out
    before the first merge.

    Args:
        model: changed in place; every refused merge is undone bit for bit.
        fit: tapes from which everything is measured and fitted.
        decide: tapes on which the effect is measured.
        criteria: what nominates; if None, all that the tolerance allows is merged (see `merge_within_tolerance`), or,
            where a size is asked for, constant neurons alone are merged beside.
        tolerance: what decides; None accepts every nominated merge that can be computed.
        seed: of the random combination of outputs that weights the fits.
        sizes: how many neurons to leave in which layers (0 removes a layer), in place of the criteria for neurons.
        optimizers: edited in place with every merge that is kept.
        copies: models of the same architecture with weights of their own (running averages) that follow every merge.
        epoch: written into the records.
        step: written into the records.
        settle_norms: where the running statistics of batch norms lag, re-estimate them on the fitting data first, if
            they hold on the deciding data too; taken back where nothing is merged.
        graph: what was observed of the model on the fitting tapes, if it was already.
        original: a copy of the model, where its outputs are to be matched in the end (see `match_outputs`).
        anew: whether the optimizers' state of what is changed begins anew, in place of being carried over.
        left_alone: layers that must not be touched, by name, and why.

    Returns:
        What was done; see `Merged`.

    Raises:
        InputError: the sizes cannot be had, the outputs are not finite; nothing is changed then.
    """
    event = Event(
        model,
        fit,
        decide,
        tolerance,
        seed,
        optimizers,
        copies,
        epoch,
        step,
        settle_norms,
        graph,
        original,
        anew,
        left_alone or {},
    )
    bench = Bench(event)
    nominating = (Null(),) if criteria is None else criteria.chosen()
    try:
        budget = None
        if isinstance(sizes, Widths):
            sizes.check(bench.graph)
        elif sizes is not None:
            budget = Budget(bench, sizes)
        if bench.ready():
            if criteria is None and sizes is None:
                merge_within_tolerance(bench)
            else:
                merge_constants(bench, nominating)
                merge_layers(bench, nominating)
                if budget is not None:
                    budget.merge()
                elif isinstance(sizes, Widths):
                    merge_to_widths(bench, sizes)
                else:
                    merge_neurons(bench, nominating)
                bench.reconstruct()
                bench.match()
    finally:
        plan = bench.close()
    return Merged(plan, bench.records, bench.graph)
