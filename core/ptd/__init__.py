"""S4, S4D, DSS and S5 state-space layers with perturb-then-diagonalize initialisation, for any framework.

>>> import numpy as np, ptd
>>> layer = ptd.S5(d_model=2, d_state=4)
>>> params = ptd.initialize(layer, np.random.default_rng(0), init="ptd-closed")
>>> y = ptd.backend("numpy").apply(layer, params, np.ones((7, 2)))
>>> y.shape
(7, 2)
"""

from . import discretization, hippo, importers, modes, transfer
from .initialization import initialize
from .inputs import Input
from .layers import DSS, S4, S4D, S5, Layer
from .model import SequenceModel
from .optimization import Optimizer
from .parameters import SPEC_VERSION, load, save
from .perturbation import Diagonalization, NotConverged, perturb_then_diagonalize
from .registry import Availability, BackendUnavailable, backend, backends
from .sequences import pack, unpack

__all__ = [
    "DSS",
    "S4",
    "S4D",
    "S5",
    "SPEC_VERSION",
    "Availability",
    "BackendUnavailable",
    "Diagonalization",
    "Input",
    "Layer",
    "NotConverged",
    "Optimizer",
    "SequenceModel",
    "backend",
    "backends",
    "discretization",
    "hippo",
    "importers",
    "initialize",
    "load",
    "modes",
    "pack",
    "perturb_then_diagonalize",
    "save",
    "transfer",
    "unpack",
]
