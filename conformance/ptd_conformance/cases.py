"""Named, seeded cases: every layer in every discretisation, odd and even sizes, and the edges.

All values are exact in float32, so that every backend and the reference start from the same numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd
from ptd.layers import S4
from ptd.layers.diagonal import DiagonalLayer

Leaves = dict[str, NDArray[np.float64]]

#: Every layer of the lattice, with the initialisation its cases draw from.
SUBJECTS: dict[str, tuple[S4 | DiagonalLayer, str]] = {
    "s5-zoh": (ptd.S5(3, 8, blocks=2), "ptd-closed"),
    "s5-bilinear-odd": (ptd.S5(2, 5, discretization="bilinear"), "legs"),
    "s5-all-modes": (ptd.S5(2, 4, conj_sym=False), "ptd-closed"),
    "s4d-zoh": (ptd.S4D(3, 6), "legs"),
    "s4d-bilinear-odd": (ptd.S4D(2, 5, discretization="bilinear", shared=True), "ptd-closed"),
    "s4d-real": (ptd.S4D(2, 3, conj_sym=False), "real"),
    "dss-exp": (ptd.DSS(3, 4), "legs"),
    "dss-softmax": (ptd.DSS(2, 4, kernel_length=17), "legs"),
    "s4-legs": (ptd.S4(3, 6), "legs"),
    "s4-legs-odd-all-modes": (ptd.S4(2, 5, conj_sym=False, shared=False), "legs"),
    "s4-legt": (ptd.S4(2, 6, rank=2), "legt"),
    "s4-fout-odd": (ptd.S4(2, 5), "fout"),
}

#: The length of cases whose clause needs no other: calls alike in shapes are one program of a backend that compiles.
#: LONG where only many samples show an error, VALID where a part of COMMON samples is compared.
COMMON, LONG, VALID = 12, 509, 8

ZOH = [name for name, (layer, _) in SUBJECTS.items() if layer.discretization == "zoh"]


@dataclass(frozen=True, eq=False)
class Case:
    """A layer, its parameters, an input, and how the layer is called. Equal only to itself, so results can be kept."""

    layer: S4 | DiagonalLayer
    params: Leaves = field(repr=False)
    u: NDArray[np.float64] = field(repr=False)
    call: dict[str, Any] = field(default_factory=dict, repr=False)

    def with_call(self, **call: Any) -> Case:
        """The same case called differently."""
        return dataclasses.replace(self, call=call)

    @property
    def state(self) -> NDArray[np.float64]:
        """A random initial state, the same for every call of this case."""
        return generic(_rng("state"), self.layer.state_shape(self.u.shape[:-2]))


@functools.cache
def case(
    subject: str,
    L: int,
    batch: tuple[int, ...] = (2,),
    *,
    bidirectional: bool = False,
    dt: tuple[float, float] = (0.02, 0.2),
) -> Case:
    """The case of a subject with a random input of length L, steps log-uniform in dt."""
    layer, init = SUBJECTS[subject]
    layer = dataclasses.replace(layer, bidirectional=bidirectional)
    rng = _rng(f"{subject} {L} {batch}")
    params = ptd.initialize(layer, rng, init=init, dt_min=dt[0], dt_max=dt[1])
    return Case(layer, {n: exact(v) for n, v in params.items()}, generic(rng, (*batch, L, layer.d_model)))


def generic(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal values, exact in float32."""
    return exact(rng.standard_normal(shape))


def exact(values: NDArray) -> NDArray[np.float64]:
    """Values rounded to float32, as float64."""
    return np.asarray(values).astype(np.float32).astype(np.float64)


def steps(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Step scales between 1/2 and 2, exact in float32."""
    return exact(np.exp2(_rng("steps").uniform(-1, 1, shape)))


def flags(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Reset flags, about one in four, never none."""
    drawn = _rng("flags").uniform(size=shape) < 0.25
    drawn[..., shape[-1] // 2] = True
    return drawn


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
