"""Layers with a diagonal state matrix: one scan, and per layer its own way in and out of the modes."""

from __future__ import annotations

import math
from typing import ClassVar

from .. import chunks, sequences
from ..arrays import Array, astype, imag, namespace, real
from ..chunks import ChunkSystem
from ..convolution import powers
from ..discretization import RULES
from ..kernels import Kernels
from ..sequences import Signal
from .layer import Layer, Parameters


class DiagonalLayer(Layer):
    """x' = Lambda x + B u with Lambda a vector of modes."""

    forms: ClassVar[tuple[str, ...]] = (*Layer.forms, "chunked")

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

    def feedthrough(self, D: Array) -> Array:
        """D as what it adds at lag 0."""
        raise NotImplementedError

    def arranged(self, decay: Array, into: Array, out: Array, direct: Array) -> ChunkSystem:
        """The matrices from their parts: into and out (H, 2 D, P, T), direct (T, T, ...) from sample to output."""
        raise NotImplementedError

    def into_states(self, u: Array, into: Array) -> Array:
        """Chunks u (..., n, T, H) to the drive of their states, as planes."""
        raise NotImplementedError

    def out_of_chunks(self, u: Array, entering: Array, system: ChunkSystem) -> Array:
        """Outputs (..., n, T, H) of chunks from their samples and the states that enter them."""
        raise NotImplementedError

    def chunk_outputs(self, u: Array, system: ChunkSystem, kernels: Kernels) -> Array:
        """Outputs of chunks u (..., n, T, H) of a run from rest."""
        entering, _ = kernels.carries(system.decay, self.into_states(u, system.into), None, scan=kernels.scan)
        return self.out_of_chunks(u, entering, system)

    def state_planes(self, x: Array) -> Array:
        """A complex state (..., *state_axes) as the planes that kernels.carries takes."""
        raise NotImplementedError

    def from_state_planes(self, planes: Array) -> Array:
        """The inverse of state_planes."""
        raise NotImplementedError

    def chunk_system(self, params: Parameters, signal: Signal, T: int) -> ChunkSystem:
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
        now = sum((lag[:1, ...] for lag in lags[1:]), start=lags[0][:1, ...])
        if self.skip:
            now = now + self.feedthrough(params["D"])
        causal = xp.concat([now, lags[0][1:, ...]], axis=0)
        return self.arranged(
            kept[..., T],
            xp.stack([part for d in drives[: len(C)] for part in (real(d), imag(d))], axis=1),
            xp.stack([part * self.weight for r in rows for part in (real(r), -imag(r))], axis=1),
            chunks.toeplitz(causal, lags[1] if self.bidirectional else None),
        )

    def chunked(
        self, params: Parameters, signal: Signal, x0: Array | None, return_state: bool, kernels: Kernels
    ) -> tuple[Array, Array | None]:
        """Output of all directions with D, and the final state where asked for.

        Products with samples run in the dtype of u, the recurrence in that of the parameters.
        """
        T = kernels.chunk_length(self, signal.u.shape[-2])
        system = self.chunk_system(params, signal, T)
        u = chunks.split(signal.u, T)
        if x0 is None and not return_state:
            return chunks.join(self.chunk_outputs(u, system, kernels), signal.u.shape[-2]), None
        drive = self.into_states(u, system.into)
        state = None if x0 is None else self.state_planes(x0)
        entering, final = kernels.carries(system.decay, drive, state, scan=kernels.scan)
        y = chunks.join(self.out_of_chunks(u, entering, system), signal.u.shape[-2])
        if not return_state:
            return y, None
        if signal.lengths is None and signal.u.shape[-2] % T == 0:
            ends = [self.from_state_planes(final[..., 0, :, :])]
        else:
            before = astype(entering[..., 0, :, :], params["log_step"])
            ends = [self._end_within_chunk(params, signal, u, before, kernels)]
        if self.bidirectional:
            ends.append(self.from_state_planes(final[..., 1, :, :]))
        return y, self._joined(ends)

    def _end_within_chunk(
        self, params: Parameters, signal: Signal, u: Array, entering: Array, kernels: Kernels
    ) -> Array:
        """The left-to-right state after the last valid sample, from the state that enters its chunk."""
        L, (n, T, H) = signal.u.shape[-2], u.shape[-3:]
        before = self._flat(self.from_state_planes(entering))
        if signal.lengths is None:
            x0, tail, rest = before[..., -1, :], u[..., -1, : L - (n - 1) * T, :], None
        else:
            xp = namespace(signal.lengths)
            which = xp.where(signal.lengths > 0, (signal.lengths - 1) // T, xp.zeros_like(signal.lengths))
            samples = sequences.at(xp.reshape(u, (*u.shape[:-2], T * H)), which)
            x0, tail = sequences.at(before, which), xp.reshape(samples, (*samples.shape[:-1], T, H))
            rest = signal.lengths - which * T
        x0 = namespace(x0).reshape(x0, (*x0.shape[:-1], *self.state_axes))
        end = Signal(astype(tail, params["log_step"]), rest, None, signal.step_scale)
        return self._final(self.states(params, end, x0, kernels), end, x0)

    def _C_names(self) -> tuple[str, ...]:
        return ("C", "C_reverse") if self.bidirectional else ("C",)

    def _flat(self, x: Array) -> Array:
        """State axes merged into one, (..., M): the scan knows modes only."""
        return namespace(x).reshape(x, (*x.shape[: -len(self.state_axes)], math.prod(self.state_axes)))
