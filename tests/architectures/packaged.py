"""Architectures as transformers and torchvision build them, small, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.architectures.architecture import architecture, images

VOCABULARY, TOKENS = 100, 12


def tokens(samples: int) -> dict[str, Any]:
    """Some sequences end before the others, as in a padded batch."""
    ids = torch.randint(VOCABULARY, (samples, TOKENS))
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (samples, 1))
    return {"input_ids": ids, "attention_mask": (torch.arange(TOKENS) < lengths).long()}


def _logits(made: Any) -> Any:
    return made.logits


def _spread(net: nn.Module) -> nn.Module:
    """Weights of usual size in place of 0.02, at which every activation is linear on random inputs."""
    for name, one in net.named_parameters():
        if one.dim() > 1 and "embed" not in name and "wte" not in name and "wpe" not in name:
            nn.init.normal_(one, std=1.5 / min(one.shape[:2]) ** 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(one, std=0.2)
    return net


@architecture("Llama", tokens, "lm_head", output=_logits, package="transformers")
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return _spread(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                use_cache=False,
                attn_implementation="sdpa",
            )
        )
    )


@architecture("GPT-2", tokens, "lm_head", output=_logits, package="transformers")
def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=64,
        n_layer=3,
        n_head=4,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _spread(GPT2LMHeadModel(config))


@architecture("BERT", tokens, "classifier", output=_logits, package="transformers")
def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=32,
        num_labels=3,
    )
    return _spread(BertForSequenceClassification(config))


@architecture("ViT", lambda n: {"pixel_values": images(32)(n)}, "classifier", output=_logits, package="transformers")
def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    return _spread(ViTForImageClassification(config))


@architecture("Swin", images(32), "head", package="torchvision")
def swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        patch_size=[2, 2],
        embed_dim=32,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        stochastic_depth_prob=0.0,
        num_classes=10,
    )


@architecture("ConvNeXt", images(32), "classifier.2", package="torchvision")
def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    setting = [CNBlockConfig(24, 48, 2), CNBlockConfig(48, 96, 2), CNBlockConfig(96, None, 2)]
    return ConvNeXt(setting, layer_scale=1.0, num_classes=10)


def _quarter(block: type[nn.Module], layers: list[int]) -> nn.Module:
    """torchvision's ResNet with a quarter of the channels behind the stem."""
    from torchvision.models.resnet import ResNet

    class Quarter(ResNet):
        def _make_layer(self, block: Any, planes: int, *rest: Any, **options: Any) -> nn.Sequential:
            return super()._make_layer(block, planes // 4, *rest, **options)

    net = Quarter(block, layers)
    net.fc = nn.Linear(512 // 4 * block.expansion, 10)
    return net


@architecture("ResNet-18", images(32), "fc", package="torchvision")
def resnet18() -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    return _quarter(BasicBlock, [2, 2, 2, 2])


@architecture("ResNet-50", images(32), "fc", package="torchvision")
def resnet50() -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    return _quarter(Bottleneck, [3, 4, 6, 3])


@architecture("MobileNetV3-small", images(32), "classifier.3", package="torchvision", samples=1024)
def mobilenet() -> nn.Module:
    from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf

    setting, last = _mobilenet_v3_conf("mobilenet_v3_small", width_mult=0.5)
    return MobileNetV3(setting, last // 4, num_classes=10)


@architecture("EfficientNet-B0", images(32), "classifier.1", package="torchvision", samples=1024)
def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf

    setting, last = _efficientnet_conf("efficientnet_b0", width_mult=0.25, depth_mult=1.0)
    return EfficientNet(setting, dropout=0.2, stochastic_depth_prob=0.0, num_classes=10, last_channel=last)


@architecture("DenseNet-121", images(32), "classifier", package="torchvision")
def densenet() -> nn.Module:
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=8, block_config=(6, 12, 24, 16), num_init_features=16, num_classes=10)
