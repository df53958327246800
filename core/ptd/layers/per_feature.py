"""Layers with a single-input, single-output system per feature."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .. import checks
from ..arrays import Array, as_planes, astype, from_planes, imag, namespace, real, scale
from ..chunks import ChunkSystem
from ..kernels import Kernels
from ..sequences import Signal
from .chunked import ChunkedLayer


@dataclass(frozen=True)
class PerFeatureLayer(ChunkedLayer):
    """H systems side by side, each with its own C, D and step.

    Attributes:
        shared: one state matrix and input column for all features.
    """

    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.boolean("shared", self.shared)

    @property
    def state_axes(self) -> tuple[int, ...]:
        """(H, P)."""
        return (self.d_model, self.modes)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, all real."""
        B = self._Lambda_shape()
        return super().shapes() | {"B_re": B, "B_im": B, "log_step": (self.d_model,)}

    def _Lambda_shape(self) -> tuple[int, ...]:
        return (self.modes,) if self.shared else (self.d_model, self.modes)

    def _C_shape(self) -> tuple[int, ...]:
        return (self.d_model, self.modes)

    def _as_drive(self, u: Array, B: Array) -> Array:
        """B u per feature: u real (..., H), B complex (..., H, P)."""
        return scale(B, u[..., None])

    def readout(self, C: Array, x: Array) -> Array:
        return self.weight * namespace(x).sum(real(C) * real(x) - imag(C) * imag(x), axis=-1)

    # --- the chunked form: features first, (H, ..., n, T) -------------------------------------------------------

    def feedthrough(self, D: Array) -> Array:
        return D

    def into_states(self, u: Array, into: Array) -> Array:
        xp, (*batch, _, _) = namespace(u), u.shape
        drive = self._features_first(u) @ astype(into, u)
        return xp.reshape(drive, (self.d_model, *batch, 2 if self.bidirectional else 1, 2, self.modes))

    def out_of_chunks(self, u: Array, entering: Array, system: ChunkSystem) -> Array:
        xp, (*batch, T, H) = namespace(u), u.shape
        states = astype(xp.reshape(entering, (H, math.prod(batch), system.out.shape[1])), u)
        y = self._features_first(u) @ astype(system.direct, u) + states @ astype(system.out, u)
        return xp.moveaxis(xp.reshape(y, (H, *batch, T)), 0, -1)

    def in_one(
        self, signal: Signal, system: ChunkSystem, state: Array | None, kernels: Kernels
    ) -> tuple[Array, Array | None] | None:
        run = kernels.per_feature_chunks
        return None if run is None else run(signal.padded, system, state, signal.lengths)

    def state_planes(self, x: Array) -> Array:
        planes = as_planes(x)
        return namespace(planes).moveaxis(planes, -3, 0)

    def from_state_planes(self, planes: Array) -> Array:
        return from_planes(namespace(planes).moveaxis(planes, 0, -3))

    def _features_first(self, u: Array) -> Array:
        """Chunks (..., n, T, H) as (H, rows, T)."""
        xp, (*rows, T, H) = namespace(u), u.shape
        return xp.reshape(xp.moveaxis(u, -1, 0), (H, math.prod(rows), T))
