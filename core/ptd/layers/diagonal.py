"""Layers with a diagonal state matrix: one scan, and per layer its own way in and out of the modes."""

from __future__ import annotations

import math

from ..arrays import Array, namespace
from ..discretization import RULES
from ..kernels import Kernels
from ..sequences import Signal
from .layer import Layer, Parameters


class DiagonalLayer(Layer):
    """x' = Lambda x + B u with Lambda a vector of modes."""

    def drive(self, params: Parameters, u: Array) -> Array:
        """B u, complex (..., *state_axes), before the gain of the discretisation."""
        raise NotImplementedError

    def discretized(self, params: Parameters, step_scale: Array | None) -> tuple[Array, Array]:
        """Lambda_bar and gain, each of the state axes, with leading time axes if steps are per sample."""
        xp = namespace(params["log_step"])
        step = self.step_sizes(params, step_scale)
        Lambda_bar, gain = RULES[self.discretization](self.eigenvalues(params), step)
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

    def _flat(self, x: Array) -> Array:
        """State axes merged into one, (..., M): the scan knows modes only."""
        return namespace(x).reshape(x, (*x.shape[: -len(self.state_axes)], math.prod(self.state_axes)))
