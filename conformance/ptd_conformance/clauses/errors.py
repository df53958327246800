"""Bad input: a one-line error that begins with the argument's name, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd

from ..bench import Bench
from ..cases import exact
from ..clause import clause
from ..outcome import Measurement, holds

LAYER = ptd.S5(3, 4)

#: What is passed wrongly, by case: the argument that the message must begin with, and the call.
BAD_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "u-width": ("u", {"u": np.ones((2, 5, 4))}),
    "u-empty": ("u", {"u": np.ones((2, 0, 3))}),
    "u-one-axis": ("u", {"u": np.ones(3)}),
    "u-integers": ("u", {"u": np.ones((2, 5, 3), np.int32)}),
    "state-shape": ("state", {"state": np.ones((2, 4))}),
    "lengths-shape": ("lengths", {"lengths": np.array([1, 2, 3])}),
    "lengths-too-long": ("lengths", {"lengths": [5, 6]}),
    "lengths-negative": ("lengths", {"lengths": [5, -1]}),
    "lengths-real": ("lengths", {"lengths": [1.5, 2.0]}),
    "resets-shape": ("resets", {"resets": np.zeros((2, 4), bool)}),
    "resets-integers": ("resets", {"resets": np.zeros((2, 5), np.int32)}),
    "steps-shape": ("step_scale", {"step_scale": np.ones((2, 4))}),
    "steps-zero": ("step_scale", {"step_scale": 0.0}),
    "steps-negative": ("step_scale", {"step_scale": -1.0}),
    "steps-nan": ("step_scale", {"step_scale": float("nan")}),
    "form-unknown": ("form", {"form": "fft"}),
    "form-impossible": ("form", {"form": "convolution", "resets": np.zeros((2, 5), bool)}),
}

BAD_LEAVES: dict[str, tuple[str, dict[str, Any]]] = {
    "leaf-missing": ("params", {"D": None}),
    "leaf-foreign": ("params", {"E": np.ones(3)}),
    "leaf-shape": ("B_re", {"B_re": np.ones((3, 2))}),
    "leaf-nan": ("C_im", {"C_im": np.full((3, 2), np.nan)}),
    "leaf-complex": ("D", {"D": np.ones(3) + 0j}),
}


def refused(argument: str, call: Any) -> Measurement:
    """Whether a call raises ValueError in one line that begins with the argument's name."""
    try:
        call()
    except ValueError as error:
        text = str(error)
        return holds(f"message: {text}", text.startswith(f"{argument}:") and "\n" not in text and "expected" in text)
    return holds("no error", False)


def refused_or_nearest(bench: Bench, params: dict[str, Any], u: Any, lengths: NDArray) -> Measurement:
    """Whether lengths in a framework's array are refused or, where nobody can look at them, count as the nearest."""

    def run(lengths: NDArray) -> Any:
        return bench.backend.apply(LAYER, params, u, lengths=bench.array(lengths), return_state=True)

    try:
        found = run(lengths)
    except ValueError:
        return refused("lengths", lambda: run(lengths))
    nearest = run(np.clip(lengths, 0, u.shape[-2]))
    same = (np.array_equal(bench.host(a), bench.host(b)) for a, b in zip(found, nearest, strict=True))
    return holds("lengths count as the nearest", all(same))


def leaves() -> dict[str, Any]:
    """Good parameters of LAYER."""
    drawn = ptd.initialize(LAYER, np.random.default_rng(0), init="legs")
    return {name: exact(value) for name, value in drawn.items()}


@clause("E1", BAD_CALLS)
def bad_call_is_refused(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A wrong argument of apply is refused by name; lengths in an accelerator's array may count as the nearest."""
    argument, wrong = BAD_CALLS[subject]
    params, call = bench.arrays(leaves()), {"u": np.ones((2, 5, 3)), **wrong}
    u = bench.array(call.pop("u"))
    host = {n: bench.array(v) if isinstance(v, np.ndarray) and n != "lengths" else v for n, v in call.items()}
    yield refused(argument, lambda: bench.backend.apply(LAYER, params, u, **host))
    if isinstance(call.get("lengths"), list):
        yield refused_or_nearest(bench, params, u, np.array(call["lengths"]))


@clause("E2", BAD_LEAVES, needs="modules")
def bad_leaf_is_refused(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A module is not built from wrong or non-finite leaves."""
    argument, wrong = BAD_LEAVES[subject]
    params = {name: value for name, value in (leaves() | wrong).items() if value is not None}
    yield refused(argument, lambda: bench.backend.module(LAYER, params, bench.dtype))


@clause("E3", ("bidirectional",))
def bidirectional_layers_refuse_to_step(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A bidirectional layer has no step and says so."""
    layer = ptd.S5(3, 4, bidirectional=True)
    params = bench.arrays(ptd.initialize(layer, np.random.default_rng(0), init="legs"))
    state = bench.array(np.zeros(layer.state_shape()))
    yield refused("bidirectional", lambda: bench.backend.step(layer, params, bench.array(np.ones(3)), state))
