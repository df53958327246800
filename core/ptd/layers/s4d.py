"""S4D: one diagonal single-input, single-output system per feature (Gu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays import Array, namespace, real
from ..chunks import ChunkSystem
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

    def _run(
        self,
        params: Parameters,
        C_name: str,
        signal: Signal,
        x0: Array | None,
        return_state: bool,
        form: str,
        kernels: Kernels,
    ) -> tuple[Array, Array | None]:
        # A state inside a sequence, before its padding, is none of those that a fused kernel returns.
        inside = return_state and signal.lengths is not None
        if form != "scan" or kernels.fused is None or signal.per_sample or inside:
            return super()._run(params, C_name, signal, x0, return_state, form, kernels)
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        B_bar, C = gain * self.input_column(params), self.complex_leaf(params, C_name) * self.weight
        y, end = kernels.fused(signal.u, Lambda_bar, B_bar, C, x0, signal.resets)
        return y, end if return_state else None

    # --- the chunked form: features first, (H, ..., n, T) -------------------------------------------------------

    def chunk_system(self, params: Parameters, signal: Signal, T: int, kernels: Kernels) -> ChunkSystem:
        """The matrices over chunks of T samples, in the parameters' precision."""
        found = None
        if kernels.diagonal_chunks is not None:
            Lambda, step = self.eigenvalues(params), self.step_sizes(params, signal.step_scale)
            C = [self.complex_leaf(params, name) * self.weight for name in self._C_names()]
            skip = params["D"] if self.skip else None
            found = kernels.diagonal_chunks(self.discretization, Lambda, step, self.input_column(params), C, skip, T)
        return super().chunk_system(params, signal, T, kernels) if found is None else found

    def input_rows(self, params: Parameters, gain: Array) -> Array:
        return gain * self.input_column(params)

    def lag_products(self, C: Array, drive: Array) -> Array:
        products = real(C[..., None] * drive)
        return namespace(products).sum(products, axis=-2).T

    def arranged(self, decay: Array, into: Array, out: Array, direct: Array) -> ChunkSystem:
        xp, (H, parts, P, T) = namespace(into), into.shape
        flat = (H, parts * P, T)
        return ChunkSystem(
            decay,
            xp.matrix_transpose(xp.reshape(into, flat)),
            xp.reshape(out, flat),
            xp.permute_dims(direct, (2, 0, 1)),
        )
