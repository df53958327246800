"""Transfer functions: responses, exact LegS formulas, resolvents and H-infinity norms."""

from .legs import Spikes, closed_form_bound, legs_r, legs_spikes, legs_states
from .responses import dense_response, diagonal_response, dplr_response

__all__ = [
    "Spikes",
    "closed_form_bound",
    "dense_response",
    "diagonal_response",
    "dplr_response",
    "legs_r",
    "legs_spikes",
    "legs_states",
]
