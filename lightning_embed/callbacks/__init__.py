"""Lightning callbacks: watch a training, merge in training. Needs the extra `lightning`."""

from lightning_embed.callbacks.monitor import EmbeddingMonitor
from lightning_embed.callbacks.pruner import EmbeddingPruner

__all__ = ["EmbeddingMonitor", "EmbeddingPruner"]
