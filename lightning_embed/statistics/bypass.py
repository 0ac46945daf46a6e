"""Bypass: how much of what a layer passes on is more than an affine map of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_embed.errors import InputError
from lightning_embed.statistics.reconstruction import reconstruct

SAMPLES = 8  # below which nothing is told


def non_affine_share(inputs: Tensor, outputs: Tensor) -> Tensor:
    r"""The share of what a layer passes on that is not affine in what it reads, on samples that the fit has not seen.

    With x the layer's inputs and y what its readers make of it, y is regressed on x (ridge, see `reconstruct`) on the
    first half of the samples; the share is $\lVert y - \hat y \rVert / \lVert y - \bar y \rVert$ on the second one. It
    foretells what is lost when the layer is merged away and its readers are corrected. The minimal Pearson correlation
    asks every neuron to be affine, also those that cancel or that nobody reads.

    Args:
        inputs: shape (samples, fan_in).
        outputs: shape (samples, outputs).

    Returns:
        A scalar, float64, 0 where y is constant; 1 and more where the fit tells nothing. NaN with fewer than 8 samples.

    Raises:
        InputError: the shapes do not fit, or values are not finite.

    >>> x = torch.linspace(-1, 1, 32).repeat(2)[:, None]
    >>> [round(float(non_affine_share(x, y)), 2) for y in (3 * x + 1, x + 0.1 * x.square(), x.square())]
    [0.0, 0.05, 1.0]
    """
    if inputs.ndim != 2 or outputs.ndim != 2 or len(inputs) != len(outputs):
        raise InputError(
            f"`inputs` {tuple(inputs.shape)} and `outputs` {tuple(outputs.shape)} must be (samples, fan_in) and "
            "(samples, outputs) of the same samples."
        )
    if len(inputs) < SAMPLES:
        return outputs.new_full((), torch.nan, dtype=torch.float64)
    x, y = inputs.detach().double(), outputs.detach().double()
    half = len(x) // 2
    slope, offset = reconstruct(x[:half], y[:half])
    unseen = y[half:]
    left: Tensor = torch.linalg.vector_norm(unseen - x[half:] @ slope.T - offset)
    spread: Tensor = torch.linalg.vector_norm(unseen - unseen.mean(dim=0))
    return left / spread if spread > 0 else left.new_zeros(())
