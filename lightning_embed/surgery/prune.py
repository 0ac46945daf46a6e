"""Work on a trained network, with no Lightning: look, propose, prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.graph import Graph, Names, Reason, excluded, observe, restricted
from lightning_embed.surgery.calibration import halves
from lightning_embed.surgery.change.apply import settle
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.records import Record, records_table
from lightning_embed.surgery.change.step import plain
from lightning_embed.surgery.decide.check import Check
from lightning_embed.surgery.decide.matching import matched
from lightning_embed.surgery.decide.merging import Merged, merge
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.measure import Measurement, measure_layers
from lightning_embed.surgery.nominate.sizes import Counted, Share, Sizes, Widths, check_sizes
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.surgery.persist.copying import copy_of
from lightning_embed.surgery.persist.snapshot import Size, Snapshot, size_of, snapshot
from lightning_embed.tape import Tape


@dataclass(frozen=True, eq=False)
class Result:
    """What `prune` returns. `print(result)` shows it as tables.

    Attributes:
        model: the smaller model; the given one is left untouched.
        records: everything that was nominated, done or refused, with evidence and effect.
        plan: the merges that were done; `apply(another copy, plan)` repeats them.
        before: what the hidden layers measured before.
        after: and afterwards.
        snapshots: (before, after): layers, latency, likeness of neurons and predictions, for `lightning_embed.report`.
    """

    model: nn.Module
    records: tuple[Record, ...]
    plan: Plan
    before: Measurement
    after: Measurement
    snapshots: tuple[Snapshot, Snapshot]

    @property
    def size(self) -> tuple[Size, Size]:
        """Sizes (before, after)."""
        was, became = self.snapshots
        return was.size, became.size

    def to_dict(self) -> dict[str, Any]:
        """What was found, done and refused, as lists, numbers, strings and None (for NaN): for a log or a JSON file.

        Without the model, which its state dict describes, and without the plan, which holds weights and has a
        `to_dict` of its own.
        """
        found: dict[str, Any] = plain(
            {
                "size": {"before": asdict(self.size[0]), "after": asdict(self.size[1])},
                "before": asdict(self.before),
                "after": asdict(self.after),
                "records": [record.to_dict() for record in self.records],
            }
        )
        return found

    def __str__(self) -> str:
        old, new = self.size
        rows = [
            [name.replace("_", " "), f"{vars(old)[name]:,}", f"{vars(new)[name]:,}"]
            for name in ("parameters", "hidden_layers", "neurons", "flops")
        ]
        parts = [
            "Hidden layers before",
            str(self.before),
            "",
            "Merges",
            records_table(self.records) if self.records else "nothing was nominated",
            "",
            str(tabulate(rows, headers=["", "before", "after"], disable_numparse=True, tablefmt="simple")),
        ]
        return "\n".join(parts)


def prune(
    model: nn.Module,
    data: Any,
    *,
    criteria: Criteria | None = None,
    tolerance: Tolerance | None = None,
    widths: Mapping[str, int] | None = None,
    budget: float | None = None,
    of: Counted = "parameters",
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    include: Names | None = None,
    exclude: Names | None = None,
    match: bool = True,
    seed: int = 0,
) -> Result:
    """Merge the linearized layers and condensed neurons of a trained network, as far as its function is kept.

    One half of the calibration data fits, the other half alone decides. A merge that changes the outputs by more
    than the tolerance is undone, and its record says so. The result is the smallest network that the tolerance allows,
    as far as we find it; with `criteria` only what they nominate is tried. With `widths` or `budget` a size is asked
    for instead: the network of that size whose outputs differ least.

    Args:
        model: any module; it is left untouched.
        data: calibration data: a DataLoader, an iterable of batches, or one tensor (samples, …). Batches are taken
            until there are 4096 samples. Inputs alone are enough; of a (inputs, targets) batch the first entry is used.
        criteria: thresholds that nominate; if None, everything is nominated and the tolerance is used up.
        tolerance: the bound that decides; if None the defaults of `Tolerance`, and no bound where a size is asked for.
        widths: number of neurons to leave at most in each of these layers, by name (of a gate or a residual stage that
            of any layer that makes its neurons); 0 removes the layer. Other layers
            lose nothing but neurons that are constant.
        budget: share to leave at most of what `of` names. Tried are an equal share in every layer and one that is
            foretold to change the outputs least, each with and without merging linearized layers first; the result
            that changes them least is returned.
        of: what the budget counts: "parameters", "flops" (floating-point operations for one sample) or "latency" (time
            of a call on a batch of the data, on the device where the model is; timed in turn with the whole model).
        call: how to run the model on a batch: batch → outputs. It may call `model` in any way.
        output: which tensor(s) of what the call returns are compared.
        include: the only layers that may be touched: qualified names, patterns ("encoder.*", see `fnmatch`) or modules;
            of a module all layers in it. All if None.
        exclude: layers that stay bit for bit, given in the same ways; it wins over `include`. The neurons of a layer
            that feeds an excluded one stay as well, as they are columns there.
        match: whether at the end all remaining Linears and convolutions are moved a little, in some forty passes over
            the half that fits, so that the outputs come nearer to the original's (no labels; kept only where the
            deciding half says that it is better). A few passes more than without it; see `distill` for longer work.
        seed: of everything random (shuffling of the loader, the combination of outputs that weights the fits).

    Returns:
        The smaller model, the records and measurements; see `Result`.

    Raises:
        InputError: the data are empty or a single sample, a batch needs `call=`, the outputs are not finite, the
            model cannot be copied, or it has no Linear that could be a hidden layer; criteria and a size are both
            given, or a size cannot be reached.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2))
    >>> result = prune(net, torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    >>> result.size[1].hidden_layers, result.size[1].parameters
    (0, 8)
    """
    _check_types(criteria=criteria, tolerance=tolerance, call=call, output=output, seed=seed)
    check_sizes(widths, budget, of)
    if criteria is not None and (widths is not None or budget is not None):
        raise InputError("criteria= nominates by thresholds, widths= and budget= ask for a size; give one of the two.")
    fit, decide = halves(model, data, call, output, seed)
    left_alone = excluded(model, include, exclude)
    looking = criteria or Criteria()
    graph = restricted(observe(copy_of(model), fit), left_alone)
    before, was = look(copy_of(model), graph, fit, looking, decide)
    task = _Task(model, fit, decide, graph, tolerance, seed, left_alone)
    if budget is not None:
        linear = before.linear_layers(_LINEAR.linearization or 1.0) > 0
        pruned, merged = task.within(budget, of, linear=linear)
    elif widths is not None:
        pruned, merged = task.run(None, Widths(widths))
    else:
        task = replace(task, tolerance=tolerance or Tolerance())
        pruned, merged = task.run(criteria, None, match=match)
    _require_reached(pruned, merged, fit[0], widths, None if of == "latency" else budget, of, was.size)
    if match and (widths is not None or budget is not None):
        merged = task.matched(pruned, merged)
    after, became = look(pruned, merged.graph, fit, looking, decide)
    return Result(pruned, tuple(merged.records), merged.plan, before, after, (was, became))


def _check_types(*, criteria: Any, call: Any, seed: Any, tolerance: Any = None, output: Any = None) -> None:
    for name, value, kind in (("criteria", criteria, Criteria), ("tolerance", tolerance, Tolerance)):
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{name} must be a lightning_embed.{kind.__name__} or None, got {value!r}.")
    for name, value in (("call", call), ("output", output)):
        if value is not None and not callable(value):
            raise InputError(f"{name} must be a function or None, got {value!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}.")


_SHOWN = 8  # reasons that a message lists
_LINEAR = Criteria(condensation=None, span=None)


@dataclass(frozen=True, eq=False)
class _Task:
    """A model to be pruned, and on what."""

    model: nn.Module
    fit: Sequence[Tape]
    decide: Sequence[Tape]
    graph: Graph
    tolerance: Tolerance | None
    seed: int
    left_alone: Mapping[str, Reason]

    def run(self, criteria: Criteria | None, sizes: Sizes | None, *, match: bool = False) -> tuple[nn.Module, Merged]:
        """A merged copy, and what was done to it."""
        pruned = copy_of(self.model)
        merged = merge(
            pruned,
            self.fit,
            self.decide,
            criteria=criteria,
            tolerance=self.tolerance,
            sizes=sizes,
            seed=self.seed,
            graph=self.graph,
            original=self.model if match else None,
            left_alone=self.left_alone,
        )
        return pruned, merged

    def within(self, budget: float, of: Counted, *, linear: bool) -> tuple[nn.Module, Merged]:
        """Of runs towards a budget the one whose outputs differ least."""
        runs: list[tuple[nn.Module, Merged]] = []
        refusals: list[InputError] = []
        for criteria in (None, _LINEAR)[: 1 + linear]:
            for evenly in (False, True):
                try:
                    runs.append(self.run(criteria, Share(budget, of, evenly)))
                except InputError as error:  # one way may lead there where another does not
                    refusals.append(error)
        if not runs:
            raise refusals[0]
        check = Check(self.model, self.decide, None, self.graph.layers)
        reached = [run for run in runs if not _missed(run[1])]
        return min(reached or runs, key=lambda run: check.effect(run[0]).change)

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def matched(self, pruned: nn.Module, merged: Merged) -> Merged:
        """Match the outputs of a merged copy to those of the model."""
        check = Check(self.model, self.decide, self.tolerance, self.graph.layers)
        found = matched(pruned, self.model, self.fit, check, self.left_alone) if merged.plan else None
        if found is None:
            return merged
        step, applied, effect = found
        size = parameter_count(pruned)
        record = Record.of(
            step,
            change=effect.change,
            agreement=effect.agreement,
            metric=effect.metric,
            error=effect.error,
            parameters=(size, size),
        )
        settle(attach(pruned), applied, (), record)
        return replace(merged, plan=Plan((*merged.plan.steps, step)), records=[*merged.records, record])


def _missed(merged: Merged) -> bool:
    return any(record.criterion == "size" and not record.done for record in merged.records)


def _require_reached(
    pruned: nn.Module,
    merged: Merged,
    tape: Tape,
    widths: Mapping[str, int] | None,
    budget: float | None,
    of: Counted,
    was: Size,
) -> None:
    """Refuse a result that is larger than what was asked for, with the reasons that hold it back."""
    graph, larger = merged.graph, []
    for name, width in (widths or {}).items():
        now = [layer for layer in graph.layers if layer.name == name or name in layer.producers]
        larger += [f"{name} has {layer.width} neurons, not {width}" for layer in now if layer.width > width]
    if budget is not None:
        wanted = math.floor(budget * getattr(was, of))
        left = getattr(size_of(pruned, tape, ()), of)
        if left > wanted:
            larger.append(f"{left:,} {of} are left, not {wanted:,}")
    if larger:
        held = dict.fromkeys(f"{record.layer}: {record.reason}" for record in merged.records if not record.done)
        held.update(dict.fromkeys(f"{name}: {reason}" for name, reason in graph.refused.items()))
        raise InputError(
            f"The size cannot be reached: {'; '.join(larger)}. What holds it back: "
            f"{'; '.join(list(held)[:_SHOWN]) or 'nothing that was seen'}. Ask for a larger size, or mend that."
        )


def measure(
    model: nn.Module,
    data: Any,
    *,
    criteria: Criteria | None = None,
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    include: Names | None = None,
    exclude: Names | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure every hidden layer of a model on data: MPC, width, width/cosine, width/span. Changes nothing.

    Args:
        model: any module.
        data: as in `prune`.
        criteria: the thresholds at which the kept widths are counted.
        call: as in `prune`.
        output: as in `prune`; a layer that is returned beside the outputs is none of them then.
        include: as in `prune`.
        exclude: as in `prune`.
        seed: of the loader's shuffling.

    Returns:
        A `Measurement`; print it for a table.

    Raises:
        InputError: as in `prune`.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(-9, 9), nn.Linear(3, 1))
    >>> found = measure(net, torch.linspace(-1, 1, 64).reshape(32, 2))
    >>> found.layers[0].width, round(found.layers[0].mpc, 6), found.linear_layers(0.99)
    (3, 1.0, 1)
    """
    _check_types(criteria=criteria, call=call, output=output, seed=seed)
    fit, decide = halves(model, data, call, output, seed)
    tapes = [*fit, *decide]
    copied = copy_of(model)
    graph = restricted(observe(copied, tapes), excluded(model, include, exclude))
    return measure_layers(copied, graph, tapes, criteria or Criteria())


def propose(
    model: nn.Module,
    data: Any,
    *,
    criteria: Criteria | None = None,
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    include: Names | None = None,
    exclude: Names | None = None,
    seed: int = 0,
) -> Plan:
    """Everything that the criteria nominate, as a plan for `apply`; nothing is changed and nothing is checked.

    Args:
        model: any module.
        data: as in `prune`; all of them fit.
        criteria: thresholds that nominate.
        call: as in `prune`.
        output: as in `prune`; a layer that is returned beside the outputs is none of them then.
        include: as in `prune`.
        exclude: as in `prune`.
        seed: as in `prune`.

    Returns:
        A `Plan`; print it, or hand it to `apply`.

    Raises:
        InputError: as in `prune`.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(-9, 9), nn.Linear(3, 1))
    >>> print(propose(net, torch.linspace(-1, 1, 64).reshape(32, 2)))
    1. merge layer 0 (3 neurons) into 2  [mpc 1, fit weighted]
    """
    _check_types(criteria=criteria, call=call, output=output, seed=seed)
    fit, decide = halves(model, data, call, output, seed)
    tapes = [*fit, *decide]
    return merge(
        copy_of(model),
        tapes,
        tapes,
        criteria=criteria or Criteria(),
        tolerance=None,
        seed=seed,
        left_alone=excluded(model, include, exclude),
    ).plan


def look(
    model: nn.Module, graph: Graph, tapes: Sequence[Tape], criteria: Criteria, decide: Sequence[Tape] = ()
) -> tuple[Measurement, Snapshot]:
    """Measurement and snapshot of a model as it is, on recorded tapes."""
    measurement = measure_layers(model, graph, tapes, criteria)
    return measurement, snapshot(model, graph, tapes, decide, threshold=criteria.condensation)
