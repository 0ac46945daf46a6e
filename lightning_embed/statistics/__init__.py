"""Pure measures of pre, post and weights; they change nothing. Undefined is NaN."""

from typing import TYPE_CHECKING, Any

from lightning_embed.statistics.affine import AffineFit, affine_fit, affine_fit_of_moments, tangent_fit
from lightning_embed.statistics.bypass import non_affine_share
from lightning_embed.statistics.cka import linear_cka
from lightning_embed.statistics.condensation import (
    amplitudes,
    augmented_weights,
    cosine_groups,
    cosine_similarity,
    representatives,
    width_cosine,
)
from lightning_embed.statistics.exchange import exchange
from lightning_embed.statistics.gradients import gradient_l1, gradient_norms, named_gradients
from lightning_embed.statistics.linearization import (
    minimal_pearson_correlation,
    mpc_of_moments,
    pearson_correlation,
    pearson_of_moments,
)
from lightning_embed.statistics.moments import Moments, PrecisionWarning, merge_moments, update_moments
from lightning_embed.statistics.reconstruction import reconstruct
from lightning_embed.statistics.ridge import leave_one_out
from lightning_embed.statistics.span import Span, refit, span_order, width_span
from lightning_embed.statistics.splitting import splitting_eigenvalues

if TYPE_CHECKING:
    from lightning_embed.statistics.metrics import MinimalPearsonCorrelation

__all__ = [
    "AffineFit",
    "MinimalPearsonCorrelation",
    "Moments",
    "PrecisionWarning",
    "Span",
    "affine_fit",
    "affine_fit_of_moments",
    "amplitudes",
    "augmented_weights",
    "cosine_groups",
    "cosine_similarity",
    "exchange",
    "gradient_l1",
    "gradient_norms",
    "leave_one_out",
    "linear_cka",
    "merge_moments",
    "minimal_pearson_correlation",
    "mpc_of_moments",
    "named_gradients",
    "non_affine_share",
    "pearson_correlation",
    "pearson_of_moments",
    "reconstruct",
    "refit",
    "representatives",
    "span_order",
    "splitting_eigenvalues",
    "tangent_fit",
    "update_moments",
    "width_cosine",
    "width_span",
]


def __getattr__(name: str) -> Any:
    """Import the torchmetrics classes only where they are asked for."""
    if name == "MinimalPearsonCorrelation":
        from lightning_embed.statistics.metrics import MinimalPearsonCorrelation

        return MinimalPearsonCorrelation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
