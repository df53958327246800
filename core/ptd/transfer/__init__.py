"""Transfer functions: responses, exact LegS formulas, resolvents and H-infinity norms."""

from .legs import Spikes, closed_form_bound, legs_r, legs_spikes, legs_states
from .norms import Peak, hinf_norm, resolvent_norm
from .responses import dense_response, diagonal_response, dplr_response
from .worst_cases import deviation, worst_fourier_mode

__all__ = [
    "Peak",
    "Spikes",
    "closed_form_bound",
    "dense_response",
    "deviation",
    "diagonal_response",
    "dplr_response",
    "hinf_norm",
    "legs_r",
    "legs_spikes",
    "legs_states",
    "resolvent_norm",
    "worst_fourier_mode",
]
