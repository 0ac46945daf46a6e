"""Layers whose weights cannot be cut are left alone one by one, with the reason; the rest is merged."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks

import lightning_embed as le
from tests.surgery.steps import mlp


def data(samples=300):
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(1))


def doubled(activation=nn.Tanh):
    """3-8-8-8-2, of which the first layer holds every neuron twice."""
    model = mlp(3, 8, 8, 8, 2, activation=activation, dtype=torch.float32)
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    return model


COPIES = le.Criteria(linearization=None, condensation=1 - 1e-6, span=None)


def pruned(model, **left):
    """The first layer is merged all the same; others are left alone for the given reasons, which are explained."""
    result = le.prune(model, data(), criteria=COPIES)
    assert result.model[0].out_features == 4
    torch.testing.assert_close(result.model(data()), model(data()), rtol=1e-4, atol=1e-4)
    refused = dict(result.before.refused)
    for name, reason in left.items():
        assert refused[name.removeprefix("_")] == reason
        assert reason in str(result)
    return result


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz:")  # torch announces that it moves to another package
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered:")
def test_quantized_layers():
    model = doubled()
    model[4] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[4]), {nn.Linear})[0]
    result = pruned(model, _4="weight not dense (a quantized Linear)")
    assert "merge first, quantize or sparsify then" in str(result)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_weights():
    model = doubled()
    kept = torch.where(model[4].weight.abs() > 0.2, model[4].weight, 0.0).detach()
    model[4].weight = nn.Parameter(kept.to_sparse_csr())
    result = pruned(model, _4="weight not dense (weight is sparse_csr)", _2="weight not dense (of its consumer '4')")
    assert result.model[4].weight.layout == torch.sparse_csr
    assert result.model[4].weight is not model[4].weight


class Coded(torch.Tensor):
    """Stands for the tensors in which libraries keep quantized weights."""

    def __deepcopy__(self, memo):
        return self.detach().clone().as_subclass(Coded).requires_grad_(self.requires_grad)


def test_weights_of_a_tensor_class():
    model = doubled()
    model[4].weight = nn.Parameter(model[4].weight.detach().as_subclass(Coded))
    pruned(model, _4="weight not dense (weight is a Coded)")


def test_pruning_masks():
    model = doubled()
    masks.random_unstructured(model[4], "weight", 0.3)
    pruned(model, _4="weight computed (weight)", _2="weight computed (of its consumer '4')")


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, dtype=torch.complex64), nn.Linear(4, 3, dtype=torch.complex64)

    def forward(self, x):
        return x + self.last(torch.tanh(self.first(x.to(torch.complex64)))).abs()


def test_complex_layers_and_layers_without_neurons():
    torch.manual_seed(0)
    model = doubled()
    model[1] = nn.Sequential(model[1])
    whole = nn.Sequential(Complex(), model)
    result = le.prune(whole, data(), criteria=COPIES)
    assert result.model[1][0].out_features == 4
    assert dict(result.before.refused)["0.first"] == "not measurable (4 neurons of torch.complex64)"
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2))
    assert le.measure(empty, data()).refused[0] == ("0", "not measurable (0 neurons of torch.float32)")


def test_complex_outputs_are_refused_with_a_way_out():
    model = nn.Sequential(doubled(), nn.Linear(2, 2))
    run = {"call": lambda x: torch.complex(model(x), model(x))}
    with pytest.raises(le.InputError, match=r"torch.complex64.*view_as_real"):
        le.prune(model, data(), **run)
    assert le.prune(model, data(), **run, output=torch.view_as_real, criteria=COPIES).model[0][0].out_features == 4


class Partly(nn.Module):
    """Has layers without a shape beside the ones that it calls."""

    def __init__(self):
        super().__init__()
        self.net, self.head, self.norm = doubled(), nn.LazyLinear(3), nn.LazyBatchNorm1d()
        self.use = False

    def forward(self, x):
        return self.norm(self.head(self.net(x))) if self.use else self.net(x)


def test_lazy_layers_that_no_call_uses():
    model = Partly()
    result = le.prune(model, data(), criteria=COPIES)
    assert result.model.net[0].out_features == 4
    assert dict(result.before.refused)["head"] == "lazy"
    assert "call the model once" in str(result)
    assert isinstance(model.head, nn.LazyLinear)
    model.use = result.model.use = True
    with pytest.raises(le.InputError, match="'head' is lazy"):
        le.prune(model, data())
    assert isinstance(model.head, nn.LazyLinear)
    torch.manual_seed(0)
    model(data())  # what was lazy can be called afterwards, in the given model and in the result
    result.model(data())
    assert type(model.head) is type(result.model.head) is nn.Linear
    assert dict(le.measure(model, data()).refused)["head"] == "is the model's output"


def test_frozen_models_are_pruned_as_trained_ones():
    trained, frozen = doubled(), doubled().requires_grad_(False)
    results = [le.prune(one, data()) for one in (trained, frozen)]
    assert results[0].plan == results[1].plan
    assert len(results[0].plan) > 0
    assert not any(one.requires_grad for one in results[1].model.parameters())


def test_frozen_layers_among_trained_ones():
    model = mlp(3, 8, 8, 8, 2, activation=nn.Identity, dtype=torch.float32)
    model[2].requires_grad_(False)
    result = le.prune(model, data(), criteria=le.Criteria(0.99, None, None))
    refused = {one.layer: one.reason for one in result.records if not one.done}
    assert set(refused.values()) == {"frozen beside trainable"}
    assert {one.layer for one in result.records if one.done and one.kind == "layer"} == {"4"}
    assert "freeze or unfreeze both" in str(result)
    torch.testing.assert_close(result.model(data()), model(data()), rtol=1e-4, atol=1e-4)
