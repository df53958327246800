"""S4, S4D, DSS and S5 state-space layers with perturb-then-diagonalize initialisation."""

from . import hippo, transfer

__all__ = ["hippo", "transfer"]
