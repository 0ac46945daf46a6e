"""Critical points, their Hessians, and diagrams of loss landscapes: instruments to test the theory.

Everything runs in float64 on fixed data (inputs, targets), given whole; `loss` takes outputs and targets.
"""

from lightning_embed.analysis.critical import CriticalPoint, find_critical_point, find_critical_points
from lightning_embed.analysis.figures import landscape_figure
from lightning_embed.analysis.growing import SplittingCurvature, Widened, escape_by_widening, splitting_curvature
from lightning_embed.analysis.hessian import Hessian, hessian
from lightning_embed.analysis.landscape import Landscape, LandscapePoint, landscape_diagram
from lightning_embed.analysis.matrix_free import extreme_eigenvalues, hessian_operator
from lightning_embed.analysis.risk import Risk
from lightning_embed.analysis.saddle import Escape, escape, is_strict_saddle, may_be_truly_bad
from lightning_embed.analysis.spectrum import Inertia, degeneracy, inertia, spectrum
from lightning_embed.analysis.tangent import TangentRank, tangent_rank

__all__ = [
    "CriticalPoint",
    "Escape",
    "Hessian",
    "Inertia",
    "Landscape",
    "LandscapePoint",
    "Risk",
    "SplittingCurvature",
    "TangentRank",
    "Widened",
    "degeneracy",
    "escape",
    "escape_by_widening",
    "extreme_eigenvalues",
    "find_critical_point",
    "find_critical_points",
    "hessian",
    "hessian_operator",
    "inertia",
    "is_strict_saddle",
    "landscape_diagram",
    "landscape_figure",
    "may_be_truly_bad",
    "spectrum",
    "splitting_curvature",
    "tangent_rank",
]
