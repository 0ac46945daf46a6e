"""The step that keeps some neurons of a layer and rewrites its readers for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_embed.errors import InputError
from lightning_embed.graph import (
    Layer,
    Layout,
    columns_of,
    from_input_rows,
    input_layout,
    input_rows,
    kind_of,
    output_weight,
    stored_weight,
)
from lightning_embed.surgery.change.optimizer import Sliced
from lightning_embed.surgery.change.step import (
    Applied,
    Step,
    evidence_from,
    layer_of,
    module_of,
    plain,
    require,
    tensor_from,
)
from lightning_embed.surgery.persist.checkpoint import Attachment


@dataclass(frozen=True, eq=False)
class Fit:
    """How the values of all neurons follow from those of the kept ones, in what some readers read: mix · φ + shift.

    Attributes:
        readers: names of those that read these values.
        mix: shape (width, kept).
        shift: shape (width,).
    """

    readers: tuple[str, ...]
    mix: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class NeuronMerge(Step):
    """Keep some neurons of a layer and rewrite its readers for the others.

    The features φ of all neurons are taken to be mix · φ_kept + shift, so W₂′ = W₂ · mix, b₂′ = b₂ + W₂ · shift. A
    neuron is a class of units: rows of one or several producers, columns of one or several readers, entries of tensors
    between. What belongs to no unit (inputs beside the layer, other layers) stays bit for bit.

    Attributes:
        layer: name of the hidden layer.
        producers: layers that make the neurons, and where these are in what they put out.
        reads: layers that read them, and where; None: in equal blocks that fill the whole input.
        per_neuron: (tensor name, where) of parameters and buffers in between that are cut with the neurons.
        kept: increasing numbers of the neurons that stay.
        fits: one for all readers that read equal values.
        criterion: name of the criterion that nominated it, such as "null", "condensation", "span" or "size".
        evidence: what nominated it.
        scaled: for producers of several factors, which of their entries scale with the neuron; all where it is left
            out. The others (gates) are equal in all copies of a neuron, whatever the copies' sizes.
    """

    kind: ClassVar[str] = "neurons"

    layer: str
    producers: Mapping[str, Layout]
    reads: Mapping[str, Layout | None]
    per_neuron: tuple[tuple[str, Layout], ...]
    kept: tuple[int, ...]
    fits: tuple[Fit, ...]
    criterion: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    scaled: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Number of neurons before."""
        return int(self.mix.shape[0])

    @property
    def mix(self) -> Tensor:
        """That of the first fit."""
        return self.fits[0].mix

    @property
    def shift(self) -> Tensor:
        """That of the first fit."""
        return self.fits[0].shift

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of the layers that read it."""
        return tuple(self.reads)

    @property
    def widths(self) -> tuple[int, int]:
        """Neurons before and after."""
        return self.width, len(self.kept)

    @property
    def cuts(self) -> bool:
        """Whether it leaves some neurons and not all."""
        return 0 < len(self.kept) < self.width

    def rows_that_stay(self, model: nn.Module) -> dict[str, Tensor]:
        """For every producer the rows that stay, in a model to which the step has not been applied yet."""
        kept = torch.tensor(self.kept)
        return {
            name: layout.staying(len(output_weight(layer_of(model, name))), kept)
            for name, layout in self.producers.items()
        }

    def what(self) -> str:
        """What it does, in a few words."""
        verb = "drop null neurons of" if self.criterion == "null" else "merge neurons of"
        others = [name for name in self.producers if name not in self.layer]
        beside = f" (with {', '.join(others)})" if others else ""
        return f"{verb} {self.layer}{beside}: {self.width} → {len(self.kept)}"

    def to_dict(self) -> dict[str, Any]:
        """The step as lists, numbers, strings and None (for NaN)."""
        written: dict[str, Any] = plain(
            {
                "kind": self.kind,
                "layer": self.layer,
                "producers": {name: layout.to_plain() for name, layout in self.producers.items()},
                "reads": {name: layout and layout.to_plain() for name, layout in self.reads.items()},
                "per_neuron": [(name, layout.to_plain()) for name, layout in self.per_neuron],
                "kept": self.kept,
                "fits": [vars(fit) for fit in self.fits],
                "criterion": self.criterion,
                "evidence": self.evidence,
                "scaled": self.scaled,
            }
        )
        return written

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeuronMerge:
        """The inverse of `to_dict`; a plan of the first format had one producer, whose neurons filled every tensor."""
        kept = tuple(data["kept"])
        if "fits" not in data:
            width = len(data["shift"])
            producers = {data["layer"]: Layout.blocks(-1, width)}
            reads: dict[str, Layout | None] = dict.fromkeys(data["consumers"])
            per_neuron = tuple((name, Layout.blocks(dim, width)) for name, dim in data["per_neuron"])
            fits = [{"readers": data["consumers"], "mix": data["mix"], "shift": data["shift"]}]
        else:
            producers = {name: Layout.from_plain(layout) for name, layout in data["producers"].items()}
            reads = {name: layout and Layout.from_plain(layout) for name, layout in data["reads"].items()}
            per_neuron = tuple((name, Layout.from_plain(layout)) for name, layout in data["per_neuron"])
            fits = data["fits"]
        return cls(
            layer=data["layer"],
            producers=producers,
            reads=reads,
            per_neuron=per_neuron,
            kept=kept,
            fits=tuple(
                Fit(
                    tuple(fit["readers"]),
                    tensor_from(fit["mix"]).reshape(len(fit["shift"]), len(kept)),
                    tensor_from(fit["shift"]),
                )
                for fit in fits
            ),
            criterion=data["criterion"],
            evidence=evidence_from(data["evidence"]),
            scaled={name: tuple(entries) for name, entries in data.get("scaled", {}).items()},
        )

    def carry_out(self, model: nn.Module, applied: Applied, attachment: Attachment) -> None:
        """Cut and refit columns, then cut rows: a layer may read and make neurons of one site."""
        kept = torch.tensor(self.kept)
        self._check(model, kept)
        columns = [
            (name, *_without(name, layer_of(model, name), self._layout(model, name), kept, fit))
            for fit in self.fits
            for name in fit.readers
        ]
        for name, weight, bias in columns:
            consumer, layout = layer_of(model, name), self._layout(model, name)
            attachment.remember(model, name)
            old, stays = consumer.weight, layout.staying(output_weight(consumer).shape[1], kept)
            applied.edits.set_tensor(consumer, "weight", stored_weight(consumer, weight))
            applied.edits.sync_counts(consumer)
            applied.moves.append(Sliced(old, consumer.weight, stays, 0 if _is_transposed(consumer) else 1))
            applied.set_bias(consumer, bias)
        for name, layout in self.producers.items():
            attachment.remember(model, name)
            self._cut_rows(layer_of(model, name), name, layout, kept, applied)
        for qualified, layout in self.per_neuron:
            owner_name, _, tensor = qualified.rpartition(".")
            attachment.remember(model, owner_name)
            owner = module_of(model, owner_name)
            old = getattr(owner, tensor)
            stays = layout.staying(old.shape[layout.dim], kept)
            applied.edits.set_tensor(owner, tensor, old.detach().index_select(layout.dim, stays.to(old.device)))
            if isinstance(old, nn.Parameter):
                applied.moves.append(Sliced(old, getattr(owner, tensor), stays, layout.dim))
            applied.edits.sync_counts(owner)

    def _layout(self, model: nn.Module, reader: str) -> Layout:
        """Where the neurons are among the columns of a reader's weight (rows, columns, …)."""
        layout = self.reads[reader]
        return columns_of(input_layout(layer_of(model, reader), self.width) if layout is None else layout)

    def _check(self, model: nn.Module, kept: Tensor) -> None:
        """Refuse what does not fit the model, before anything is changed."""
        width = self.width
        chosen = kept.tolist()
        require(
            bool(chosen) and sorted(set(chosen)) == chosen and chosen[-1] < width, self.layer, "kept indices are off"
        )
        read = [name for fit in self.fits for name in fit.readers]
        require(sorted(read) == sorted(self.reads), self.layer, f"it is read by {', '.join(self.reads)}")
        for fit in self.fits:
            shapes = (fit.mix.shape, fit.shift.shape)
            require(shapes == ((width, len(chosen)), (width,)), self.layer, f"the plan's width is {width}")
        for name, layout in self.producers.items():
            rows = len(output_weight(layer_of(model, name)))
            whole = len(self.producers) == 1 and name == self.layer and layout == Layout.blocks(layout.dim, width)
            require(not whole or rows == width, name, f"its width is {rows}, the plan's {width}")
            _require_places(layout, width, rows, name)
        for name in self.reads:
            inputs = output_weight(layer_of(model, name)).shape[1]
            whole = self.reads[name] is None
            require(not whole or (inputs > 0 and inputs % width == 0), name, f"it reads {inputs} inputs, not {width}")
            _require_places(self._layout(model, name), width, inputs, name)
        for qualified, layout in self.per_neuron:
            owner_name, _, tensor = qualified.rpartition(".")
            value = getattr(module_of(model, owner_name), tensor, None)
            if not isinstance(value, Tensor) or value.dim() <= layout.dim:
                raise InputError(
                    f"The plan cuts {qualified!r}, which is no such tensor in this model; propose it anew."
                )
            _require_places(layout, width, value.shape[layout.dim], qualified)

    def _cut_rows(self, layer: Layer, name: str, layout: Layout, kept: Tensor, applied: Applied) -> None:
        weight = output_weight(layer).detach()
        stays = layout.staying(len(weight), kept)
        cut = {"weight": stored_weight(layer, weight.index_select(0, stays.to(weight.device)))}
        if getattr(layer, "bias", None) is not None:
            cut["bias"] = layer.bias.detach().index_select(0, stays.to(weight.device))  # type: ignore[union-attr]  # not None
        for tensor, value in cut.items():
            old = getattr(layer, tensor)
            applied.edits.set_tensor(layer, tensor, value)
            dim = 1 if tensor == "weight" and _is_transposed(layer) else 0
            scaled = tuple(self.scaled.get(name, (True,) * layout.size))
            applied.moves.append(
                Sliced(old, getattr(layer, tensor), stays, dim, self.mix, layout, layout.after(kept), scaled)
            )
        applied.edits.sync_counts(layer)


def _is_transposed(layer: nn.Module) -> bool:
    kind = kind_of(layer)
    return kind is not None and kind.transposed


def _require_places(layout: Layout, width: int, size: int, name: str) -> None:
    assert layout.index is not None
    require(layout.units == width, name, f"it holds {layout.units} units, not {width}")
    require(not layout.index.numel() or int(layout.index.max()) < size, name, f"it has {size} entries")


def _without(name: str, consumer: Layer, layout: Layout, kept: Tensor, fit: Fit) -> tuple[Tensor, Tensor | None]:
    """Weight (rows, columns, …) and bias of a reader for the kept neurons.

    Every tap of a kernel is an output of its own to mix. Columns that belong to no neuron are taken over.
    """
    whole = output_weight(consumer).detach()
    rows = input_rows(whole, layout).double()
    mix, shift = fit.mix.to(rows.device), fit.shift.to(rows.device)
    weight = from_input_rows(rows @ mix, layout.select(whole, kept), layout.after(kept))
    bias = getattr(consumer, "bias", None)
    bias = None if bias is None else bias.detach().double()
    added = (rows @ shift).reshape(len(whole), -1).sum(dim=1)
    if bias is not None or bool(added.any()):
        bias = added if bias is None else bias + added
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and not torch.isfinite(value.to(whole.dtype)).all():
            raise InputError(f"The merged {what} of {name!r} is not finite in {whole.dtype}.")
    return weight, bias


def one_fit(readers: Sequence[str], mix: Tensor, shift: Tensor) -> tuple[Fit, ...]:
    """The fits of a layer whose readers all read the same values."""
    return (Fit(tuple(readers), mix.double(), shift.double()),)
