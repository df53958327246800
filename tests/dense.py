"""Layers as dense state-space systems, from their real leaves alone: nothing here runs code of ptd.

Every layer becomes one system x' = step (A x + B u), y = Re(C x) + D u over a unit of time, with A complex and
dense, both halves of each conjugate pair written out and the features of S4, S4D and DSS on a block diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Array = NDArray


@dataclass(frozen=True)
class System:
    """A (M, M), B (M, H), C (H, M), D (H,), step (M,), and the rule "zoh" or "bilinear"."""

    A: Array
    B: Array
    C: Array
    D: Array
    step: Array
    rule: str

    def discretized(self, factor: float) -> tuple[Array, Array]:
        """A_bar and B_bar with every step multiplied by factor."""
        M, H = self.B.shape
        A, B = (factor * self.step[:, None] * X for X in (self.A, self.B))
        if self.rule == "bilinear":
            return tuple(np.linalg.solve(np.eye(M) - A / 2, X) for X in (np.eye(M) + A / 2, B))
        augmented = scipy.linalg.expm(np.block([[A, B], [np.zeros((H, M + H))]]))
        return augmented[:M, :M], augmented[:M, M:]

    def run(self, u: Array, x: Array | None = None, resets: Array | None = None, factors: Array | float = 1.0):
        """y (L, H) and the state after the last sample, for u (L, H), one sample after the other."""
        x = np.zeros(len(self.step), complex) if x is None else x
        resets = np.zeros(len(u), bool) if resets is None else resets
        y = []
        for u_k, reset, factor in zip(u, resets, np.broadcast_to(factors, len(u)), strict=True):
            A_bar, B_bar = self.discretized(factor)
            x = A_bar @ (0 * x if reset else x) + B_bar @ u_k
            y.append((self.C @ x).real + self.D * u_k)
        return np.array(y).reshape(u.shape), x


def parameters(layer, seed: int = 0) -> dict[str, Array]:
    """Leaves of no particular origin: decaying, oscillating modes, steps between 0.05 and 0.5."""
    rng = np.random.default_rng(seed)
    leaves = {name: rng.standard_normal(shape) for name, shape in layer.shapes().items()}
    leaves["Lambda_re"] = -rng.uniform(0.1, 1, leaves["Lambda_re"].shape)
    leaves["Lambda_im"] = 3 * leaves["Lambda_im"]
    leaves["log_step"] = np.log(rng.uniform(0.05, 0.5, leaves["log_step"].shape))
    return leaves


def both_halves(layer, x: Array, axis: int = -1) -> Array:
    """x with its conjugates after it where the layer stores one of each pair."""
    return np.concatenate([x, x.conj()], axis=axis) if layer.conj_sym else x


def state_vector(layer, state: Array) -> Array:
    """The real state (*state_axes, 2) of a layer as the vector (M,) of its system."""
    return both_halves(layer, state @ [1, 1j]).ravel()


def system(layer, params: dict[str, Array], C_name: str = "C") -> System:
    """The dense system of a layer in one direction."""

    def leaf(name: str) -> Array:
        return params[name + "_re"] + 1j * params[name + "_im"]

    D = params["D"] if layer.skip else np.zeros(layer.d_model)
    step = np.exp(params["log_step"])
    C = both_halves(layer, leaf(C_name))
    if layer.kind == "s5":
        Lambda, B = both_halves(layer, leaf("Lambda")), both_halves(layer, leaf("B"), axis=0)
        return System(np.diag(Lambda), B, C, D, both_halves(layer, step).real, layer.discretization)
    H, P = layer.d_model, layer.modes
    Lambda = np.broadcast_to(leaf("Lambda"), (H, P))
    B = np.ones((H, P), complex) if layer.kind == "dss" else np.broadcast_to(leaf("B"), (H, P))
    if layer.kind == "dss" and layer.kernel_length:
        B = 1 / (np.exp(layer.kernel_length * Lambda * step[:, None]) - 1)
    low_rank = np.broadcast_to(leaf("P"), (H, P, layer.rank)) if layer.kind == "s4" else np.zeros((H, P, 1))
    Lambda, B, low_rank = (both_halves(layer, X, axis=1) for X in (Lambda, B, low_rank))
    A = scipy.linalg.block_diag(*(np.diag(Lambda[h]) - low_rank[h] @ low_rank[h].conj().T for h in range(H)))
    columns = scipy.linalg.block_diag(*B[:, :, None])
    rows = scipy.linalg.block_diag(*C[:, None, :])
    return System(A, columns, rows, D, np.repeat(step, Lambda.shape[1]), layer.discretization)


def full_storage(layer, params: dict[str, Array]) -> dict[str, Array]:
    """The leaves of the same layer with all modes stored, from those with half of them."""
    s5 = layer.kind == "s5"
    axes = {"Lambda": -1, "B": 0 if s5 else -1, "C": -1, "P": -2}
    full = {"D": params["D"], "log_step": np.tile(params["log_step"], 2 if s5 else 1)}
    for name in params.keys() - full.keys():
        sign = -1 if name.endswith("_im") else 1
        full[name] = np.concatenate([params[name], sign * params[name]], axis=axes[name[:-3]])
    return full
