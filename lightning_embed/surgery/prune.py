"""Work on a trained network, with no Lightning: look, propose, prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from lightning_embed.errors import InputError
from lightning_embed.graph import observe
from lightning_embed.surgery.calibration import halves
from lightning_embed.surgery.change.apply import settle
from lightning_embed.surgery.change.edit import parameter_count
from lightning_embed.surgery.change.plan import Plan
from lightning_embed.surgery.change.records import Record, records_table
from lightning_embed.surgery.change.step import plain
from lightning_embed.surgery.decide.check import Check
from lightning_embed.surgery.decide.matching import match_outputs
from lightning_embed.surgery.decide.merging import merge
from lightning_embed.surgery.decide.tolerance import Tolerance
from lightning_embed.surgery.nominate.criteria import Criteria
from lightning_embed.surgery.nominate.measure import Measurement, measure_layers
from lightning_embed.surgery.nominate.sizes import ParameterShare, Sizes, Widths, check_sizes
from lightning_embed.surgery.persist.checkpoint import attach
from lightning_embed.surgery.persist.copying import copy_of
from lightning_embed.surgery.persist.snapshot import Size, Snapshot, snapshot
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
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    match: bool = True,
    seed: int = 0,
) -> Result:
    """Merge the linearized layers and condensed neurons of a trained network, as far as its function is kept.

    One half of the calibration data fits, the other half alone decides. A merge that changes the outputs by more
    than the tolerance is undone, and its record says so. With `widths` or `budget` a size is asked for instead: the
    network of that size whose outputs differ least, as far as we find it.

    Args:
        model: any module; it is left untouched.
        data: calibration data: a DataLoader, an iterable of batches, or one tensor (samples, …). Batches are taken
            until there are 4096 samples. Inputs alone are enough; of a (inputs, targets) batch the first entry is used.
        criteria: thresholds that nominate; the defaults of `Criteria` if None.
        tolerance: the bound that decides; if None the defaults of `Tolerance`, and no bound where a size is asked for.
        widths: number of neurons to leave at most in each of these layers, by name (of a gate or a residual stage that
            of any layer that makes its neurons); 0 removes the layer. Other layers
            lose nothing but neurons that are constant.
        budget: share of the parameters to leave at most. Tried are an equal share in every layer and one that is
            foretold to change the outputs least, each with and without merging linearized layers first; the result
            that changes them least is returned.
        call: how to run the model on a batch: batch → outputs. It may call `model` in any way.
        output: which tensor(s) of what the call returns are compared.
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
    check_sizes(widths, budget)
    if criteria is not None and (widths is not None or budget is not None):
        raise InputError("criteria= nominates by thresholds, widths= and budget= ask for a size; give one of the two.")
    fit, decide = halves(model, data, call, output, seed)
    before, was = look(copy_of(model), fit, criteria or Criteria(), decide)
    wanted = None if budget is None else math.floor(budget * was.size.parameters)
    if wanted is not None:
        linear = before.linear_layers(_LINEAR.linearization or 1.0) > 0
        pruned, plan, records = _within(wanted, model, fit, decide, tolerance, seed, linear=linear)
    elif widths is not None:
        pruned, plan, records = _run(model, fit, decide, _NOTHING, tolerance, Widths(widths), seed)
    else:
        pruned, plan, records = _run(model, fit, decide, criteria or Criteria(), tolerance or Tolerance(), None, seed)
    _require_reached(pruned, fit, widths, wanted, records)
    if match and len(plan):
        plan, records = _matched(pruned, model, plan, records, fit, decide, tolerance)
    after, became = look(pruned, fit, criteria or Criteria(), decide)
    return Result(pruned, tuple(records), plan, before, after, (was, became))


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
_NOTHING = Criteria(linearization=None, condensation=None, span=None)
_LINEAR = Criteria(condensation=None, span=None)
_Run = tuple[nn.Module, Plan, list[Record]]


def _run(
    model: nn.Module,
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    criteria: Criteria,
    tolerance: Tolerance | None,
    sizes: Sizes | None,
    seed: int,
) -> _Run:
    pruned = copy_of(model)
    plan, records = merge(pruned, fit, decide, criteria=criteria, tolerance=tolerance, sizes=sizes, seed=seed)
    return pruned, plan, records


def _within(
    parameters: int,
    model: nn.Module,
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    tolerance: Tolerance | None,
    seed: int,
    *,
    linear: bool,
) -> _Run:
    """Of runs towards a number of parameters that reach it the one whose outputs differ least, else the smallest."""
    runs: list[_Run] = []
    refusals: list[InputError] = []
    for criteria in (_NOTHING, _LINEAR)[: 1 + linear]:
        for evenly in (False, True):
            try:
                runs.append(_run(model, fit, decide, criteria, tolerance, ParameterShare(parameters, evenly), seed))
            except InputError as error:  # one way may lead there where another does not
                refusals.append(error)
    if not runs:
        raise refusals[0]
    check = Check(model, decide, None)
    reached = [run for run in runs if parameter_count(run[0]) <= parameters]
    if reached:
        return min(reached, key=lambda run: check.effect(run[0]).change)
    return min(runs, key=lambda run: parameter_count(run[0]))


def _require_reached(
    pruned: nn.Module,
    fit: Sequence[Tape],
    widths: Mapping[str, int] | None,
    parameters: int | None,
    records: Sequence[Record],
) -> None:
    """Refuse a result that is larger than what was asked for, with the reasons that hold it back."""
    if widths is None and parameters is None:
        return
    graph = observe(pruned, fit)
    larger = []
    for name, width in (widths or {}).items():
        now = [layer for layer in graph.layers if layer.name == name or name in layer.producers]
        larger += [f"{name} has {layer.width} neurons, not {width}" for layer in now if layer.width > width]
    count = parameter_count(pruned)
    if parameters is not None and count > parameters:
        larger.append(f"{count:,} parameters are left, not {parameters:,}")
    if larger:
        held = dict.fromkeys(f"{record.layer}: {record.reason}" for record in records if not record.done)
        held.update(dict.fromkeys(f"{name}: {reason}" for name, reason in graph.refused.items()))
        raise InputError(
            f"The size cannot be reached: {'; '.join(larger)}. What holds it back: "
            f"{'; '.join(list(held)[:_SHOWN]) or 'nothing that was seen'}. Ask for a larger size, or mend that."
        )


@torch.inference_mode(mode=False)
@torch.enable_grad()
def _matched(
    pruned: nn.Module,
    model: nn.Module,
    plan: Plan,
    records: list[Record],
    fit: Sequence[Tape],
    decide: Sequence[Tape],
    tolerance: Tolerance | None,
) -> tuple[Plan, list[Record]]:
    """Move the remaining weights such that the outputs come nearer to the original's; the plan and records with it."""
    check = Check(model, decide, tolerance)
    step = match_outputs(pruned, model, fit, check)
    if step is None:
        return plan, records
    was_allowed = not check.refusal(check.effect(pruned))
    attachment = attach(pruned)
    applied = step.apply(pruned, attachment)
    effect = check.effect(pruned)
    if was_allowed and check.refusal(effect):  # nearer in the outputs and yet further in what else counts
        applied.undo()
        return plan, records
    size = parameter_count(pruned)
    record = Record.of(
        step, change=effect.change, agreement=effect.agreement, metric=effect.metric, parameters=(size, size)
    )
    settle(attachment, applied, (), record)
    return Plan((*plan.steps, step)), [*records, record]


def measure(
    model: nn.Module,
    data: Any,
    *,
    criteria: Criteria | None = None,
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure every hidden layer of a model on data: MPC, width, width/cosine, width/span. Changes nothing.

    Args:
        model: any module.
        data: as in `prune`.
        criteria: the thresholds at which the kept widths are counted.
        call: as in `prune`.
        output: as in `prune`; a layer that is returned beside the outputs is none of them then.
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
    return measure_layers(copied, observe(copied, tapes), tapes, criteria or Criteria())


def propose(
    model: nn.Module,
    data: Any,
    *,
    criteria: Criteria | None = None,
    call: Callable[[Any], Any] | None = None,
    output: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Plan:
    """Everything that the criteria nominate, as a plan for `apply`; nothing is changed and nothing is checked.

    Args:
        model: any module.
        data: as in `prune`; all of them fit.
        criteria: thresholds that nominate.
        call: as in `prune`.
        output: as in `prune`; a layer that is returned beside the outputs is none of them then.
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
    plan, _ = merge(copy_of(model), tapes, tapes, criteria=criteria or Criteria(), tolerance=None, seed=seed)
    return plan


def look(
    model: nn.Module, tapes: Sequence[Tape], criteria: Criteria, decide: Sequence[Tape] = ()
) -> tuple[Measurement, Snapshot]:
    """Measurement and snapshot of a model as it is, on recorded tapes."""
    graph = observe(model, tapes)
    measurement = measure_layers(model, graph, tapes, criteria)
    return measurement, snapshot(model, graph, tapes, decide, threshold=criteria.condensation)
