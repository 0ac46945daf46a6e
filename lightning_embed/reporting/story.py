"""What a page says about a history: sentences, figures and tables, as plain data for the template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_embed.graph import REASONS
from lightning_embed.reporting.drawing import network
from lightning_embed.reporting.history import Agreement, History
from lightning_embed.reporting.pixels import css_gradient, picture
from lightning_embed.surgery import Record, Snapshot
from lightning_embed.surgery.change.step import describe_evidence
from lightning_embed.surgery.persist.snapshot import Similarity

TABLED = 20  # classes up to which an agreement matrix is a table
EVENTS = 6  # agreement matrices, the latest
SECTIONS = {
    "network": "Network",
    "curves": "Training",
    "measured": "Measurement",
    "merges": "Merges",
    "refused": "Refusals",
    "similarity": "Similarity",
    "agreement": "Agreement",
    "environment": "Environment",
}


def story(history: History) -> dict[str, Any]:
    """Everything that the template shows but the curves."""
    training = any(record.epoch is not None for record in history.records) or bool(history.curves)
    refused = [record for record in history.records if not record.done]
    left_alone = _left_alone(history)
    reasons = [*(record.reason for record in refused), *(row[2] for row in left_alone)]
    return {
        "title": history.title,
        "training": training,
        "summary": _summary(history),
        "cards": _cards(history),
        "timing": _timing(history),
        "network": (drawn := network(history)),
        "gone": any(row.became is None for row in drawn),
        "measured": _measured(history),
        "events": _events(history.merges),
        "metric": any(record.metric is not None for record in history.merges),
        "refused": _refused(history.records),
        "left_alone": left_alone,
        "reasons": [(key, REASONS[key]) for key in REASONS if any(reason.startswith(key) for reason in reasons)],
        "similarities": [_pair(pair) for pair in history.similarities()],
        "gradient": css_gradient(),
        "agreements": [_matrix(one) for one in history.agreements[-EVENTS:]],
        "environment": [*history.environment.items(), *_settings(history.settings)],
        "damaged": _damaged(history.damaged),
    }


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' * (count != 1)}"


def _when(iso: str) -> str:
    """A time of the form 2026-01-31T12:00:00+00:00 as one that is not broken over lines."""
    return f"{iso[:16].replace('T', ' ')} UTC".replace("-", "\u2011").replace(" ", "\u00a0")


def _summary(history: History) -> list[str]:
    layers = sum(one.kind == "layer" for one in history.merges)
    neurons = sum(one.width[0] - one.width[1] for one in history.merges if one.kind == "neurons")
    ran = f" Begun on {_when(history.began)}." if history.began else ""
    was, became = history.was, history.became
    rank = _rank(history)
    if not layers and not neurons:
        grew = was is not None and became is not None and became.size.parameters > was.size.parameters
        lead = "Nothing was merged" if grew else "Nothing was merged: the network is as large as it was"
        return [f"{lead}.{_grown(was, became)}{ran} Status: {history.status}.", *rank]
    what = [_plural(layers, "hidden layer")] * bool(layers) + [_plural(neurons, "neuron")] * bool(neurons)
    lead = f"{' and '.join(what)} {'was' if layers + neurons == 1 else 'were'} merged"
    if was is not None and became is not None and 0 < became.size.parameters <= was.size.parameters:
        share = 1.0 - became.size.parameters / was.size.parameters
        left = f"{became.size.parameters:,} of {was.size.parameters:,} parameters are left"
        lead += f": {left}, {100 * share:.1f}\u00a0% fewer"
    events = {record.epoch for record in history.merges if record.epoch is not None}
    changes = [one.change for one in history.merges if math.isfinite(one.change)]
    effect = f"The outputs changed by at most {max(changes):.4f} (relative)" if changes else "Merged"
    effect += f" in any of {_plural(len(events), 'merging event')}." if events else "."
    return [f"{lead}.{_grown(was, became)}", f"{effect}{ran} Status: {history.status}.", *rank]


def _grown(was: Snapshot | None, became: Snapshot | None) -> str:
    """A sentence about a network that has more parameters than it began with."""
    if was is None or became is None or became.size.parameters <= was.size.parameters:
        return ""
    more = became.size.parameters / was.size.parameters - 1 if was.size.parameters else math.nan
    share = "" if math.isnan(more) else f", {100 * more:.1f}\u00a0% more"
    now, then = f"{became.size.parameters:,} parameters", f"{was.size.parameters:,}"
    return f" The network grew: it has {now} and began with {then}{share}."


def _rank(history: History) -> list[str]:
    """As how many parameters the network acts, where that was measured."""
    ranks, rows = (history.curves.get(name) for name in ("tangent_rank", "tangent_rows"))
    became = history.became
    if ranks is None or rows is None or became is None:
        return []
    rank, most = int(ranks.values[-1]), int(rows.values[-1])
    least = "at least " if rank == most < became.size.parameters else ""
    acts = f"{became.size.parameters:,} parameters act as {least}{rank:,}"
    return [f"{acts}: the rank of the derivative of {most:,} outputs of the last sampled batch by them."]


def _cards(history: History) -> list[dict[str, Any]]:
    was, became = history.was, history.became
    if was is None or became is None:
        return []
    pairs: list[tuple[str, float, float, str]] = [
        ("parameters", was.size.parameters, became.size.parameters, "{:,.0f}"),
        ("FLOPs per sample", was.size.flops, became.size.flops, "{:,.0f}"),
        (f"time of {_plural(was.samples, 'sample')}", was.latency, _timed(history, was), "{:.3g} ms"),
        ("hidden layers", was.size.hidden_layers, became.size.hidden_layers, "{:,.0f}"),
        ("neurons in them", was.size.neurons, became.size.neurons, "{:,.0f}"),
    ]
    return [_card(*pair) for pair in pairs]


def _card(label: str, was: float, became: float, form: str) -> dict[str, Any]:
    if not (math.isfinite(was) and math.isfinite(became)):
        return {"label": label, "now": "–", "was": "not measured", "share": None}
    if form.format(was) == form.format(became):
        return {"label": label, "now": form.format(became), "was": "as before", "share": None}
    share = 100.0 * became / was if was else None
    change = "" if share is None else f" ({share - 100:+.0f}\u00a0%)".replace("-", "−")
    bar = None if share is None else round(min(100.0, share), 1)
    return {"label": label, "now": form.format(became), "was": f"was {form.format(was)}{change}", "share": bar}


def _timed(history: History, was: Snapshot) -> float:
    """The latest time of a call of as many samples as in the first snapshot; NaN if there is no other."""
    alike = [one.snapshot for one in history.moments[1:] if one.snapshot.samples == was.samples]
    return alike[-1].latency if alike else math.nan


def _timing(history: History) -> str:
    was = history.was
    if was is None or not math.isfinite(_timed(history, was)):
        return ""
    return (
        f"Time: median of a recorded call of {_plural(was.samples, 'sample')} in eval mode, measured on {was.device}. "
        "Small networks are bound by overhead: fewer operations need not be faster."
    )


def _measured(history: History) -> list[dict[str, Any]]:
    if history.measured is None:
        return []
    rows = []
    for one in history.measured[0].layers:
        mpc = "" if one.mpc is None else "constant" if math.isnan(one.mpc) else f"{one.mpc:.4f}"
        kept = {"cosine": one.width_cosine, "span": one.width_span}
        rows.append(
            {
                "layer": one.layer,
                "width": f"{one.width:,}",
                "constant": one.constant or "",
                "mpc": mpc,
                "non_affine": "" if one.non_affine is None or math.isnan(one.non_affine) else f"{one.non_affine:.3f}",
                **{name: "" if width is None else f"{width:,}" for name, width in kept.items()},
            }
        )
    return rows


def _events(merges: Sequence[Record]) -> list[dict[str, Any]]:
    """The merges by the event in which they were made."""
    events: dict[tuple[int | None, int | None], list[Record]] = {}
    for record in merges:
        events.setdefault((record.epoch, record.step), []).append(record)
    return [
        {"name": "" if epoch is None else f"Epoch {epoch}, step {step:,}", "rows": [_row(one) for one in records]}
        for (epoch, step), records in events.items()
    ]


def _row(record: Record) -> dict[str, str]:
    before, after = record.parameters
    return {
        "layer": record.layer,
        "criterion": record.criterion,
        "width": f"{record.width[0]:,} → {record.width[1]:,}" if any(record.width) else "",
        "evidence": describe_evidence(record.evidence),
        "change": "" if math.isnan(record.change) else f"{record.change:.4f}",
        "agreement": "" if math.isnan(record.agreement) else f"{record.agreement:.4f}",
        "metric": "" if record.metric is None else "{:.4f} → {:.4f}".format(*record.metric),
        "parameters": f"{before:,} → {after:,}" if before != after else "",
    }


def _refused(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Of every layer and criterion the latest refusal, how many there were, and whether less was merged after it."""
    found: dict[tuple[str, str], list[Record]] = {}
    after: set[tuple[str, str]] = set()
    for record in records:
        key = (record.layer, record.criterion)
        if record.done:
            after.add(key)
        else:
            after.discard(key)
            found.setdefault(key, []).append(record)
    return [
        {
            **_row(all_of[-1]),
            "criterion": "any" if key[1] == "all" else key[1],
            "epoch": "" if all_of[-1].epoch is None else all_of[-1].epoch,
            "times": len(all_of),
            "reason": all_of[-1].reason + "; a milder merge was allowed after it" * (key in after),
        }
        for key, all_of in found.items()
    ]


def _left_alone(history: History) -> list[tuple[str, str, str]]:
    rows = []
    for one in history.was.layers if history.was is not None else ():
        if not one.hidden:
            rows.append((one.name, "all of it", one.reason or "never called"))
        elif one.merge_neurons:
            rows.append((one.name, "its neurons", one.merge_neurons))
        if one.hidden and one.merge_layer:
            rows.append((one.name, "the layer", one.merge_layer))
    return rows


def _pair(pair: Sequence[tuple[str, Similarity]]) -> dict[str, Any]:
    pictures = []
    for when, one in pair:
        shown = sum(one.groups)
        groups = _plural(len(one.groups), "group") + ("" if shown == one.neurons else f" among {shown} shown")
        pictures.append(
            {
                "src": picture(one.cosine),
                "size": shown,
                "note": f"{when}: {_plural(one.neurons, 'neuron')}, {groups}",
                "alt": f"Cosine similarity of {one.neurons} neurons of {one.layer} {when}, ordered by group: {groups}.",
            }
        )
    last = pair[-1][1]
    return {
        "layer": last.layer,
        "pictures": pictures,
        "caption": "(opposite directions count as alike: the activation is odd)" if last.absolute else "",
    }


def _matrix(one: Agreement) -> dict[str, Any]:
    when = "" if one.epoch is None else f"Epoch {one.epoch}: "
    title = f"{when}{100 * one.share:.2f} % of {one.samples:,} predictions are the same"
    rows = [[count / max(1, sum(row)) for count in row] for row in one.counts]
    if len(rows) > TABLED:
        hundredths = torch.tensor(rows).mul(200).sub(100).round().to(torch.int8)
        return {"title": title[:1].upper() + title[1:], "src": picture(hundredths)}
    cells = [[(share, _percent(share)) for share in row] for row in rows]
    return {"title": title, "src": "", "classes": range(len(rows)), "rows": cells}


def _percent(share: float) -> str:
    if share == 0.0:
        return "·"
    return "<1" if share < 0.005 else f"{100 * share:.0f}" if share >= 0.9995 or share < 0.99 else f"{100 * share:.1f}"


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _told(value)) for name, value in settings.items() if value not in (None, {}, "")]


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items() if one is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _damaged(lines: int) -> str:
    verb = "is" if lines == 1 else "are"
    return f"{_plural(lines, 'line')} of the history could not be read and {verb} left out." if lines else ""


def sections(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ids and names of the sections that the page has."""
    holds = {**context, "curves": context["charts"], "similarity": context["similarities"]}
    holds["agreement"] = context["agreements"]
    always = {"merges", "refused", "environment"}
    return [(id_, name) for id_, name in SECTIONS.items() if id_ in always or holds.get(id_)]
