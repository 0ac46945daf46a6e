"""Lightning callbacks: watch a training, merge in training. Needs the extra `lightning`."""

from lightning_embed.callbacks.monitor import EmbeddingMonitor
from lightning_embed.callbacks.pruner import EmbeddingPruner
from lightning_embed.callbacks.when import After, NearCriticalPoint, NearEnd, OnPlateau, When

__all__ = ["After", "EmbeddingMonitor", "EmbeddingPruner", "NearCriticalPoint", "NearEnd", "OnPlateau", "When"]
