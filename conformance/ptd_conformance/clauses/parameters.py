"""Parameters: the same leaves everywhere, exchanged through one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ptd

from .. import oracle, tolerance
from ..bench import Bench
from ..cases import SUBJECTS, case
from ..clause import clause
from ..outcome import Measurement, compare, holds

CONSTRUCTORS = ("S4", "S4D", "DSS", "S5")


@clause("P1", SUBJECTS, needs="modules")
def module_owns_the_named_leaves(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A module's leaves have core's names, shapes and values, and its call equals the pure function."""
    c = case(subject, 6)
    module = bench.backend.module(c.layer, c.params, bench.dtype)
    found = module.leaves()
    yield holds("names", found.keys() == c.params.keys())
    for name, value in c.params.items():
        yield compare(name, found[name], value, 0.0)
    y, _ = oracle.outputs(c)
    yield compare("call", bench.host(module(bench.array(c.u))), y, tolerance.output(c, bench.dtype))
    yield holds("initial state", tuple(module.initial_state((2,)).shape) == c.layer.state_shape((2,)))


@clause("P2", SUBJECTS, needs="modules")
def saved_file_loads_in_the_reference(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A file saved from this backend loads in the reference with equal outputs, and the other way round."""
    c = case(subject, 6)
    module = bench.backend.module(c.layer, c.params, bench.dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        ptd.save(path, c.layer, module.leaves())
        description, params = ptd.load(path)
    yield holds("description", description == c.layer)
    y = ptd.backend("numpy").apply(c.layer, {n: v.astype(np.float64) for n, v in params.items()}, c.u)
    yield compare(
        "reference from its file", y, bench.host(module(bench.array(c.u))), 2 * tolerance.output(c, bench.dtype)
    )


@clause("P3", CONSTRUCTORS, needs="modules")
def constructors_draw_from_the_seed(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The constructors take the field's names and draw the reference's numbers from the seed."""
    options = {"bidirectional": True, "dt_min": 0.01, "dt_max": 0.1, "init": "legs", "seed": 3, "dtype": bench.dtype}
    mine = getattr(bench.backend, subject)(4, 6, **options).leaves()
    theirs = getattr(ptd.backend("numpy"), subject)(4, 6, **options).leaves()
    yield holds("names", mine.keys() == theirs.keys())
    for name, value in theirs.items():
        yield compare(name, mine[name], value, 0.0)
