"""The interactive curves of a page, as plain data that page.js hands to plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_embed.reporting.curves import Curve, plateaus, thin, total
from lightning_embed.reporting.figures import WIDTHS
from lightning_embed.reporting.history import History
from lightning_embed.surgery import Record

POINTS = 20_000  # of all curves of a chart together
BUCKETS = (150, 1500)  # of one curve, least and most
NAMED = 12  # lines that a legend can name

# (on light, on dark) ground; told apart by dashes and markers too
COLORS = (
    ("#0b6e6e", "#5cc4c0"),
    ("#b4552d", "#f0a27a"),
    ("#3d5a9e", "#93b1f0"),
    ("#8a6d00", "#dcc05a"),
    ("#7b3f8c", "#cf9ae0"),
    ("#44515a", "#c0cbd2"),
)
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


def charts(history: History) -> list[dict[str, Any]]:
    """Every chart for which there are data."""
    found = [_mpc(history), *_training(history), _widths(history), _kept(history), *_metrics(history)]
    drawn = [one for one in found if one]
    last = max((trace["x"][-1] for one in drawn for trace in one["traces"] if trace["x"]), default=1)
    common = {"marks": _marks(history.merges), "last": last}  # one time axis for all
    return [{"id": f"chart-{at}", **common, **one} for at, one in enumerate(drawn)]


def _chart(title: str, unit: str, caption: str, curves: Mapping[str, Curve], **rest: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"threshold": None, "log": False, "range": None, "shades": []}
    ends = [(name, last) for name, curve in curves.items() if (last := _last(curve)) is not None]
    told = ", ".join(f"{name} ends at {value:.4g}" for name, value in ends[:NAMED])
    alt = f"{title}: {len(curves)} line{'s' * (len(curves) != 1)} of {unit} over steps; {told}."
    steps = bool(rest.pop("steps", False))
    traces = _traces(curves, steps=steps)
    return {"title": title, "unit": unit, "caption": caption, "alt": alt, "traces": traces, **defaults, **rest}


def _last(curve: Curve) -> float | None:
    return next((value for value in reversed(curve.values) if math.isfinite(value)), None)


def _traces(curves: Mapping[str, Curve], *, steps: bool) -> list[dict[str, Any]]:
    buckets = min(BUCKETS[1], max(BUCKETS[0], POINTS // (2 * max(1, len(curves)))))
    many = len(curves) > NAMED
    traces = []
    for number, (name, curve) in enumerate(curves.items()):
        thinned = thin(curve, buckets)
        light, dark = _between(number / (len(curves) - 1)) if many else COLORS[number % len(COLORS)]
        traces.append(
            {
                "name": name,
                "x": list(thinned.steps),
                "y": [float(f"{one:.5g}") if math.isfinite(one) else None for one in thinned.values],
                "light": light,
                "dark": dark,
                "width": 1.1 if many else 1.6,
                "dash": DASHES[number // len(COLORS) % len(DASHES)] if not many else "solid",
                "marker": MARKERS[number % len(MARKERS)] if 1 < len(curves) <= NAMED else None,
                "legend": not many or number in {0, len(curves) - 1},
                "steps": steps,
            }
        )
    return traces


def _between(share: float) -> tuple[str, str]:
    """Colours that go with depth, from the first layer's to the last's, for either ground."""
    ends = (((20, 60, 120), (226, 132, 40)), ((120, 170, 255), (255, 214, 120)))
    light, dark = (
        "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*pair, strict=True)) for pair in ends
    )
    return light, dark


def _mpc(history: History) -> dict[str, Any] | None:
    curves = history.series("mpc/")
    if not curves:
        return None
    lowest = min((one for curve in curves.values() for one in curve.values if math.isfinite(one)), default=0.0)
    margin = 0.06 * (1.0 - lowest) + 1e-4
    return _chart(
        "How linearly each layer acts",
        "minimal Pearson correlation",
        "MPC is the least correlation of input and output of the activation over the neurons of a layer; at 1 it acts "
        "affinely on the data, and above the threshold it is nominated to be merged. A line ends where its layer does."
        + _depth(curves),
        curves,
        threshold=history.threshold("linearization"),
        range=[max(0.0, lowest - margin), 1.0 + margin],
    )


def _depth(curves: Mapping[str, Curve]) -> str:
    return " Colours go with depth, from the first layer to the last." if len(curves) > NAMED else ""


def _training(history: History) -> list[dict[str, Any]]:
    found = []
    loss = history.curves.get("loss", Curve())
    shades = plateaus(loss)
    rest = " Shaded: plateaus, where the loss rests." if shades else ""
    if len(loss):
        caption = f"The loss of the sampled training batches.{rest}"
        found.append(_chart("Loss", "loss", caption, {"loss": loss}, log=_positive(loss), shades=shades))
    gradient = history.curves.get("grad_norm/l1", Curve())
    if len(gradient):
        caption = f"L1 norm of the whole gradient, before clipping; near 0 the training is at a critical point.{rest}"
        curves = {"gradient": gradient}
        found.append(_chart("Gradient", "L1 norm", caption, curves, log=_positive(gradient), shades=shades))
    return found


def _positive(curve: Curve) -> bool:
    known = [one for one in curve.values if math.isfinite(one)]
    return bool(known) and min(known) > 0.0


def _widths(history: History) -> dict[str, Any] | None:
    named = {name: total(history.series(prefix).values()) for name, prefix in WIDTHS.items()}
    curves = {name: curve for name, curve in named.items() if len(curve)}
    if not curves:
        return None
    top = max(value for curve in curves.values() for value in curve.values)
    return _chart(
        "Neurons, and how many are needed",
        "neurons in all hidden layers",
        "Neurons in all hidden layers at the end of every epoch, and those that would be left if neurons with one "
        "direction (cosine), or features in the span of others (span), were merged.",
        curves,
        range=[0, 1.06 * top],
        steps=True,
    )


def _kept(history: History) -> dict[str, Any] | None:
    curves = history.series("width/span/")
    if len(curves) < 2:
        return None
    top = max((value for curve in curves.values() for value in curve.values if math.isfinite(value)), default=1.0)
    caption = "Neurons that the span criterion would keep, layer by layer." + _depth(curves)
    return _chart(
        "Neurons needed in each layer", "neurons kept by span", caption, curves, range=[0, 1.06 * top], steps=True
    )


def _metrics(history: History) -> list[dict[str, Any]]:
    caption = "Logged by the training itself; its value at the end of every epoch."
    known = {"loss"} & history.curves.keys()  # the loss of the samples is shown already
    metrics = {name: curve for name, curve in history.metrics.items() if len(curve) > 1 and name not in known}
    return [_chart(name, name, caption, {name: curve}) for name, curve in metrics.items()]


def _marks(merges: Sequence[Record]) -> list[dict[str, Any]]:
    """A mark at every step at which something was merged, with what it was."""
    events: dict[int, list[Record]] = {}
    for record in merges:
        if record.step is not None:
            events.setdefault(record.step, []).append(record)
    return [{"step": step, "text": _told(records)} for step, records in sorted(events.items())]


def _told(records: Sequence[Record]) -> str:
    lines = [
        f"{one.layer}: {one.width[0]} → {one.width[1]} ({one.criterion})"
        for one in records
        if one.kind != "reconstruction"
    ]
    more = [] if len(lines) <= 8 else [f"and {len(lines) - 8} more"]
    return "\n".join([f"Epoch {records[0].epoch}, merged:", *lines[:8], *more])
