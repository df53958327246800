"""What the original programs computed: their parameters, an input and their output, in tests/golden.

The files were made by running the originals with random parameters far from initial ones, in float32:

    s5_*          lindermanlab/S5 at d133f4d, on jax 0.10.2 and flax 0.12.8
    s5_pytorch*   s5-pytorch 0.2.1 from PyPI, on torch 2.13.0
    lru*          NicolasZucchet/minimal-LRU at bbd71b1, on jax 0.10.2 and flax 0.12.8
    s4d_*         state-spaces/s4, models/s4/s4d.py at 2ed46fc and example.py at 1f39234, on torch 2.13.0
    s4_*          state-spaces/s4, models/s4/s4.py at 070384a, up to activation and output_linear
    s4_v3_*       the kernels of its version 3, from a copy that names no commit, in the convolution of s4_*
    dss_*         ag1988/dss, its standalone DSS, from a copy that names no commit, up to the activation

Of the last four only the forward passes were taken, which read the parameters; their initial values are not made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptd import Layer, SequenceModel
from ptd_conformance import tolerance
from ptd_conformance.cases import Case
from ptd_conformance.outcome import compare

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Original:
    """One run of an original: its arrays by name, its input and its output."""

    arrays: dict[str, np.ndarray]
    u: np.ndarray
    y: np.ndarray
    lengths: np.ndarray | None


def original(name: str) -> Original:
    with np.load(GOLDEN / f"{name}.npz") as file:
        found = dict(file)
    arrays = {name.removeprefix("arrays/"): value for name, value in found.items() if name.startswith("arrays/")}
    return Original(arrays, found["u"], found["y"], found.get("lengths"))


def layer_error(layer: Layer, leaves: dict, run: Original) -> float:
    """The worst error of the reference with imported leaves, as a ratio of what float32 rounding may do to outputs."""
    case = Case(layer, leaves, run.u.astype(np.float64))
    return compare("output", run.y, layer.apply(leaves, case.u), tolerance.output(case, "float32")).ratio


def model_error(model: SequenceModel, leaves: dict, run: Original, inputs: np.ndarray, **call: np.ndarray) -> float:
    """As layer_error for a classifier that ends in a log-softmax; allowed is what clause S1 of the suite allows.

    That is 16 times the reference's own error in float32: another order of summation has room in it.
    """
    narrow = {name: value.astype(np.float32) for name, value in leaves.items()}
    wide = log_softmax(model.apply(leaves, _as(inputs, np.float64), **call))
    own = log_softmax(model.apply(narrow, _as(inputs, np.float32), **call))
    return compare("output", run.y, wide, 16 * np.abs(own - wide).max()).ratio


def log_softmax(y: np.ndarray) -> np.ndarray:
    largest = y.max(axis=-1, keepdims=True)
    return y - largest - np.log(np.exp(y - largest).sum(axis=-1, keepdims=True))


def _as(inputs: np.ndarray, dtype: type) -> np.ndarray:
    return inputs if inputs.dtype.kind in "iu" else inputs.astype(dtype)
