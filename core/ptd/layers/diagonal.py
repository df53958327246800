"""Layers with a diagonal state matrix: one scan, and per layer its own way in and out of the modes."""

from __future__ import annotations

from ..arrays import Array, imag, namespace, real
from ..chunks import ChunkSystem
from ..convolution import powers
from ..discretization import RULES
from ..kernels import Kernels
from ..sequences import Signal
from .chunked import ChunkedLayer
from .layer import Parameters


class DiagonalLayer(ChunkedLayer):
    """x' = Lambda x + B u with Lambda a vector of modes."""

    def drive(self, params: Parameters, u: Array) -> Array:
        """B u, complex (..., *state_axes), before the gain of the discretisation."""
        raise NotImplementedError

    def discretized(self, params: Parameters, step_scale: Array | None) -> tuple[Array, Array]:
        """Lambda_bar and gain, each of the state axes, with leading time axes if steps are per sample."""
        step = self.step_sizes(params, step_scale)
        Lambda_bar, gain = RULES[self.discretization](self.eigenvalues(params), step)
        xp = namespace(Lambda_bar)
        shape = (*Lambda_bar.shape[: -len(self.state_axes)], *self.state_axes)
        return xp.broadcast_to(Lambda_bar, shape), xp.broadcast_to(gain, shape)

    def states(self, params: Parameters, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        drive = gain * self.drive(params, signal.u)
        x = kernels.scan(
            self._flat(Lambda_bar), self._flat(drive), None if x0 is None else self._flat(x0), signal.resets
        )
        return namespace(x).reshape(x, drive.shape)

    def update(self, params: Parameters, u_k: Array, x: Array, step_scale: Array | None) -> Array:
        Lambda_bar, gain = self.discretized(params, step_scale)
        return Lambda_bar * x + gain * self.drive(params, u_k)

    # --- the chunked form --------------------------------------------------------------------------------------

    def input_rows(self, params: Parameters, gain: Array) -> Array:
        """gain B as one row of modes per input feature, complex, broadcastable to (H, P)."""
        raise NotImplementedError

    def lag_products(self, C: Array, drive: Array) -> Array:
        """Re C drive at each lag, from drive (H, P, T): (T, H), or (T, H_in, H_out) for a system that mixes."""
        raise NotImplementedError

    def arranged(self, decay: Array, into: Array, out: Array, direct: Array) -> ChunkSystem:
        """The matrices from their parts: into and out (H, 2 D, P, T), direct (T, T, ...) from sample to output."""
        raise NotImplementedError

    def chunk_system(self, params: Parameters, signal: Signal, T: int, kernels: Kernels) -> ChunkSystem:
        """The matrices over chunks of T samples, in the parameters' precision."""
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        C = [self.complex_leaf(params, name) for name in self._C_names()]
        kept = powers(Lambda_bar, T + 1)
        cx, xp = namespace(kept), namespace(params["log_step"])
        # (H, P, T): what a sample adds to the state at the chunk's right end and at its left end, and what an
        # entering state adds to each output.
        drive = self.input_rows(params, gain)[..., None] * kept[..., :T]
        drives = (cx.flip(drive, axis=-1), drive)
        rows = [c[..., None] * k for c, k in zip(C, (kept[..., 1:], cx.flip(kept[..., 1:], axis=-1)), strict=False)]
        lags = [self.lag_products(c, drive) * self.weight for c in C]
        return self.arranged(
            kept[..., T],
            xp.stack([part for d in drives[: len(C)] for part in (real(d), imag(d))], axis=1),
            xp.stack([part * self.weight for r in rows for part in (real(r), -imag(r))], axis=1),
            self.direct(params, lags),
        )
