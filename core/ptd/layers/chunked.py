"""The chunked form of a layer: matrix products over chunks, and a short recurrence between them."""

from __future__ import annotations

import math
from typing import ClassVar

from .. import chunks, sequences
from ..arrays import Array, astype, namespace
from ..chunks import ChunkSystem
from ..kernels import Kernels
from ..sequences import Signal
from .layer import Layer, Parameters


class ChunkedLayer(Layer):
    """A layer that, where it is time-invariant, can run whole chunks of T samples; see ptd.chunks."""

    forms: ClassVar[tuple[str, ...]] = (*Layer.forms, "chunked")

    def chunk_system(self, params: Parameters, signal: Signal, T: int, kernels: Kernels) -> ChunkSystem:
        """The matrices over chunks of T samples, in the parameters' precision."""
        raise NotImplementedError

    def feedthrough(self, D: Array) -> Array:
        """D as what it adds at lag 0."""
        raise NotImplementedError

    def into_states(self, u: Array, into: Array) -> Array:
        """Chunks u (..., n, T, H) to the drive of their states, as planes."""
        raise NotImplementedError

    def out_of_chunks(self, u: Array, entering: Array, system: ChunkSystem) -> Array:
        """Outputs (..., n, T, H) of chunks from their samples and the states that enter them."""
        raise NotImplementedError

    def in_one(
        self, signal: Signal, system: ChunkSystem, state: Array | None, kernels: Kernels
    ) -> tuple[Array, Array | None] | None:
        """Outputs and, without lengths, final states as planes, where one kernel runs all chunks; else None."""
        return None

    def chunk_outputs(self, u: Array, system: ChunkSystem, kernels: Kernels) -> Array:
        """Outputs of chunks u (..., n, T, H) of a run from rest."""
        entering, _ = self.carries(system, self.into_states(u, system.into), None, kernels)
        return self.out_of_chunks(u, entering, system)

    def state_planes(self, x: Array) -> Array:
        """A complex state (..., *state_axes) as the planes that kernels.carries takes."""
        raise NotImplementedError

    def from_state_planes(self, planes: Array) -> Array:
        """The inverse of state_planes."""
        raise NotImplementedError

    def carries(self, system: ChunkSystem, drive: Array, state: Array | None, kernels: Kernels) -> tuple[Array, Array]:
        """The states that enter each chunk, and those that leave the last, as planes."""
        return kernels.carries(system.decay, drive, state, scan=kernels.scan)

    def direct(self, params: Parameters, lags: list[Array]) -> Array:
        """The blocks (T, T, ...) from sample to output: what a sample adds at each lag of each direction, and D."""
        now = sum((lag[:1, ...] for lag in lags[1:]), start=lags[0][:1, ...])
        if self.skip:
            now = now + self.feedthrough(params["D"])
        causal = namespace(now).concat([now, lags[0][1:, ...]], axis=0)
        return chunks.toeplitz(causal, lags[1] if self.bidirectional else None)

    def chunked(
        self, params: Parameters, signal: Signal, x0: Array | None, return_state: bool, kernels: Kernels
    ) -> tuple[Array, Array | None]:
        """Output of all directions with D, zero in padding, and the final state where asked for.

        Products with samples run in the dtype of u, the recurrence in that of the parameters.
        """
        T = kernels.chunk_length(self, signal.u.shape[-2])
        system = self.chunk_system(params, signal, T, kernels)
        state = None if x0 is None else self.state_planes(x0)
        inside = return_state and (signal.lengths is not None or signal.u.shape[-2] % T != 0)
        found = None if inside else self.in_one(signal, system, state, kernels)
        if found is not None:
            y, last = found
            if last is None or not return_state:
                return y, None
            return y, self._joined([self.from_state_planes(last[..., d, :, :]) for d in range(len(self._C_names()))])
        u = chunks.split(signal.u, T)
        if x0 is None and not return_state:
            y = chunks.join(self.chunk_outputs(u, system, kernels), signal.u.shape[-2])
            return sequences.mask(y, signal.lengths), None
        drive = self.into_states(u, system.into)
        entering, final = self.carries(system, drive, state, kernels)
        y = chunks.join(self.out_of_chunks(u, entering, system), signal.u.shape[-2])
        y = sequences.mask(y, signal.lengths)
        if not return_state:
            return y, None
        if not inside:
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
