"""Other people's pruning, on the same networks."""

import copy
import warnings

import torch
from torch import nn


def torch_pruning(net: nn.Module, example: torch.Tensor, share: int, output: str) -> nn.Module:
    """Torch-Pruning by the L2 norm: every layer but the output to one of `share` parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        import torch_pruning as peer

        cut = copy.deepcopy(net)
        peer.pruner.MagnitudePruner(
            cut,
            example,
            importance=peer.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - 1 / share,
            ignored_layers=[cut.get_submodule(output)],
        ).step()
    return cut
