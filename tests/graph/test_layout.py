"""Where neurons are in tensors and weights, against torch's own computation."""

import pytest
import torch
from torch import nn

from lightning_embed.graph import Layout, from_input_rows, input_layout, input_rows, output_layout, patches
from lightning_embed.graph.layout import pads_zeros
from tests.tolerances import tolerance

CONVOLUTIONS = [
    nn.Conv1d(3, 4, 3),
    nn.Conv2d(3, 4, 3, padding=1),
    nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1), padding_mode="circular"),
    nn.Conv2d(3, 4, (5, 3), padding="same", padding_mode="reflect"),
    nn.Conv2d(3, 4, 3, padding="same", bias=False),
    nn.Conv3d(3, 4, (1, 2, 3), stride=2, padding=(0, 1, 1)),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_patches_times_weights_are_what_a_convolution_puts_out(conv):
    conv = conv.double()
    x = torch.randn(5, 3, *[7] * len(conv.kernel_size), dtype=torch.float64)
    output = conv(x)
    whole = output_layout(conv).rows(output)
    rows = torch.randperm(len(whole))[:50]
    found = patches(x, conv, output, rows) @ conv.weight.flatten(1).T
    found = found if conv.bias is None else found + conv.bias
    torch.testing.assert_close(found, whole[rows], **tolerance(torch.float64, 10.0))


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_consumers_are_linear_in_each_neuron(conv):
    """Doubling one channel adds what its weights and its map make up."""
    conv = conv.double()
    x = torch.randn(2, 3, *[7] * len(conv.kernel_size), dtype=torch.float64)
    layout = input_layout(conv, 3)
    only = torch.zeros_like(x)
    only[:, 1] = layout.select(x, torch.tensor([1]))[:, 0]
    rows = input_rows(conv.weight, 3)
    rows[:, [0, 2]] = 0.0
    muted = from_input_rows(rows, conv.weight)
    alone = conv(x + only) - conv(x)
    conv.weight.data, bias = muted, conv.bias
    conv.bias = None
    torch.testing.assert_close(conv(x), alone, **tolerance(torch.float64, 10.0))
    conv.bias = bias


@pytest.mark.parametrize("block", [1, 3])
def test_rows_select_and_entries_agree(block):
    layout = Layout.blocks(-1, 4, block)
    value = torch.randn(2, 5, 4 * block)
    kept = torch.tensor([0, 3])
    assert torch.equal(layout.after(kept).rows(layout.select(value, kept)), layout.rows(value)[:, kept])
    assert torch.equal(value[..., layout.entries(kept)], layout.select(value, kept))


@pytest.mark.parametrize(
    ("consumer", "pads"),
    [
        (nn.Linear(2, 2), False),
        (nn.Conv2d(2, 2, 3), False),
        (nn.Conv2d(2, 2, 3, padding="valid"), False),
        (nn.Conv2d(2, 2, 3, padding=(0, 1)), True),
        (nn.Conv2d(2, 2, 3, padding="same"), True),
        (nn.Conv2d(2, 2, 1, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"), False),
    ],
    ids=str,
)
def test_who_reads_zeros_that_are_no_values(consumer, pads):
    assert pads_zeros(consumer) is pads
