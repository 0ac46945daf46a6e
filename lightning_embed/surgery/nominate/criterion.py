"""What a criterion is: it looks at a hidden layer and nominates steps, or says why there is none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_embed.graph import Graph, HiddenLayer, Reason
from lightning_embed.statistics import Span, exchange, refit, span_order
from lightning_embed.statistics.exchange import too_wide
from lightning_embed.surgery.change.neuron_merge import Fit, NeuronMerge
from lightning_embed.surgery.change.step import Step
from lightning_embed.surgery.nominate.features import Features
from lightning_embed.surgery.nominate.weights import condensation_vectors, consumer_weight

Stage = Literal["constants", "layers", "neurons"]


@dataclass(frozen=True, eq=False)
class LayerView:
    """A hidden layer as a criterion sees it. Nothing here may be changed.

    Attributes:
        model: the model as it is now.
        graph: what was observed of it.
        layer: the hidden layer.
        features: what it computes on the calibration data.
        gradients: derivatives of the outputs by what each reader reads; only for criteria that ask for them.
        targets: for each reader the features before the first merge, where merges elsewhere have changed them.
    """

    model: nn.Module
    graph: Graph
    layer: HiddenLayer
    features: Features
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def consumer_weights(self) -> tuple[Tensor, ...]:
        """For every value that is read the weights of its readers, one below the other: (sum of fan_outs, width)."""
        return tuple(consumer_weight(self.model, self.layer, readers) for readers in self.features.readers)

    @cached_property
    def input_weights(self) -> tuple[Tensor, ...] | None:
        """Augmented input weights [w, b], (width, fan_in + 1), of every producer; None where they tell no features."""
        vectors = condensation_vectors(self.model, self.layer)
        return None if vectors is None else tuple(vectors)

    @property
    def intercepts(self) -> tuple[bool, ...]:
        """For every value that is read, whether the biases of all its readers can stand for a constant."""
        known = self.layer.intercepts
        return tuple(all(known.get(reader, True) for reader in readers) for readers in self.features.readers)

    def order(self, tolerance: float, most: int | None = None) -> Span:
        """The neurons by what each adds to what the readers receive (see `lightning_embed.statistics.span_order`)."""
        return span_order(self.features.posts, self.consumer_weights, tolerance, intercept=self.intercepts, most=most)

    def exchanges(self, kept: int) -> bool:
        """Whether a choice of so many neurons would be improved by swaps; of very wide layers it is not."""
        return not too_wide(self.layer.width, kept, [len(weight) for weight in self.consumer_weights])

    def exchanged(self, kept: Sequence[int]) -> tuple[int, ...]:
        """A choice of neurons, improved by swaps (see `lightning_embed.statistics.exchange`)."""
        return exchange(self.features.posts, self.consumer_weights, kept, intercept=self.intercepts)

    def keep(self, kept: Sequence[int], criterion: str, evidence: Mapping[str, Any]) -> NeuronMerge:
        """The step that keeps some neurons and refits the readers' weights for the others.

        Args:
            kept: numbers of the neurons that stay.
            criterion: name of the criterion.
            evidence: what is written into the record, such as the values compared.

        """
        kept = sorted(kept)
        fits = []
        ways = zip(self.features.posts, self.features.readers, self.intercepts, strict=True)
        for post, readers, intercept in ways:
            for target, of_target in self._by_target(readers):
                mix, shift = refit(post, kept, intercept=intercept, target=target)
                fits.append(Fit(of_target, mix.cpu().double(), shift.cpu().double()))
        return self.merge(kept, tuple(fits), criterion, evidence)

    def _by_target(self, readers: tuple[str, ...]) -> list[tuple[Tensor | None, tuple[str, ...]]]:
        """Those that read equal values now, apart where they did not at first."""
        groups: list[tuple[Tensor | None, tuple[str, ...]]] = []
        for reader in readers:
            target = self.targets.get(reader)
            for place, (other, names) in enumerate(groups):
                if target is other or (target is not None and other is not None and torch.equal(target, other)):
                    groups[place] = (other, (*names, reader))
                    break
            else:
                groups.append((target, (reader,)))
        return groups

    def merge(
        self, kept: Sequence[int], fits: tuple[Fit, ...], criterion: str, evidence: Mapping[str, Any]
    ) -> NeuronMerge:
        """The step that keeps some neurons, with fits of your own."""
        layer = self.layer
        return NeuronMerge(
            layer=layer.name,
            producers=layer.producers,
            reads=layer.reads,
            per_neuron=layer.per_neuron,
            kept=tuple(kept),
            fits=fits,
            criterion=criterion,
            evidence=evidence,
        )


class Criterion(ABC):
    """Nominates merges of a hidden layer; the tolerance decides.

    A criterion of your own is a class with a `name` and a `nominate`, handed over as `Criteria(extra=(Mine(),))`. It is
    tried beside the built-in ones: for every layer the boldest candidate comes first.

    Attributes:
        name: what it is called in records and metrics.
        stage: when it has its turn: "constants" before all others, then "layers" (it nominates whole layers to be
            merged away), then "neurons".
        gradients: whether it looks at `LayerView.gradients`, which take a backward pass.

    >>> class Loudest(Criterion):
    ...     name = "loudest"
    ...     def nominate(self, view):
    ...         size = view.features.post.abs().mean(dim=0)
    ...         kept = (size > 0.1 * size.max()).nonzero().flatten().tolist()
    ...         return [view.keep(kept, self.name, {"share": 0.1})]
    >>> from lightning_embed import Criteria
    >>> Criteria(condensation=None, span=None, extra=(Loudest(),)).chosen()[-1].name
    'loudest'
    """

    name: str
    stage: ClassVar[Stage] = "neurons"
    gradients: ClassVar[bool] = False

    @abstractmethod
    def nominate(self, view: LayerView) -> Sequence[Step] | Reason:
        """Candidates for one layer, the boldest first; empty where it sees none, or the reason why it cannot tell."""

    def kept_width(self, view: LayerView) -> int | None:
        """How many neurons it would keep; None where that is no question for it. Asked for by measurements."""
        del view
        return None
