"""Perturb-then-diagonalize: a small E such that A + E = V diag(Lambda) V^{-1} with a well-conditioned V."""

from .diagonalization import Diagonalization
from .solver import NotConverged, perturb_then_diagonalize

__all__ = ["Diagonalization", "NotConverged", "perturb_then_diagonalize"]
