"""Tolerances, derived: what rounding in a given precision can do to a case, and no more.

Every quantity of the recurrence x_k = Lambda_bar x_{k-1} + drive_k is replaced by a bound on its size (a majorant)
and a bound on its error in units of eps. Sizes obey b_k = |Lambda_bar| b_{k-1} + |drive_k|; errors obey the same,

    e_k = |Lambda_bar| e_{k-1} + dLambda_bar b_{k-1} + ddrive_k + b_k,

driven by the error of the coefficient, of the drive, and one rounding of the sum. An output may be off by
2 eps (|C| (e + b) + |D u|): 2 for the roundings of a complex product. Errors of coefficients:

    zero-order hold    e^z is off by |e^z| (1 + |z|), since z itself carries a rounding of its size
    bilinear           (1 + z/2)/(1 - z/2) is off by itself + (1 + |z/2|)/|1 - z/2|

A diagonal-plus-low-rank A_bar has no useful entry-wise majorant, since |A_bar| may exceed one while A_bar contracts.
There the sizes are 2-norms of the state per feature and |Lambda_bar| is ||A_bar||_2 <= 1.

A gradient along a direction v is the output of the tangent system, whose drive is dA_bar x_{k-1} + ddrive u, so its
bound is the same formula once more. Convolution forms add the normwise error of the FFT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ptd import recurrence, sequences
from ptd.arrays import from_pair
from ptd.convolution import CIRCLE
from ptd.layers import DSS, S4, S5, Layer
from ptd.layers.diagonal import DiagonalLayer
from ptd.sequences import Signal

from .cases import Case, Leaves

Values = NDArray[np.float64]

FACTOR = 2.0
#: Factors of products on the way from an input to an output, each of which a narrower format may round: two into the
#: states and two out of them. The recurrence between is in the dtype whatever products are.
THROUGH = 4.0
#: Step of the differences that give tangents. Only sizes are needed, so their error of about 1e-9 is of no account.
DIFFERENCE = 1e-6


def output(case: Case, dtype: str, products: float = 0.0) -> Values:
    """The allowed error of y, of its shape; products is the eps of the factors of products where it is wider."""
    unit = FACTOR * float(np.finfo(dtype).eps)
    total = np.abs(case.params["D"] * case.u) if case.layer.skip else np.zeros(case.u.shape)
    total = (unit + 2 * products) * total
    for direction in directions(case.layer):
        run = _run(case, direction)
        y = unit * _readout(run, run.error + run.size) + THROUGH * products * _readout(run, run.size)
        if _form(case) == "convolution":
            y = y + (unit + THROUGH * products) * _fft_factor(case) * np.linalg.norm(
                _readout(_impulse(run), _impulse(run).size), axis=-2, keepdims=True
            )
        total = total + run.in_time(y)
    return total


def state(case: Case, dtype: str, products: float = 0.0) -> Values:
    """The allowed error of the final state, of its shape."""
    layer, unit, wide = case.layer, FACTOR * float(np.finfo(dtype).eps), THROUGH / 2 * products
    runs = [_run(case, direction) for direction in directions(layer)]
    shape = (*case.u.shape[:-2], *layer.state_axes)
    sizes = (unit * _anywhere(run, run.error + run.size) + wide * _anywhere(run, run.size) for run in runs)
    ends = [np.broadcast_to(size, shape) for size in sizes]
    joined = np.stack(ends, axis=len(case.u.shape[:-2])) if layer.bidirectional else ends[0]
    return np.stack([joined, joined], axis=-1)


def gradient(
    case: Case, name: str, direction: Values, w: Values, w_state: Values, dtype: str, products: float = 0.0
) -> float:
    """The allowed error of the derivative of <w, y> + <w_state, final state> along a direction of one argument."""
    unit, total = FACTOR * float(np.finfo(dtype).eps), 0.0
    wide = 1.5 * THROUGH * products  # a derivative passes a third product
    for which in directions(case.layer):
        run = _run(case, which)
        moved = _tangent(case, which, run, name, direction)
        size, error = _tangent_bounds(run, moved)
        at_rest = replace(run, C=moved.C)
        y = unit * (_readout(run, error + size) + _readout(at_rest, run.error + run.size))
        y = y + wide * (_readout(run, size) + _readout(at_rest, run.size))
        total += float(np.sum(np.abs(w) * run.in_time(y)))
        end = unit * _anywhere(run, error + size) + wide * _anywhere(run, size)
        total += float(np.sum(_weights(case, w_state, which) * end))
        if _form(case) == "convolution":
            struck, moved = _impulse(run), _impulse(moved)
            size, _ = _tangent_bounds(struck, moved)
            y = (unit + wide) * (_readout(struck, size) + _readout(replace(struck, C=moved.C), struck.size))
            total += _fft_factor(case, derivative=True) * float(np.sum(np.linalg.norm(w, axis=-2) * np.sum(y, axis=-2)))
    if case.layer.skip:
        D = direction if name == "D" else case.params["D"]
        total += (unit + wide) * float(np.sum(np.abs(w * D * (direction if name == "u" else case.u))))
    return total


def directions(layer: Layer) -> range:
    """0 for the run from left to right, 1 for the one from right to left."""
    return range(2 if layer.bidirectional else 1)


def loss_size(case: Case, w: Values, w_state: Values) -> float:
    """A bound on |<w, y>| + |<w_state, final state>|, for the error of differences of it."""
    total = float(np.sum(np.abs(w * case.params["D"] * case.u))) if case.layer.skip else 0.0
    for which in directions(case.layer):
        run = _run(case, which)
        total += float(np.sum(np.abs(w) * run.in_time(_readout(run, run.size))))
        total += float(np.sum(_weights(case, w_state, which) * _anywhere(run, run.size)))
    return total


# --- one direction ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Sizes of one direction's quantities and, in units of eps, of their errors; or of their derivatives.

    Axes are (..., L, *modes); a norm counts as one mode per feature.
    """

    layer: Layer
    signal: Signal
    reverse: bool
    a: Values  # |Lambda_bar|
    da: Values
    drive: Values
    ddrive: Values
    x0: Values
    C: Values  # |C|, conjugate pairs counted

    @cached_property
    def size(self) -> Values:
        """The bound b on the states."""
        return self.scan(self.drive, self.x0)

    @cached_property
    def error(self) -> Values:
        """The bound e on their error."""
        return self.scan(self.da * self.before(self.size, self.x0) + self.ddrive + self.size, 0 * self.x0)

    @property
    def axis(self) -> int:
        """The time axis."""
        return self.signal.u.ndim - 2

    def in_time(self, y: Values) -> Values:
        """y (..., L, H) of this direction, from left to right."""
        return sequences.flip(y, self.signal.lengths) if self.reverse else y

    def scan(self, drive: Values, x0: Values) -> Values:
        """b_k = |Lambda_bar| b_{k-1} + drive_k over the resets."""
        modes = x0.shape[self.axis :]
        shape = (*self.signal.u.shape[:-1], *modes)
        flat = (*self.signal.u.shape[:-1], -1)
        a = np.broadcast_to(self.a, shape).reshape(flat)
        drive = np.broadcast_to(drive, shape).reshape(flat)
        x0 = x0.reshape((*x0.shape[: self.axis], -1))
        return recurrence.scan(a, drive, x0, self.signal.resets).reshape(shape)

    def before(self, b: Values, x0: Values) -> Values:
        """b_{k-1}, starting from x0 and zero at resets."""
        b = np.concatenate(
            [np.expand_dims(x0, self.axis), np.take(b, range(b.shape[self.axis] - 1), self.axis)], self.axis
        )
        if self.signal.resets is None:
            return b
        keep = ~np.asarray(self.signal.resets)
        return b * keep.reshape(keep.shape + (1,) * (b.ndim - keep.ndim))


def _run(case: Case, which: int) -> _Run:
    layer, call = case.layer, case.call
    signal = layer.signal(case.u, call.get("lengths"), call.get("resets"), call.get("step_scale"))
    signal = signal.reversed() if which else signal
    x0 = np.zeros((*case.u.shape[:-2], *layer.state_axes))
    if call.get("state") is not None:
        x0 = np.abs(_of_direction(layer, from_pair(call["state"]), which))
    C = np.abs(layer.complex_leaf(case.params, "C_reverse" if which else "C")) * layer.weight
    if isinstance(layer, S4):
        sizes = _dplr(layer, case.params, signal)
        x0, C = _norm(x0) * np.sqrt(layer.weight), _norm(C)
    else:
        sizes = _diagonal(layer, case.params, signal)
    return _Run(layer, signal, bool(which), *sizes, x0, C)


def _diagonal(layer: DiagonalLayer, params: Leaves, signal: Signal) -> tuple[Values, Values, Values, Values]:
    step = layer.step_sizes(params, signal.step_scale)
    z = layer.eigenvalues(params) * step
    Lambda_bar, gain = (np.abs(v) for v in layer.discretized(params, signal.step_scale))
    if layer.discretization == "zoh":
        da = Lambda_bar * (1 + np.abs(z))
        # phi_1 may pass near one of its zeros, where only its absolute error is small.
        dgain = gain + step * (np.minimum(1.0, 2.0 / np.maximum(np.abs(z), 1e-300)) + Lambda_bar)
    else:
        da = Lambda_bar + (1 + np.abs(z / 2)) / np.abs(1 - z / 2)
        dgain = 2 * gain
    Bu = _input_size(layer, params, signal.u)
    return Lambda_bar, da, gain * Bu, dgain * Bu * _normaliser_condition(layer, params)


def _dplr(layer: S4, params: Leaves, signal: Signal) -> tuple[Values, Values, Values, Values]:
    transition, B_bar = layer.discretized(params, signal.step_scale)
    half = layer.eigenvalues(params) * layer.step_sizes(params, signal.step_scale) / 2
    left, right = (np.linalg.norm(part, axis=(-2, -1)) for part in (transition.left, transition.right))
    a = np.linalg.norm(recurrence.dense_transition(transition), 2, axis=(-2, -1))[..., None]
    # Each factor of left right^* is a product through Woodbury's inverse, whose norm is at most one.
    diagonal = np.max((1 + np.abs(half)) / np.abs(1 - half), axis=-1)
    da = (2 * diagonal + 2 * layer.weight * left * right)[..., None]
    drive = _norm(B_bar) * np.sqrt(layer.weight) * np.abs(signal.u)[..., None]
    return a, da, drive, drive * (1 + da)


def _input_size(layer: DiagonalLayer, params: Leaves, u: Values) -> Values:
    """A bound on |B u|, (..., L, *modes)."""
    if isinstance(layer, S5):
        return np.abs(u) @ np.abs(layer.complex_leaf(params, "B")).T
    return np.abs(layer.drive(params, u))


def _normaliser_condition(layer: Layer, params: Leaves) -> Values | float:
    """1, or for DSS-softmax 1 plus the relative condition of 1/(e^z - 1) with respect to z."""
    if not (isinstance(layer, DSS) and layer.kernel_length):
        return 1.0
    z = layer.kernel_length * layer.eigenvalues(params) * layer.step_sizes(params, None)
    return 2.0 + (np.abs(z * np.exp(z)) + np.abs(np.exp(z)) + 1.0) / np.abs(np.expm1(z))


# --- derivatives -----------------------------------------------------------------------------------------------


def _tangent(case: Case, which: int, run: _Run, name: str, direction: Values) -> _Run:
    """The sizes of the derivatives of a run's quantities along a direction of one argument."""
    layer, zero = case.layer, 0.0 * run.drive
    still = replace(run, a=0 * run.a, da=0 * run.da, drive=zero, ddrive=zero, x0=0 * run.x0, C=0 * run.C)
    if name == "u":
        moved = _run(replace(case, u=direction), which)
        return replace(still, signal=moved.signal, drive=moved.drive, ddrive=moved.ddrive)
    if name == "state":
        x0 = np.abs(_of_direction(layer, from_pair(direction), which))
        return replace(still, x0=_norm(x0) * np.sqrt(layer.weight) if isinstance(layer, S4) else x0)
    if name.startswith("C"):
        C = np.abs(direction) * layer.weight * (name.startswith("C_reverse") == bool(which))
        return replace(still, C=_norm(C) if isinstance(layer, S4) else C)
    if name == "D":
        return still

    def along(of: Callable[[Leaves], NDArray]) -> NDArray:
        """The derivative of an array-valued function of the parameters."""
        ends = [of(case.params | {name: case.params[name] + s * DIFFERENCE * direction}) for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * DIFFERENCE)

    scale, u = run.signal.step_scale, run.signal.u
    if isinstance(layer, S4):
        moved_A = along(lambda p: recurrence.dense_transition(layer.discretized(p, scale)[0]))
        a = np.linalg.norm(moved_A, 2, axis=(-2, -1))[..., None]
        drive = _norm(along(lambda p: layer.discretized(p, scale)[1])) * np.sqrt(layer.weight) * np.abs(u)[..., None]
        return replace(still, a=a, da=2 * a * (1 + run.da), drive=drive, ddrive=2 * drive * (1 + run.da))
    z = np.abs(layer.eigenvalues(case.params) * layer.step_sizes(case.params, scale))
    moved_z = np.abs(along(lambda p: layer.eigenvalues(p) * layer.step_sizes(p, scale)))
    a = np.abs(along(lambda p: layer.discretized(p, scale)[0]))
    gain = np.abs(layer.discretized(case.params, scale)[1])
    moved_gain = (
        np.abs(along(lambda p: layer.discretized(p, scale)[1])) + layer.step_sizes(case.params, scale) * moved_z
    )
    moved_Bu = np.abs(along(lambda p: layer.drive(p, u)))
    if name.startswith("B") and isinstance(layer, S5):
        moved_Bu = np.abs(u) @ np.abs(direction).T
    drive = moved_gain * _input_size(layer, case.params, u) + gain * moved_Bu
    condition = (2 + z) * _normaliser_condition(layer, case.params)
    return replace(still, a=a, da=(2 + z) * (a + moved_z), drive=drive, ddrive=drive * condition)


def _tangent_bounds(run: _Run, moved: _Run) -> tuple[Values, Values]:
    """Size and error of the derivative of the states: the same recurrence, driven by dA x + ddrive."""
    size = run.scan(moved.a * run.before(run.size, run.x0) + moved.drive, moved.x0)
    inherited = run.da * run.before(size, moved.x0) + moved.a * run.before(run.error, 0 * run.x0)
    own = moved.da * run.before(run.size, run.x0) + moved.ddrive + size
    return size, run.scan(inherited + own, 0 * moved.x0)


# --- convolution forms -----------------------------------------------------------------------------------------


def _impulse(run: _Run) -> _Run:
    """The run driven by one impulse of the input's 2-norm per mode: its output bounds the kernel times the input."""
    first = (slice(None),) * run.axis + (slice(0, 1),)
    drive, ddrive = np.zeros_like(run.drive), np.zeros_like(run.ddrive)
    drive[first] = np.linalg.norm(run.drive, axis=run.axis, keepdims=True)
    ddrive[first] = np.linalg.norm(run.ddrive, axis=run.axis, keepdims=True)
    return replace(run, drive=drive, ddrive=ddrive, x0=0 * run.x0)


def _fft_factor(case: Case, *, derivative: bool = False) -> float:
    """Error of an FFT convolution over ||K|| ||u||: log2 of its length for each of three transforms, times what
    Cauchy sums cancel for S4.
    """
    cancelled = _cancellation(case.layer, case)[derivative] if isinstance(case.layer, S4) else 1.0
    return 3 * np.log2(2 * case.u.shape[-2]) * cancelled


def _cancellation(layer: S4, case: Case) -> tuple[float, float]:
    """For S4's kernel and for its derivatives, what sums over a circle lose, in root mean square.

    K^(h) = C~ S B - g (C~ S P) W (P^* S B) with S diagonal, as ptd.convolution.cauchy has it. An error of S_n moves it
    by that of S_n times the closed-loop vectors c = [C~ - g (C~ S P) W P^*]_n and b = [B - g P W (P^* S B)]_n; each of
    the sums adds its own rounding. The derivative by Lambda_n is c_n b_n dS_n/dLambda_n with dS proportional to S^2, so
    there the relative errors of S, c and b count once more.
    """
    params, L = case.params, case.u.shape[-2]
    transition, _ = layer.discretized(params, _scale(case))
    Lambda, P, B = layer.system(params)
    Lambda, B, C = (_both_halves(layer, x) for x in (Lambda, B, layer.complex_leaf(params, "C")))
    P = np.swapaxes(_both_halves(layer, np.swapaxes(P, -1, -2)), -1, -2)
    powered = np.linalg.matrix_power(recurrence.dense_transition(transition), L)
    step, worst, relative = layer.step_sizes(params, _scale(case)), [], 1.0
    t = np.tanh(-np.log(CIRCLE) / (2 * L))
    f = 1 / (1 - t * step * Lambda / 2)
    C = (1 + t) * (C + CIRCLE * (C[..., None, :] @ powered)[..., 0, :])
    for h in (np.arange(L) + 0.5) * np.pi / L:
        top, bottom = 2j * np.sin(h), np.cos(h) * (step * Lambda - 2 * t) * f
        S, g = step * f / (top - bottom), np.cos(h) + 1j * t * np.sin(h)
        dS = np.abs(S) * (np.abs(top) + np.abs(bottom)) / np.abs(top - bottom)
        W = np.linalg.inv(np.eye(layer.rank) + g * _inner(P.conj(), S, P))
        through_C = (((C * S)[..., None, :] @ P) @ W)[..., 0, :]
        through_B = (W @ (np.swapaxes(P.conj(), -1, -2) @ (S * B)[..., None]))[..., 0]
        c = C - g * np.sum(through_C[..., None, :] * P.conj(), axis=-1)
        b = B - g * np.sum(P * through_B[..., None, :], axis=-1)
        sums = np.sum(np.abs(C * S * B), -1) + np.sum(
            np.abs(C * S) * (np.abs(P) @ np.abs(through_B)[..., None])[..., 0], -1
        )
        sums += np.sum(np.abs(B * S) * (np.abs(P) @ np.abs(through_C)[..., None])[..., 0], -1)
        gram = _inner(np.abs(P), np.abs(S), np.abs(P))
        sums += (np.abs(through_C)[..., None, :] @ gram @ np.abs(through_B)[..., None])[..., 0, 0]
        for whole, part in ((c, C), (b, B), (top - bottom, top)):
            relative = max(relative, float(np.max((np.abs(part) + np.abs(part - whole)) / np.abs(whole))))
        worst.append((np.sum(dS * np.abs(c) * np.abs(b), -1) + sums, np.abs(np.sum(c * S * B, -1))))
    error, size = (np.sqrt(np.mean(np.square(part), axis=0)) for part in zip(*worst, strict=True))
    factor = float(max(1.0, np.max(error / size)))
    return factor, 4 * factor * relative


def _both_halves(layer: Layer, x: NDArray) -> NDArray:
    """All modes of x (..., P) where one of each conjugate pair is stored."""
    return np.concatenate([x, x.conj()], axis=-1) if layer.conj_sym else x


def _inner(left: NDArray, S: NDArray, right: NDArray) -> NDArray:
    """left^T diag(S) right, (..., r, r)."""
    return np.swapaxes(left, -1, -2) @ (S[..., None] * right)


# --- small things ----------------------------------------------------------------------------------------------


def _scale(case: Case) -> Values | None:
    scale = case.call.get("step_scale")
    return None if scale is None else np.asarray(scale)


def _form(case: Case) -> str:
    varying = case.call.get("resets") is not None or np.ndim(case.call.get("step_scale", 0.0)) > 0
    return case.call.get("form") or ("scan" if varying else case.layer.default_form)


def _readout(run: _Run, b: Values) -> Values:
    """|C| b: (..., L, *modes) -> (..., L, H)."""
    return b @ run.C.T if isinstance(run.layer, S5) else np.sum(run.C * b, axis=-1)


def _anywhere(run: _Run, b: Values) -> Values:
    """The largest b over time: lengths may end a sequence at any sample."""
    return np.maximum(b.max(axis=run.axis), run.x0)


def _of_direction(layer: Layer, x: NDArray, which: int) -> NDArray:
    """x (..., [2,] *state_axes) of one direction."""
    return np.take(x, which, axis=-1 - len(layer.state_axes)) if layer.bidirectional else x


def _weights(case: Case, w_state: Values, which: int) -> Values:
    """|w_state| per mode of one direction; per feature where modes are bounded by a norm."""
    w = np.linalg.norm(_of_direction(case.layer, from_pair(w_state), which)[..., None], axis=-1)
    return _norm(w) if isinstance(case.layer, S4) else w


def _norm(x: NDArray) -> Values:
    return np.linalg.norm(x, axis=-1, keepdims=True)
