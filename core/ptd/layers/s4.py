"""S4: one diagonal-plus-low-rank system per feature (Gu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import checks, chunks
from ..arrays import Array, as_planes, namespace, scale
from ..chunks import ChunkSystem
from ..discretization import bilinear_low_rank
from ..kernels import Kernels
from ..recurrence import LowRankTransition, transition_on_planes
from ..sequences import Signal
from .layer import Parameters
from .per_feature import PerFeatureLayer


@dataclass(frozen=True)
class S4(PerFeatureLayer):
    """x' = (diag(Lambda) - P P^*) x + B u per feature, bilinear, y = 2 Re(C x) + D u (S4 thm 1 to 3).

    C is the true output row, not S4's length-dependent C (I - A_bar^L): no length is built in.
    Parameters: Lambda, B (modes,) and P (modes, rank), with a leading H unless shared; C (H, modes); D, log_step (H,).

    Attributes:
        rank: columns of P: 1 for LegS and FouT, 2 for LegT.

    >>> S4(d_model=3, d_state=8).shapes()["P_re"]
    (4, 1)
    """

    discretization: str = "bilinear"
    shared: bool = True
    rank: int = 1
    default_form: ClassVar[str] = "convolution"
    #: Zero-order hold would need the exponential of a dense matrix for every feature.
    discretizations: ClassVar[tuple[str, ...]] = ("bilinear",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rank, bool) or self.rank not in (1, 2):
            raise checks.fail("rank", "1 or 2", repr(self.rank), "HiPPO matrices need no more")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, all real."""
        P = (*self._Lambda_shape(), self.rank)
        return super().shapes() | {"P_re": P, "P_im": P}

    def system(self, params: Parameters) -> tuple[Array, Array, Array]:
        """Lambda, P and B, complex."""
        return self.eigenvalues(params), self.complex_leaf(params, "P"), self.complex_leaf(params, "B")

    def discretized(self, params: Parameters, step_scale: Array | None) -> tuple[LowRankTransition, Array]:
        step = self.step_sizes(params, step_scale)
        return bilinear_low_rank(*self.system(params), step, conj_sym=self.conj_sym)

    def states(self, params: Parameters, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        transition, B_bar = self.discretized(params, signal.step_scale)
        return kernels.scan_low_rank(transition, self._as_drive(signal.u, B_bar), x0, signal.resets)

    def update(self, params: Parameters, u_k: Array, x: Array, step_scale: Array | None) -> Array:
        transition, B_bar = self.discretized(params, step_scale)
        return transition(x) + self._as_drive(u_k, B_bar)

    def response(self, params: Parameters, C: Array, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        xp = namespace(C)
        transition, _ = self.discretized(params, signal.step_scale)
        Lambda, P, B = self.system(params)
        step = self.step_sizes(params, signal.step_scale)
        L = signal.u.shape[-2]
        K = kernels.cauchy(transition, Lambda, P, B, C, step, L)
        y = kernels.causal_convolution(signal.u, K)
        if x0 is None:
            return y
        # C A_bar^{k+1} x0 is the kernel of the input column B0 with step B0 = (I - A step/2) A_bar x0,
        # which is (I + A step/2) x0.
        along_P = LowRankTransition(Lambda, P, P, self.conj_sym)
        B0 = scale(x0, 1.0 / step) + along_P(x0) / 2.0
        return y + xp.matrix_transpose(kernels.cauchy(transition, Lambda, P, B0, C, step, L))

    # --- the chunked form --------------------------------------------------------------------------------------

    def chunk_system(self, params: Parameters, signal: Signal, T: int, kernels: Kernels) -> ChunkSystem:
        """The matrices over chunks, with the transition as a real matrix on planes, (H, 2, M, 2, M), from and to."""
        transition, B_bar = self.discretized(params, signal.step_scale)
        xp, (H, M) = namespace(params["log_step"]), self.state_axes
        A = xp.matrix_transpose(transition_on_planes(transition))  # of rows
        columns = [self._column(params, name) for name in self._C_names()]
        row = xp.reshape(as_planes(B_bar), (H, 2 * M))
        rows, out, whole = kernels.orbits(A, row, xp.stack(columns, axis=-1), T)
        into = xp.flip(rows, axis=1)
        if self.bidirectional:
            into = xp.concat([into, rows], axis=-1)
            out = xp.concat([out[:, :1, ...], xp.flip(out[:, 1:, ...], axis=-1)], axis=1)
        return ChunkSystem(
            xp.reshape(whole, (H, 2, M, 2, M)),
            into,
            xp.reshape(out, (H, len(columns) * 2 * M, T)),
            xp.permute_dims(self.direct(params, [xp.sum(rows * c[:, None, :], axis=-1).T for c in columns]), (2, 0, 1)),
        )

    def carries(self, system: ChunkSystem, drive: Array, state: Array | None, kernels: Kernels) -> tuple[Array, Array]:
        return chunks.dense_carries(system.decay, drive, state)

    def _column(self, params: Parameters, name: str) -> Array:
        """What the planes of a state add to the output, (H, 2 M)."""
        C = as_planes(self.complex_leaf(params, name)) * self.weight
        return namespace(C).concat([C[..., 0, :], -C[..., 1, :]], axis=-1)
