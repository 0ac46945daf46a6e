"""Nothing silently wrong: random networks, redundancy planted in three of five of them, pruned and looked at anew."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import lightning_embed as le
from tests.random_networks import Network, Planted, network
from tests.tolerances import tolerance

TOLERANCE = le.Tolerance()

# the widths of some neurons lie below what their dtype resolves beside the data's mean; the figure then says so
pytestmark = pytest.mark.filterwarnings("ignore::lightning_embed.statistics.PrecisionWarning")


@dataclass(frozen=True)
class Outcome:
    """What became of one network."""

    seed: int
    change: float  # of the outputs on data that no step has seen
    found: tuple[tuple[Planted, bool], ...]
    records: tuple[le.Record, ...]
    silent: tuple[str, ...]  # what went wrong without a word


def look(seed: int, match: bool = True) -> Outcome:
    given = network(seed)
    before = {name: one.clone() for name, one in given.model.state_dict().items()}
    result = le.prune(given.model, given.data, tolerance=TOLERANCE, match=match)
    with torch.no_grad():
        old, new = given.model(given.held_out).double(), result.model(given.held_out).double()
    change = float((new - old).norm() / (old - old.mean(dim=0)).norm())
    found = tuple((one, _gone(result.model.get_submodule(one.layer), one)) for one in given.planted)
    return Outcome(seed, change, found, result.records, tuple(_silent(given, before, result, found)))


def _gone(layer: nn.Module, planted: Planted) -> bool:
    return isinstance(layer, nn.Identity) or layer.out_features <= planted.width


def _silent(given: Network, before: dict, result: le.Result, found: Iterable[tuple[Planted, bool]]) -> Iterable[str]:
    if not all(bool(torch.isfinite(one).all()) for one in result.model.state_dict().values()):
        yield "NaN or infinite values"
    if not all(torch.equal(one, before[name]) for name, one in given.model.state_dict().items()):
        yield "the given model was changed"
    refused = dict(result.before.refused)
    tied = {producer for one in result.before.layers for producer in one.producers}
    looked_at = tied | {name for name, reason in refused.items() if reason}
    for name, one in given.model.named_modules():
        if isinstance(one, nn.Linear) and name not in looked_at:
            yield f"{name} is left alone for no reason"
    for record in result.records:
        if not record.done and not record.reason:
            yield f"{record.layer} is refused for no reason"
    for planted, gone in found:
        behind = refused.get(planted.layer, "")
        if not planted.mergeable and not gone and planted.layer not in tied and "joined by" not in behind:
            yield f"{planted.layer} is behind a skip, which is not the reason given"


def report(outcomes: Sequence[Outcome]) -> str:
    """What was found of each kind, how many nominated merges were accepted, and the largest changes."""
    pairs = [(outcome.seed, one, found) for outcome in outcomes for one, found in outcome.found]
    planted = Counter(_kind(one) for _, one, _ in pairs)
    gone = Counter(_kind(one) for _, one, found in pairs if found)
    records = [record for outcome in outcomes for record in outcome.records if record.kind != "reconstruction"]
    nominated = Counter(one.criterion for one in records)
    accepted = Counter(one.criterion for one in records if one.done)
    reasons = Counter(" ".join(one.reason.split()[:2]).rstrip("0123456789.") for one in records if not one.done)
    changes = sorted(((outcome.change, outcome.seed) for outcome in outcomes), reverse=True)
    missed = [f"{one.kind} in {one.layer} of seed {seed}" for seed, one, found in pairs if one.mergeable > found]
    lines = [f"{len(outcomes)} networks"]
    lines += [f"planted {kind}: found {gone[kind]} of {planted[kind]}" for kind in sorted(planted)]
    lines += [f"nominated by {name}: accepted {accepted[name]} of {nominated[name]}" for name in sorted(nominated)]
    lines += [f"refused for {reason.strip()}: {count}" for reason, count in reasons.most_common()]
    lines += ["largest changes on held-out data: " + ", ".join(f"{c:.4f} (seed {s})" for c, s in changes[:8])]
    return "\n".join([*lines, "not found: " + (", ".join(missed) or "nothing")])


def _kind(planted: Planted) -> str:
    return planted.kind if planted.mergeable else f"{planted.kind} behind a skip"


def hold(outcomes: Sequence[Outcome]) -> None:
    assert [(one.seed, what) for one in outcomes for what in one.silent] == []
    found = [gone for outcome in outcomes for one, gone in outcome.found if one.mergeable]
    assert sum(found) >= 0.95 * len(found) > 0, report(outcomes)
    near = sum(one.change <= 3 * TOLERANCE.change for one in outcomes)
    assert near >= 0.99 * len(outcomes), report(outcomes)


def test_forty_random_networks():
    hold([look(seed, match=seed % 4 == 0) for seed in range(40)])


@pytest.mark.slow
def test_five_hundred_random_networks(capsys):
    outcomes = [look(seed) for seed in range(500)]
    with capsys.disabled():
        print(f"\n{report(outcomes)}")  # noqa: T201  # the figures are what this run is for
    hold(outcomes)


def test_what_is_planted_changes_nothing():
    kinds = Counter()
    for seed in (seed for seed in range(80) if seed % 5 < 3):
        given = network(seed)
        assert given.planted
        if any(one.kind == "lifted" for one in given.planted):
            continue  # some activations are affine nowhere, only nearly
        kinds.update((one.kind, one.mergeable) for one in given.planted)
        with torch.no_grad():
            old, new = given.narrow(given.held_out), given.model(given.held_out)
        scale = 100 * float(old.abs().max())
        torch.testing.assert_close(new, old, **tolerance(given.settings["dtype"], scale))
        wider = [given.model.get_submodule(one.layer).out_features > one.width for one in given.planted]
        assert all(wider)
    assert len(kinds) == 3
    assert math.prod(kinds.values()) > 0
