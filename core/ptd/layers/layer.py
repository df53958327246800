"""What every layer has in common: its description, its parameters' names and shapes, and the modes of running it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .. import checks, sequences
from ..arrays import Array, as_complex, as_pair, astype, from_pair, namespace
from ..discretization import RULES
from ..kernels import PORTABLE, Kernels

Parameters = Mapping[str, Array]

#: The stability rule, in 1/time: layers read Re Lambda as min(Lambda_re, -STABILITY_MARGIN), so no training step
#: can leave the left half-plane. A mode pushed past the margin decays at the margin and gets no gradient there.
STABILITY_MARGIN = 1e-4


@dataclass(frozen=True)
class Layer:
    """A state-space layer x' = A x + B u, y = C x + D u, described without its parameters.

    Attributes:
        d_model: H, the number of input and output features.
        d_state: N, the order of the state matrix before conjugate pairs are merged (per channel, or S5's total).
        discretization: "zoh" or "bilinear".
        conj_sym: store one mode of each conjugate pair and read out 2 Re(C x); else store all and read out Re(C x).
        bidirectional: add a second run from right to left, with the same A and B and its own C.
        skip: include D.
    """

    d_model: int
    d_state: int
    discretization: str = "zoh"
    conj_sym: bool = True
    bidirectional: bool = False
    skip: bool = True

    #: The ways of running a sequence, and the one taken by default; all but "scan" need time-invariance.
    forms: ClassVar[tuple[str, ...]] = ("scan", "convolution")
    default_form: ClassVar[str] = "scan"
    discretizations: ClassVar[tuple[str, ...]] = tuple(RULES)

    def __post_init__(self) -> None:
        checks.plain_fields(self)
        checks.positive_integer("d_model", self.d_model)
        checks.positive_integer("d_state", self.d_state)
        checks.choice("discretization", self.discretization, self.discretizations)
        for name in ("conj_sym", "bidirectional", "skip"):
            checks.boolean(name, getattr(self, name))

    # --- description -------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """The layer's name: "s4", "s4d", "dss" or "s5"."""
        return type(self).__name__.lower()

    @property
    def modes(self) -> int:
        """P, the number of stored modes (per channel, or S5's total)."""
        return math.ceil(self.d_state / 2) if self.conj_sym else self.d_state

    @property
    def state_axes(self) -> tuple[int, ...]:
        """The axes of the complex state after the batch axes."""
        raise NotImplementedError

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, all real."""
        C = self._C_shape()
        names = {"Lambda_re": self._Lambda_shape(), "Lambda_im": self._Lambda_shape(), "C_re": C, "C_im": C}
        if self.bidirectional:
            names |= {"C_reverse_re": C, "C_reverse_im": C}
        if self.skip:
            names["D"] = (self.d_model,)
        return names

    def state_shape(self, batch: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Shape of the state as a real array: batch, [2 directions,] state axes, (re, im)."""
        return (*batch, *((2,) if self.bidirectional else ()), *self.state_axes, 2)

    def check(self, params: Parameters) -> None:
        """Raise ValueError unless params has exactly this layer's leaves, real, finite and of the right shapes."""
        checks.leaves(self.kind, params, self.shapes())

    def check_call(
        self,
        params: Parameters,
        u: Array,
        *,
        state: Array | None = None,
        lengths: Any = None,
        resets: Any = None,
        step_scale: Any = None,
        form: str | None = None,
        activations: frozenset[str] = frozenset(),
        **_: Any,
    ) -> None:
        """Raise ValueError where the arguments of apply do not fit; see there for the values that are looked at.

        A backend that compiles apply calls this first, while values are not traced.
        """
        checks.shapes(self.kind, params, self.shapes())
        checks.array("u", u)
        xp = namespace(u)
        if u.ndim < 2 or u.shape[-1] != self.d_model or u.shape[-2] < 1:
            raise checks.fail("u", f"shape (..., L, H) with L >= 1 and H={self.d_model} from d_model", tuple(u.shape))
        if not xp.isdtype(u.dtype, "real floating"):
            raise checks.fail("u", "a real floating dtype", u.dtype, "cast u to the parameters' dtype")
        dtype = params["log_step"].dtype
        checks.one_dtype(params, dtype)
        if u.dtype != dtype and checks.name_of(u.dtype) not in activations:
            checks.same_dtype("u", u, params["log_step"], "cast one of them")
        batch, time = tuple(u.shape[:-2]), "the batch axes and length of u"
        if state is not None:
            checks.shape("state", state, self.state_shape(batch), "the batch axes of u, then layer.state_shape()")
            checks.same_dtype("state", state, params["log_step"], "a state is real, (re, im) last")
        if lengths is not None:
            checks.lengths(lengths, u.shape[-2])
            checks.shape("lengths", lengths, batch, "the batch axes of u")
        if resets is not None:
            checks.flags("resets", resets)
            checks.broadcasts("resets", resets, tuple(u.shape[:-1]), time)
        if step_scale is not None:
            checks.positive("step_scale", step_scale, "it multiplies step sizes, which are times")
            checks.broadcasts("step_scale", step_scale, tuple(u.shape[:-1]), time)
        if form is not None:
            checks.choice("form", form, self.forms)
            if form != "scan" and (resets is not None or _per_sample(step_scale)):
                need = "'scan' with resets or per-sample steps"
                raise checks.fail("form", need, repr(form), "other forms need time-invariance")
            if form == "chunked" and self.bidirectional and state is not None:
                need = "'scan' for a bidirectional layer with a state"
                raise checks.fail(
                    "form", need, repr(form), "the last chunk may end before the state enters from the right"
                )

    def check_step(self, params: Parameters, u_k: Array, state: Array, *, step_scale: Any = None) -> None:
        """Raise ValueError where the arguments of step do not fit, as check_call does for those of apply."""
        if self.bidirectional:
            remedy = "a right-to-left run needs the whole sequence: use apply"
            raise checks.fail("bidirectional", "False for step mode", True, remedy)
        checks.array("u_k", u_k)
        if u_k.ndim < 1:
            raise checks.fail("u_k", f"shape (..., H) with H={self.d_model} from d_model", tuple(u_k.shape))
        if state is None:
            remedy = "begin with module.initial_state(batch), zeros of layer.state_shape(batch)"
            raise checks.fail("state", "an array, the state before u_k", None, remedy)
        checks.array("state", state)
        batch = tuple(state.shape[: max(0, state.ndim - len(self.state_shape()))])
        if u_k.ndim == len(batch) + 2 and tuple(u_k.shape[: len(batch)]) == batch:
            expected = f"one sample, shape {(*batch, self.d_model)} from state"
            raise checks.fail("u_k", expected, tuple(u_k.shape), "step u[..., k, :]; apply runs whole sequences")
        self.check_call(params, u_k[..., None, :], state=state)
        if step_scale is not None:
            checks.positive("step_scale", step_scale, "it multiplies step sizes, which are times")
            checks.broadcasts("step_scale", step_scale, tuple(u_k.shape[:-1]), "the batch axes of u_k")

    def form_of(
        self,
        kernels: Kernels,
        shape: tuple[int, ...],
        *,
        state: Any = None,
        resets: Any = None,
        step_scale: Any = None,
        return_state: bool = False,
        form: str | None = None,
        **_: Any,
    ) -> str:
        """The form in which apply runs a call on u of that shape: the one asked for, else the fastest on kernels."""
        if form is not None:
            return form
        if resets is not None or _per_sample(step_scale):
            return "scan"
        from_rest = state is None and not return_state
        fastest = kernels.fastest_form(self, _size(shape) if from_rest else None)
        return "scan" if fastest == "chunked" and self.bidirectional and state is not None else fastest

    # --- running -----------------------------------------------------------------------------------------------

    def apply(
        self,
        params: Parameters,
        u: Array,
        *,
        state: Array | None = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        step_scale: Array | float | None = None,
        return_state: bool = False,
        form: str | None = None,
        kernels: Kernels = PORTABLE,
    ) -> Any:
        """The layer's output on whole sequences; y_k contains u_k.

        Args:
            params: real leaves, named and shaped as in shapes().
            u: real (..., L, H), L >= 1.
            state: real state_shape(batch), the state before the first sample (and, for the reverse direction,
                after the last); zero if None.
            lengths: integer (...), the valid length of each sequence; y is zero from there on, and the final state
                is the one at the end of the valid part.
            resets: bool (..., L) or (L,); a reset at k equals a split at k.
            step_scale: factor on the step size: a number (another sampling rate), or (..., L) or (L,), one per
                sample (irregular sampling). Positive.
            return_state: also return the final state.
            form: of forms, "scan", "convolution" or "chunked"; by default the fastest that supports the call.
            kernels: the table of kernels to run on.

        Returns:
            y, real (..., L, H); with return_state the pair (y, final state).

        Raises:
            ValueError: a shape, dtype or value does not fit; the message names it. Shapes and dtypes are always
                checked, values of lengths and step_scale where nothing has to wait for them: numbers, sequences and
                arrays of NumPy, and a framework's arrays on a CPU, unless traced (compiled, exported, transformed).
                Elsewhere lengths count as the nearest of 0 ... L, and a step_scale <= 0 gives meaningless numbers.
        """
        call: dict[str, Any] = {
            "state": state,
            "lengths": lengths,
            "resets": resets,
            "step_scale": step_scale,
            "form": form,
        }
        self.check_call(params, u, **call, activations=kernels.activations)
        signal = self.signal(u, lengths, resets, step_scale, params["log_step"].dtype)
        starts = self._starts(state)
        form = self.form_of(kernels, u.shape, return_state=return_state, **call)
        if form == "chunked":
            y, end = self.chunked(params, signal, starts[0], return_state, kernels)
            return (y, end) if return_state else y
        signal = replace(signal, u=astype(signal.u, params["log_step"]))
        y, end = self._run(params, "C", signal, starts[0], return_state, form, kernels)
        ends = [end]
        if self.bidirectional:
            y_reverse, end = self._run(params, "C_reverse", signal.reversed(), starts[1], return_state, form, kernels)
            y = y + sequences.flip(y_reverse, signal.lengths)
            ends.append(end)
        if self.skip:
            y = y + params["D"] * signal.u
        y = sequences.mask(astype(y, u), signal.lengths)
        return (y, self._joined(ends)) if return_state else y

    def step(
        self, params: Parameters, u_k: Array, state: Array, *, step_scale: Array | float | None = None
    ) -> tuple[Array, Array]:
        """One sample: the output at k and the state after it.

        Args:
            params: real leaves, named and shaped as in shapes().
            u_k: real (..., H).
            state: real state_shape(batch).
            step_scale: factor on the step size, a number or (...).

        Returns:
            y_k, real (..., H), and the new state.

        Raises:
            ValueError: a shape does not fit, or the layer is bidirectional and so has no causal step.
        """
        self.check_step(params, u_k, state, step_scale=step_scale)
        if step_scale is not None:
            step_scale = namespace(u_k).asarray(step_scale, dtype=u_k.dtype)
        x = self.update(params, u_k, self._starts(state)[0], step_scale)
        y = self.readout(self.complex_leaf(params, "C"), x)
        return y + params["D"] * u_k if self.skip else y, as_pair(x)

    # --- what a layer defines ----------------------------------------------------------------------------------

    def states(self, params: Parameters, signal: sequences.Signal, x0: Array, kernels: Kernels) -> Array:
        """Every state, complex (..., L, *state_axes)."""
        raise NotImplementedError

    def response(
        self, params: Parameters, C: Array, signal: sequences.Signal, x0: Array | None, kernels: Kernels
    ) -> Array:
        """The output without D by convolution, real (..., L, H)."""
        raise NotImplementedError

    def update(self, params: Parameters, u_k: Array, x: Array, step_scale: Array | None) -> Array:
        """The state after one sample."""
        raise NotImplementedError

    def readout(self, C: Array, x: Array) -> Array:
        """C x as a real array: (..., *state_axes) -> (..., H)."""
        raise NotImplementedError

    def _C_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def _Lambda_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def chunked(
        self, params: Parameters, signal: sequences.Signal, x0: Array | None, return_state: bool, kernels: Kernels
    ) -> tuple[Array, Array | None]:
        """Output of all directions with D, zero in padding, and the final state where asked for; see ChunkedLayer."""
        raise NotImplementedError

    # --- shared parts ------------------------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """2 where a stored mode stands for a conjugate pair, else 1."""
        return 2.0 if self.conj_sym else 1.0

    def complex_leaf(self, params: Parameters, name: str) -> Array:
        """The complex array stored as the leaves name_re and name_im."""
        return as_complex(params[name + "_re"], params[name + "_im"])

    def eigenvalues(self, params: Parameters) -> Array:
        """The eigenvalues under the stability rule. At the margin itself the gradient passes."""
        xp = namespace(params["Lambda_re"])
        re = params["Lambda_re"]
        re = xp.where(re > -STABILITY_MARGIN, xp.full_like(re, -STABILITY_MARGIN), re)
        return as_complex(re, params["Lambda_im"])

    def step_sizes(self, params: Parameters, step_scale: Array | None) -> Array:
        """Step sizes with singleton axes so that they broadcast against the modes, (..., *state_axes)."""
        xp = namespace(params["log_step"])
        step = xp.exp(params["log_step"])
        step = xp.reshape(step, step.shape + (1,) * (len(self.state_axes) - 1))
        if step_scale is None:
            return step
        if step_scale.ndim:
            step_scale = xp.reshape(step_scale, step_scale.shape + (1,) * len(self.state_axes))
        return step_scale * step

    def _run(
        self,
        params: Parameters,
        C_name: str,
        signal: sequences.Signal,
        x0: Array | None,
        return_state: bool,
        form: str,
        kernels: Kernels,
    ) -> tuple[Array, Array | None]:
        """One direction: output without D, and the final state where asked for."""
        C = self.complex_leaf(params, C_name)
        if form == "convolution":
            y = self.response(params, C, signal, x0, kernels)
            return y, self._final(self.states(params, signal, x0, kernels), signal, x0) if return_state else None
        x = self.states(params, signal, x0, kernels)
        return self.readout(C, x), self._final(x, signal, x0) if return_state else None

    def _final(self, x: Array, signal: sequences.Signal, x0: Array | None) -> Array:
        xp, batch = namespace(x), signal.u.shape[:-2]
        flat = xp.reshape(x, (*batch, x.shape[len(batch)], math.prod(self.state_axes)))
        before = xp.zeros_like(flat[..., 0, :]) if x0 is None else xp.reshape(x0, flat[..., 0, :].shape)
        return xp.reshape(sequences.last(flat, signal.lengths, before), (*batch, *self.state_axes))

    def _starts(self, state: Array | None) -> list[Array | None]:
        """The complex initial state of each direction."""
        directions = 2 if self.bidirectional else 1
        if state is None:
            return [None] * directions
        x0 = from_pair(state)
        if not self.bidirectional:
            return [x0]
        axes = (slice(None),) * len(self.state_axes)
        return [x0[(..., direction, *axes)] for direction in range(directions)]

    def _joined(self, ends: list[Array | None]) -> Array:
        pairs = [as_pair(end) for end in ends]
        return pairs[0] if len(pairs) == 1 else namespace(pairs[0]).stack(pairs, axis=-2 - len(self.state_axes))

    def signal(self, u: Array, lengths: Any, resets: Any, step_scale: Any, dtype: Any = None) -> sequences.Signal:
        """The call's inputs as arrays, broadcast to the batch; steps in dtype, by default that of u."""
        xp = namespace(u)
        lengths = None if lengths is None else sequences.within(xp.asarray(lengths), u.shape[-2])
        if resets is not None:
            resets = xp.broadcast_to(xp.asarray(resets), u.shape[:-1])
        if step_scale is not None:
            step_scale = xp.asarray(step_scale, dtype=u.dtype if dtype is None else dtype)
            step_scale = xp.broadcast_to(step_scale, u.shape[:-1]) if step_scale.ndim else step_scale
        return sequences.Signal(sequences.mask(u, lengths), lengths, resets, step_scale, u)


def _per_sample(step_scale: Any) -> bool:
    """Whether step_scale is one per sample. Without np.ndim, which a tracing compiler (torch 2.11) runs as a tensor."""
    return isinstance(step_scale, (list, tuple)) or getattr(step_scale, "ndim", 0) > 0


def _size(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The number of sequences and L; None where an exporter leaves them open, which a comparison would bind."""
    return (math.prod(shape[:-2]), shape[-2]) if all(isinstance(size, int) for size in shape) else None
