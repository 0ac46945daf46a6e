"""The fixed list of reasons for which a layer, or its neurons, may not be merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

REASONS: dict[str, str] = {
    "joined by": "the layer's values meet other data in these functions (a residual, gate or concatenation), so it "
    "cannot be taken out, and its neurons go only together with what they meet",
    "is the model's output": "what the layer computes is returned by the recorded calls, so its neurons are outputs",
    "columns mix": "what lies between the layer and its consumers (softmax, layer norm) lets one neuron change another",
    "rows mix": "what lies between the layer and its consumers lets one sample or position change another; its neurons "
    "may merge, but it cannot be taken out",
    "rows differ": "what lies between does something else for each sample or position (a positional table); its "
    "neurons may merge, but it cannot be taken out",
    "changes size": "a neuron is several values of the layer or of its consumer's input; they may merge, but the layer "
    "cannot be taken out",
    "cannot be cut": "what lies between cannot be re-executed on fewer neurons, as when a tensor with one value per "
    "neuron is neither a parameter nor a buffer; register it as a buffer, or take widths from the tensor's shape",
    "random in eval": "re-executing what lies between gives other values each time, in eval mode too",
    "weight computed": "the weight is no plain parameter (weight norm, parametrization, pruning mask); "
    "remove the parametrization first",
    "weight not dense": "the weight is quantized or sparse, so no rows or columns can be cut from it; merge first, "
    "quantize or sparsify then",
    "weight sharded": "the weight, of the layer or of one that reads it, is spread over processes, so the layer is "
    "only measured; prune it afterwards, in one process",
    "lazy": "the layer has no shape yet; call the model once on a batch that uses it",
    "not measurable": "the layer computes complex or distributed numbers or has no neuron at all, of which there is no "
    "correlation",
    "weight shared": "the weight or bias is held by another module too, or used by another function",
    "forward overridden": "the class or instance replaces the forward of torch's layer, so what it computes is unknown",
    "convolution": "two convolutions in a row make no convolution of the same kernel; their channels may merge, though",
    "no batch dimension": "the convolution is called on a single sample; give it a leading dimension",
    "consumer shared": "the consuming layer is called on other data too, which are not cut with it",
    "calls disagree": "the layer is called several times and different things lie behind it",
    "differs in train mode": "in train mode other functions consume the layer than in eval mode",
    "value read by code": "the program reads a value of the layer as a number (if, item, numpy), so what it does next "
    "cannot be known; use torch.where or move the reading out of forward",
    "lost from sight in": "code that torch cannot show (an extension, a scripted module) handles the values",
    "activation in code": "a function call or operator lies between, which cannot be taken out; use a module for it",
    "activation shared": "a module between is used elsewhere too; give each layer a module of its own",
    "batch-norm statistics lag": "running statistics have not settled yet; train on, or update them",
    "consumers differ": "those that read the layer read different values of it, so no one fit of the layer serves them "
    "all; its neurons may merge",
    "values not finite": "the layer computes NaN or infinite values on the calibration data; look at data and weights",
    "too few samples": "the calibration data are too few to fit what would replace the merged part; give more",
    "frozen beside trainable": "the layer and its consumer would become one weight, but only one of them is trained; "
    "freeze or unfreeze both",
    "not trained": "no optimizer of the Trainer holds the weights of the layer or of one that reads it, or they are "
    "frozen; prune it offline, or train it",
    "excluded": "exclude= names the layer or one that reads it, or include= leaves it out",
    "no consumer": "some of what is computed from the layer is used by no Linear or convolution that was seen",
    "never called": "the recorded calls do not use it; record a step that does",
}


@dataclass(frozen=True)
class Reason:
    """Why something is refused: a key of `REASONS` and what it refers to here.

    >>> str(Reason("joined by", "cat")), str(Reason("columns mix"))
    ('joined by cat', 'columns mix')
    """

    key: str
    detail: str = ""

    def __post_init__(self) -> None:
        assert self.key in REASONS, self.key

    def __str__(self) -> str:
        if not self.detail:
            return self.key
        return f"{self.key} {self.detail}" if self.key.endswith((" by", " in")) else f"{self.key} ({self.detail})"


def legend(reasons: Iterable[str]) -> list[str]:
    """What reasons, as they are printed, mean and what can be done: a line for every kind that needs one.

    >>> legend(["weight shared (it is used by linear)", "is the model's output", "weight shared"])
    ['weight shared: the weight or bias is held by another module too, or used by another function']
    """
    found = {key for text in reasons for key in REASONS if text.startswith(key)} - {"is the model's output"}
    return [f"{key}: {meaning}" for key, meaning in REASONS.items() if key in found]
