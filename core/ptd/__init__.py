"""S4, S4D, DSS and S5 state-space layers with perturb-then-diagonalize initialisation."""

from . import hippo
from .diagonalization import Diagonalization
from .perturbation import NotConverged, perturb_then_diagonalize

__all__ = ["Diagonalization", "NotConverged", "hippo", "perturb_then_diagonalize"]
