"""S4D: one diagonal single-input, single-output system per feature (Gu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, namespace
from ..kernels import Kernels
from ..sequences import Signal
from .diagonal import DiagonalLayer
from .layer import Parameters
from .per_feature import PerFeatureLayer


@dataclass(frozen=True)
class S4D(PerFeatureLayer, DiagonalLayer):
    """Per feature h: x_k = Lambda_bar x_{k-1} + B_bar u_{k,h}, y_{k,h} = 2 Re(C_h x_k) + D_h u_{k,h} (S4D eq. 2).

    Parameters: Lambda and B (P,) if shared else (H, P); C (H, P); D and log_step (H,).
    With PTD initial values this is S4-PTD.

    >>> S4D(d_model=3, d_state=8).shapes()["Lambda_re"], S4D(3, 8, shared=True).shapes()["Lambda_re"]
    ((3, 4), (4,))
    """

    default_form: ClassVar[str] = "convolution"

    def input_column(self, params: Parameters) -> Array:
        """The input column of every feature, complex, broadcastable to (H, P)."""
        return self.complex_leaf(params, "B")

    def drive(self, params: Parameters, u: Array) -> Array:
        return self._as_drive(u, self.input_column(params))

    def response(self, params: Parameters, C: Array, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        xp = namespace(C)
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        L = signal.u.shape[-2]
        K = kernels.vandermonde(self.weight * C * gain * self.input_column(params), Lambda_bar, L)
        y = kernels.causal_convolution(signal.u, K)
        if x0 is None:
            return y
        return y + xp.matrix_transpose(kernels.vandermonde(self.weight * C * Lambda_bar * x0, Lambda_bar, L))
