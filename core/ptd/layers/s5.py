"""S5: one multi-input, multi-output system for all features (Smith et al. 2023)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from .. import checks, sequences
from ..arrays import Array, as_complex, as_planes, astype, eye, from_planes, imag, linear, matmul, namespace, real
from ..chunks import ChunkSystem
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
        return as_complex(linear(u, params["B_re"]), linear(u, params["B_im"]))

    def readout(self, C: Array, x: Array) -> Array:
        return self.weight * (linear(real(x), real(C)) - linear(imag(x), imag(C)))

    def response(self, params: Parameters, C: Array, signal: Signal, x0: Array | None, kernels: Kernels) -> Array:
        xp = namespace(C)
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        L = signal.u.shape[-2]
        kept = powers(Lambda_bar, L).T
        K = self.weight * real(matmul(C * kept[:, None, :], gain[:, None] * self.complex_leaf(params, "B")))
        y = kernels.mixing_convolution(signal.u, K)
        return y if x0 is None else y + self.readout(C, (Lambda_bar * xp.expand_dims(x0, axis=-2)) * kept)

    # --- the chunked form: the samples of a chunk side by side, (..., n, T H) ----------------------------------

    def input_rows(self, params: Parameters, gain: Array) -> Array:
        return (gain[:, None] * self.complex_leaf(params, "B")).T

    def lag_products(self, C: Array, drive: Array) -> Array:
        # (T, H_in, P) @ (P, H_out)
        return real(matmul(namespace(drive).moveaxis(drive, -1, 0), C.T))

    def feedthrough(self, D: Array) -> Array:
        return eye(self.d_model, like=D) * D

    def arranged(self, decay: Array, into: Array, out: Array, direct: Array) -> ChunkSystem:
        xp, (H, parts, P, T) = namespace(into), into.shape
        return ChunkSystem(
            decay,
            xp.reshape(xp.permute_dims(into, (3, 0, 1, 2)), (T * H, parts * P)),
            xp.reshape(xp.permute_dims(out, (1, 2, 3, 0)), (parts * P, T * H)),
            xp.reshape(xp.permute_dims(direct, (0, 2, 1, 3)), (T * H, T * H)),
        )

    def into_states(self, u: Array, into: Array) -> Array:
        xp = namespace(u)
        drive = self._samples(u) @ astype(into, u)
        return xp.reshape(drive, (*u.shape[:-2], 2 if self.bidirectional else 1, 2, self.modes))

    def out_of_chunks(self, u: Array, entering: Array, system: ChunkSystem) -> Array:
        xp = namespace(u)
        states = astype(xp.reshape(entering, (*entering.shape[:-3], system.out.shape[0])), u)
        return xp.reshape(self._samples(u) @ astype(system.direct, u) + states @ astype(system.out, u), u.shape)

    def chunk_outputs(self, u: Array, system: ChunkSystem, kernels: Kernels) -> Array:
        if kernels.mixing_chunks is None:
            return super().chunk_outputs(u, system, kernels)
        return namespace(u).reshape(kernels.mixing_chunks(self._samples(u), system), u.shape)

    def chunked(
        self, params: Parameters, signal: Signal, x0: Array | None, return_state: bool, kernels: Kernels
    ) -> tuple[Array, Array | None]:
        L, by_states = signal.u.shape[-2], kernels.mixing_states
        if by_states is None and kernels.both_ways is not None:
            by_states = functools.partial(_mixing_states, kernels.both_ways)
        if by_states is None or x0 is not None or return_state or kernels.chunk_length(self, L) > 1:
            return super().chunked(params, signal, x0, return_state, kernels)
        y = self._sample_by_sample(params, signal, by_states)
        return sequences.mask(y, signal.lengths), None

    def _sample_by_sample(self, params: Parameters, signal: Signal, by_states: Callable[..., Array]) -> Array:
        """Chunks of one sample, from rest: y = w Re(C x) + D u with the states after each sample of all directions.

        They have one drive, and nothing goes from sample to output but D u: 6 H^2 operations a sample less, with the
        gradient, than by the states that enter.
        """
        Lambda_bar, gain = self.discretized(params, signal.step_scale)
        xp, B = namespace(params["log_step"]), self.input_rows(params, gain).T
        into = xp.concat([real(B), imag(B)], axis=0)
        C = [self.complex_leaf(params, name) for name in self._C_names()]
        out = self.weight * xp.concat([part for c in C for part in (real(c), -imag(c))], axis=-1)
        return by_states(signal.u, Lambda_bar, into, out, params["D"] if self.skip else None)

    def state_planes(self, x: Array) -> Array:
        return as_planes(x)

    def from_state_planes(self, planes: Array) -> Array:
        return from_planes(planes)

    def _samples(self, u: Array) -> Array:
        """Chunks (..., n, T, H) as (..., n, T H)."""
        *rows, T, H = u.shape
        return namespace(u).reshape(u, (*rows, T * H))


def _mixing_states(
    both_ways: Callable[[Array, Array, int], Array],
    u: Array, Lambda_bar: Array, into: Array, out: Array, skip: Array | None,
) -> Array:  # fmt: skip
    """ptd.kernels.Kernels.mixing_states from Kernels.both_ways."""
    xp, rows, (width, _) = namespace(u), u.shape[:-1], into.shape
    drive = xp.reshape(linear(u, astype(into, u)), (*rows, 2, width // 2))
    states = both_ways(Lambda_bar, drive, out.shape[-1] // width)
    y = linear(xp.reshape(states, (*rows, out.shape[-1])), astype(out, u))
    return y if skip is None else y + astype(skip, u) * u
