"""Models that people have: activations with σ(0) ≠ 0, feed-forward blocks of transformers; what is planted is found."""

import pytest
import torch
from torch import nn

import lightning_embed as le
from lightning_embed.operators import add_null_neurons, split_neuron
from tests.surgery.steps import mlp

EXACT = le.Criteria(linearization=None, condensation=1 - 1e-6, span=1e-6)


def put(linear, weight, bias):
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    linear.out_features, linear.in_features = weight.shape


@torch.no_grad()
def doubled(first, last, neurons):
    """Split neurons of a block in place: an even one in halves, an odd one with shares 3 and -2."""
    for neuron in range(neurons):
        w_in, b_in, w_out = split_neuron(first.weight, first.bias, last.weight, neuron, [0.5, -2.0][neuron % 2])
        put(first, w_in, b_in)
        put(last, w_out, last.bias)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus])
def test_null_neurons_whose_value_is_not_zero_at_zero(activation):
    value = activation()(torch.tensor(0.0)).item()
    narrow, wide = (mlp(3, 6, 5, 2, activation=activation) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    w_in, b_in, w_out, b_out = add_null_neurons(
        wide[0].weight.data, wide[0].bias.data, wide[2].weight.data, wide[2].bias.data, 2,
        output_weights=5 * torch.randn(5, 2, dtype=torch.float64, generator=generator),
        values=torch.full((2,), value, dtype=torch.float64),
    )  # fmt: skip
    put(wide[0], w_in, b_in)
    put(wide[2], w_out, b_out)
    x = torch.randn(400, 3, dtype=torch.float64, generator=generator)
    result = le.prune(wide, x, criteria=le.Criteria(None, None, None))
    assert [(one.layer, one.criterion, one.width) for one in result.records] == [("0", "null", (8, 6))]
    torch.testing.assert_close(result.model(5 * x), narrow(5 * x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus])
def test_saturated_constant_and_split_neurons_beyond_zero(activation):
    model = mlp(3, 6, 4, 2, activation=activation)
    with torch.no_grad():
        model[0].bias[5] = 40.0  # σ is 1 here, or the identity
        model[0].weight[5] = 0.0
        doubled(model[0], model[2], 2)
    x = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = le.prune(model, x, criteria=EXACT, tolerance=le.Tolerance(change=1e-5))
    assert result.model[0].out_features == 5
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus])
def test_layers_that_are_linear_about_a_value_other_than_zero(activation):
    model = mlp(3, 5, 5, 2, activation=activation)
    model[0].weight.data *= 1e-3
    x = torch.randn(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = le.prune(model, x, criteria=le.Criteria(0.99, None, None), tolerance=le.Tolerance(change=1e-3))
    assert isinstance(result.model[0], nn.Identity)
    assert isinstance(result.model[1], nn.Identity)
    scale = (model(x) - model(x).mean(dim=0)).std().item()
    assert (result.model(x) - model(x)).abs().max().item() < 0.01 * scale


def test_feed_forward_blocks_of_a_vision_transformer():
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3
    ).eval()
    nn.init.normal_(model.heads.head.weight)  # it begins at zero, where nothing shows
    names = [f"encoder.layers.encoder_layer_{number}.mlp.0" for number in range(2)]
    for name in names:
        block = model.get_submodule(name.removesuffix(".0"))
        doubled(block[0], block[3], 4)
    x = torch.randn(200, 3, 8, 8)
    result = le.prune(model, x, criteria=EXACT, tolerance=le.Tolerance(change=1e-3))
    assert [one.layer for one in result.before.layers] == names
    assert [result.model.get_submodule(name).out_features for name in names] == [12, 12]
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-3, atol=1e-3)
    left = dict(result.before.refused)
    assert left["encoder.layers.encoder_layer_0.mlp.3"].startswith("columns mix")  # the next layer norm does
    assert "multi_head_attention" in left["encoder.layers.encoder_layer_0.self_attention.out_proj"]


@pytest.mark.filterwarnings("ignore")  # what transformers has to say of itself
def test_feed_forward_blocks_of_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    names = [f"bert.encoder.layer.{number}.intermediate.dense" for number in range(2)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # the weights begin so small that every layer is linear
        for block in model.bert.encoder.layer:
            doubled(block.intermediate.dense, block.output.dense, 4)
    ids = torch.randint(0, 40, (200, 10))
    mask = torch.ones_like(ids)
    mask[::2, 7:] = 0
    batches = [{"input_ids": ids[i : i + 50], "attention_mask": mask[i : i + 50]} for i in range(0, 200, 50)]
    result = le.prune(
        model, batches, call=lambda batch: model(**batch), criteria=EXACT, tolerance=le.Tolerance(change=1e-3)
    )
    assert {*names, "bert.pooler.dense"} == {one.layer for one in result.before.layers}
    assert [result.model.get_submodule(name).out_features for name in names] == [12, 12]
    old, new = (one(input_ids=ids, attention_mask=mask).logits for one in (model, result.model))
    torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-3)
    assert dict(result.before.refused)["bert.encoder.layer.0.attention.self.query"].startswith("joined by")
