"""Layers with a single-input, single-output system per feature."""

from __future__ import annotations

from dataclasses import dataclass

from .. import checks
from ..arrays import Array, imag, namespace, real, scale
from .layer import Layer


@dataclass(frozen=True)
class PerFeatureLayer(Layer):
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
