"""Deal a size out over the hidden layers: what every layer costs at every width, and in which order neurons go."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_embed.graph import HiddenLayer
from lightning_embed.statistics import span_order
from lightning_embed.surgery.nominate.counting import Count
from lightning_embed.surgery.nominate.features import Features, output_gradients, summed
from lightning_embed.tape import Tape

STEP = 0.03  # share of a layer's neurons that is taken away at a time
PARTS = 512  # of which an equal share is a number


@dataclass(frozen=True)
class Dealt:
    """Widths of the hidden layers.

    Attributes:
        widths: by name of the layer.
        count: what is left of what is counted.
        change: foretold squared change of the outputs, per sample.
    """

    widths: Mapping[str, int]
    count: float
    change: float


def path(costs: Mapping[str, Tensor], count: Count) -> Iterator[Dealt]:
    r"""Smaller and smaller networks, dealt out so that the outputs change least for what is saved.

    From the layer where it costs least per unit of what is counted a few neurons at a time are taken away, until every
    layer has one.

    Args:
        costs: for every layer the foretold squared change at every width from 0 on, shape (width + 1,).
        count: what is counted, as a function of the widths.
    """
    widths = {name: len(of_width) - 1 for name, of_width in costs.items()}
    left = count(widths)
    yield Dealt(dict(widths), left, 0.0)

    def cut(name: str) -> tuple[float, float, str, int, float]:
        """Price of the next cut of a layer: change per unit saved; of free ones the largest saving comes first."""
        width = widths[name] - max(1, math.floor(STEP * widths[name]))
        saved = count.saving(widths, name, width)
        price = float(costs[name][width] - costs[name][widths[name]]) / max(saved, 1e-9)
        return price, -saved, name, width, saved

    waiting = [cut(name) for name, width in widths.items() if width > 1]
    heapq.heapify(waiting)
    while waiting:
        name = heapq.heappop(waiting)[2]
        now = cut(name)  # a cut elsewhere may have made it dearer: then others have their turn first
        if waiting and now > waiting[0]:
            heapq.heappush(waiting, now)
            continue
        *_, width, saved = now
        widths[name], left = width, left - saved
        yield Dealt(dict(widths), left, sum(float(costs[one][widths[one]]) for one in costs))
        if width > 1:
            heapq.heappush(waiting, cut(name))


def foretold_costs(
    model: nn.Module, layers: Sequence[HiddenLayer], features: Mapping[str, Features], tapes: Sequence[Tape]
) -> dict[str, Tensor]:
    r"""Foretold squared change of the outputs, per sample, at every width of every layer.

    To first order leaving k neurons in layer l changes the outputs by $e_l(k) = \mathrm{tr}\,M_l R_l(k)$, where R is
    the covariance of what the k best features leave (see `span_order`) and M the second moment of the outputs'
    derivative by the features; the changes of several layers are taken to add up.
    """
    gradients = output_gradients(model, layers, tapes, seed=0)
    samples = max(1, sum(tape.samples for tape in tapes))
    return {layer.name: _costs(features[layer.name], gradients[layer.name], samples) for layer in layers}


def _costs(features: Features, gradients: Mapping[str, Tensor], samples: int) -> Tensor:
    rows = [summed(gradients, readers) / math.sqrt(samples) for readers in features.readers]
    order = span_order(features.posts, rows, 0.0, shares=False)
    total = torch.zeros((), dtype=torch.float64)
    for post, row in zip(features.posts, rows, strict=True):
        centred = (post.double() - post.double().mean(dim=0)) @ row.T
        total = total.to(post.device) + centred.square().sum() / len(post)
    costs = torch.zeros(features.post.shape[1] + 1, dtype=torch.float64)
    costs[0] = total
    costs[1 : len(order.kept) + 1] = order.residual.cpu().square() * total.cpu()
    return costs


def even_widths(layers: Sequence[HiddenLayer]) -> list[Mapping[str, int]]:
    """Smaller and smaller networks with the same share of every layer's neurons."""
    shares = [{layer.name: max(1, layer.width * part // PARTS) for layer in layers} for part in range(PARTS, 0, -1)]
    return [widths for number, widths in enumerate(shares) if not number or widths != shares[number - 1]]
