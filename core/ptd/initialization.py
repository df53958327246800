"""Initial parameters: one function per layer, from its description and a random generator to named real leaves.

All values are float64 on the host; a backend casts them. The step sizes are log-uniform in [dt_min, dt_max].
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from . import checks, modes
from .layers import DSS, S4, S4D, S5, Layer
from .modes import MODES, Modes
from .perturbation import NotConverged

Leaves = dict[str, NDArray[np.float64]]


def s5(
    layer: S5,
    rng: Generator,
    *,
    init: str | Modes = "ptd",
    B_init: str = "lecun",
    C_init: str = "lecun",
    dt_min: float = 1e-3,
    dt_max: float = 1e-1,
) -> Leaves:
    """Initial parameters of S5; with init="ptd" or "ptd-closed" this is S5-PTD (Yu et al. 2024 sec. 4).

    The state matrix is J copies of one block: B~ = V^-1 B and C~ = C V per block, with real B and complex C drawn in
    the block's own basis. Variances follow the S5 recipes: 1/N for B, 1/(N H) for C "lecun" and 1/N for C
    "trunc_standard_normal" (truncated normals), 1 for C "complex_normal" (drawn in modal coordinates).

    init="ptd" searches, without a word: 13 s at blocks of N = 128 and 60 to 100 s at 256, measured on one core; a later
    one of the same order reads the result from PTD_CACHE. init="ptd-closed" has none to do.

    Args:
        layer: its description.
        rng: source of all randomness.
        init: a name in ptd.modes.MODES, or the Modes of one block.
        B_init: "lecun", or "hippo": the initialisation's own input column for every feature.
        C_init: "lecun", "trunc_standard_normal" or "complex_normal".
        dt_min, dt_max: range of the step sizes, in time, 0 < dt_min <= dt_max.

    Returns:
        The leaves of layer.shapes(), float64.

    Raises:
        ValueError: an unknown name, or a range that is none.
        NotConverged: "ptd" with conj_sym in blocks of order 2, as in S5(128, 16, blocks=8).
    """
    block = _block(init, layer.d_state // layer.blocks, layer.conj_sym)
    checks.choice("B_init", B_init, ("lecun", "hippo"))
    checks.choice("C_init", C_init, ("lecun", "trunc_standard_normal", "complex_normal"))
    H, N = layer.d_model, block.V.shape[0]
    if B_init == "hippo":
        B = np.tile(block.B_tilde[:, None], (layer.blocks, H))
    else:
        drawn = _truncated_normal(rng, (layer.blocks, N, H)) / np.sqrt(layer.d_state)
        B = (block.V_inv @ drawn).reshape(layer.modes, H)

    def C() -> NDArray[np.complex128]:
        if C_init == "complex_normal":
            return _complex_normal(rng, (H, layer.modes))
        drawn = _truncated_normal(rng, (H, layer.blocks, N, 2)) @ np.array([1, 1j]) / np.sqrt(layer.d_state)
        drawn = drawn / np.sqrt(H) if C_init == "lecun" else drawn
        return (drawn @ block.V).reshape(H, layer.modes)

    Lambda = np.tile(block.Lambda, layer.blocks)
    return _leaves(layer, rng, layer.modes, dt_min, dt_max, C, Lambda=Lambda, B=B)


def s4d(
    layer: S4D,
    rng: Generator,
    *,
    init: str | Modes = "legs",
    dt_min: float = 1e-3,
    dt_max: float = 1e-1,
    B_init: str = "hippo",
) -> Leaves:
    """Initial parameters of S4D (Gu et al. 2022 sec. 4); with init="ptd" or "ptd-closed" this is S4-PTD.

    Args:
        layer: its description.
        rng: source of all randomness: C, standard complex normal, D and the steps.
        init: a name in ptd.modes.MODES, or Modes.
        dt_min, dt_max: range of the step sizes, in time, 0 < dt_min <= dt_max.
        B_init: "hippo", the initialisation's own input column, or "ones", as programs of S4D often have it: C is
            random either way, but its modes then begin with equal weights.

    Returns:
        The leaves of layer.shapes(), float64.

    Raises:
        ValueError: an unknown name, or a range that is none.
    """
    checks.choice("B_init", B_init, ("hippo", "ones"))
    m = _block(init, layer.d_state, layer.conj_sym)
    B = m.B_tilde if B_init == "hippo" else np.ones_like(m.B_tilde)
    return _per_feature(layer, rng, dt_min, dt_max, Lambda=m.Lambda, B=B)


def dss(
    layer: DSS, rng: Generator, *, init: str | Modes = "legs", dt_min: float = 1e-3, dt_max: float = 1e-1
) -> Leaves:
    """Initial parameters of DSS: the N modes of positive frequency of a state matrix of order 2N (DSS sec. 4.2).

    Arguments, result and errors as for s4d; there is no B.
    """
    m = _block(init, 2 * layer.d_state, conj_sym=True)
    return _per_feature(layer, rng, dt_min, dt_max, Lambda=m.Lambda)


def s4(layer: S4, rng: Generator, *, init: str | Modes = "legs", dt_min: float = 1e-3, dt_max: float = 1e-1) -> Leaves:
    """Initial parameters of S4: the normal-plus-low-rank form of "legs", "legt" (rank 2) or "fout" (S4 thm 1).

    Arguments, result and errors as for s4d; B is the initialisation's own.
    """
    if not isinstance(init, Modes):
        if init not in ("fout", "legs", "legt"):
            raise checks.fail("init", "one of 'fout', 'legs', 'legt'", repr(init), "S4-PTD is S4D(init='ptd')")
        init = modes.dplr(init, layer.d_state, conj_sym=layer.conj_sym)
    _of_size(init, layer.modes)
    if init.P_tilde is None or init.P_tilde.shape[1] != layer.rank:
        got = "none" if init.P_tilde is None else f"rank {init.P_tilde.shape[1]}"
        raise checks.fail("init", f"modes with a low-rank factor of the layer's rank {layer.rank}", got, "set rank")
    return _per_feature(layer, rng, dt_min, dt_max, Lambda=init.Lambda, B=init.B_tilde, P=init.P_tilde)


INITIALIZERS: dict[type[Layer], Callable[..., Leaves]] = {S5: s5, S4D: s4d, DSS: dss, S4: s4}


def options_of(kind: type[Layer]) -> list[str]:
    """The options that initialize takes for layers of a kind.

    >>> options_of(S4D)
    ['init', 'dt_min', 'dt_max', 'B_init']
    """
    return [name for name in inspect.signature(INITIALIZERS[kind]).parameters if name not in ("layer", "rng")]


def initialize(layer: Layer, rng: Generator, **options: Any) -> Leaves:
    """Initial parameters of any layer: calls the function of its kind with options.

    With init="ptd", S5's own, the first of an order takes time: 13 s at N = 128; see s5.

    Raises:
        TypeError: an option that its function has not.
        ValueError: a value does not fit.

    >>> rng = np.random.default_rng(0)
    >>> params = initialize(S4D(d_model=2, d_state=4), rng, init="lin")
    >>> params["Lambda_im"].round(3).tolist()
    [[0.0, 3.142], [0.0, 3.142]]
    """
    names = ", ".join(kind.__name__ for kind in INITIALIZERS)
    checks.instance("layer", layer, Layer, "a layer", f"pass one of {names}; a model has model.initialize(rng)")
    checks.instance("rng", rng, Generator, "a np.random.Generator", "pass np.random.default_rng(seed)")
    if type(layer) not in INITIALIZERS:
        remedy = "enter the function that draws it in ptd.initialization.INITIALIZERS"
        raise checks.fail("layer", f"one of {names}", type(layer).__name__, remedy)
    checks.options(type(layer).__name__, options, options_of(type(layer)))
    return INITIALIZERS[type(layer)](layer, rng, **options)


def _block(init: str | Modes, N: int, conj_sym: bool) -> Modes:
    """Modes of order N, by name or as given."""
    if isinstance(init, Modes):
        return _of_size(init, math.ceil(N / 2) if conj_sym else N)
    checks.choice("init", init, MODES)
    try:
        return MODES[init](N, conj_sym=conj_sym)
    except NotConverged as error:  # its remedies are arguments of the search, which no layer has
        reason, remedy = str(error).partition(":")[0], "pass init='ptd-closed'"
        remedy += ", or conj_sym=False where the layer is not DSS" if conj_sym else ""
        got = f"none: {reason}"
        raise NotConverged(
            str(checks.fail("init", f"modes of order {N} by {init!r}", got, remedy)), error.best
        ) from error


def _of_size(modes: Modes, P: int) -> Modes:
    if len(modes.Lambda) != P:
        got = f"{len(modes.Lambda)}"
        raise checks.fail("init", f"{P} modes from d_state and conj_sym", got, "build Modes of the layer's order")
    return modes


def _per_feature(layer: S4D | S4, rng: Generator, dt_min: float, dt_max: float, **system: NDArray) -> Leaves:
    if not layer.shared:
        system = {name: np.broadcast_to(value, (layer.d_model, *value.shape)) for name, value in system.items()}
    return _leaves(
        layer,
        rng,
        layer.d_model,
        dt_min,
        dt_max,
        lambda: _complex_normal(rng, (layer.d_model, layer.modes)),
        **system,
    )


def _leaves(
    layer: Layer,
    rng: Generator,
    n_steps: int,
    dt_min: float,
    dt_max: float,
    C: Callable[[], NDArray[np.complex128]],
    **system: NDArray,
) -> Leaves:
    """Complex values as pairs of real leaves, and the rest of the draws."""
    checks.positive_number("dt_min", dt_min, "step sizes are times")
    checks.number("dt_max", dt_max, dt_min, np.inf, f"a finite value >= dt_min={dt_min}")
    if (worst := system["Lambda"].real.max()) >= 0:
        raise checks.fail("init", "modes with Re Lambda < 0", f"max Re Lambda = {worst:.3g}", "the system is unstable")
    system["C"] = C()
    if layer.bidirectional:
        system["C_reverse"] = C()
    leaves = {name + part: np.ascontiguousarray(of(value)) for name, value in system.items() for part, of in PARTS}
    leaves["log_step"] = rng.uniform(np.log(dt_min), np.log(dt_max), n_steps)
    if layer.skip:
        leaves["D"] = rng.standard_normal(layer.d_model)
    layer.check(leaves)
    return leaves


PARTS: tuple[tuple[str, Callable], ...] = (("_re", np.real), ("_im", np.imag))


def _complex_normal(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex normal of unit variance."""
    return rng.standard_normal((*shape, 2)) @ np.array([1, 1j]) * np.sqrt(0.5)


def _truncated_normal(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Normal cut at two standard deviations and rescaled to unit variance."""
    return ndtri(rng.uniform(ndtr(-2.0), ndtr(2.0), shape)) / 0.87962566103423978
