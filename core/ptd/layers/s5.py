"""S5: one multi-input, multi-output system for all features (Smith et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import checks
from ..arrays import Array, as_complex, imag, namespace, real
from ..convolution import powers
from ..kernels import Kernels
from ..sequences import Signal
from .diagonal import DiagonalLayer
from .layer import Parameters


@dataclass(frozen=True)
class S5(DiagonalLayer):
    """x_k = Lambda_bar x_{k-1} + B_bar u_k, y_k = 2 Re(C x_k) + D u_k with all H features in one state (S5 eq. 3).

    Parameters: Lambda (P,), B (P, H), C (H, P), D (H,), log_step (P,).

    Attributes:
        blocks: J; the initial state matrix has J equal diagonal blocks of order N/J.

    >>> S5(d_model=3, d_state=8, blocks=2).shapes()["B_re"]
    (4, 3)
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_integer("blocks", self.blocks)
        if self.d_state % self.blocks:
            raise checks.fail("blocks", f"a divisor of d_state={self.d_state}", self.blocks)

    @property
    def modes(self) -> int:
        """P, the stored modes of all blocks: a block of odd order keeps its real mode."""
        return self.blocks * (-(-self.d_state // self.blocks // 2) if self.conj_sym else self.d_state // self.blocks)

    @property
    def state_axes(self) -> tuple[int, ...]:
        """(P,)."""
        return (self.modes,)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, all real."""
        B = (self.modes, self.d_model)
        return super().shapes() | {"B_re": B, "B_im": B, "log_step": (self.modes,)}

    def _Lambda_shape(self) -> tuple[int, ...]:
        return (self.modes,)

    def _C_shape(self) -> tuple[int, ...]:
        return (self.d_model, self.modes)

    def drive(self, params: Parameters, u: Array) -> Array:
        # u is real: two real products in place of one complex one.
        return as_complex(u @ params["B_re"].T, u @ params["B_im"].T)

    def readout(self, C: Array, x: Array) -> Array:
        return self.weight * (real(x) @ real(C).T - imag(x) @ imag(C).T)

    def response(self, params: Parameters, C: Array, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        xp = namespace(C)
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        L = signal.u.shape[-2]
        kept = powers(Lambda_bar, L).T
        K = self.weight * real((C * kept[:, None, :]) @ (gain[:, None] * self.complex_leaf(params, "B")))
        y = kernels.mixing_convolution(signal.u, K)
        return y if x0 is None else y + self.readout(C, (Lambda_bar * xp.expand_dims(x0, axis=-2)) * kept)
