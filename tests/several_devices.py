"""What training on several devices must be, whatever the backend: that on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lra_sources import Stops, tiny
from numpy.testing import assert_allclose

from ptd.contract import Backend
from ptd_conformance.lra import clock, results, store
from ptd_conformance.lra.training import Run

L = 16


def run_on_two_devices_is_that_of_one(backend: Backend, folder: Path) -> Any:
    """Its curve, test and parameters, and those of one that goes on on two; returns the learner of two."""
    small, data = tiny("image", "s5-ptd-closed", batch=6), images()
    one, two, moved = (Run(small, data, backend, 0, folder / str(i), devices=n) for i, n in enumerate((1, 2, 1)))
    assert one.go(clock.Clock())
    assert two.go(clock.Clock())
    assert not moved.go(Stops(2))
    moved = Run(small, data, backend, 0, moved.folder, devices=2)
    assert moved.restore()
    assert 0 < moved.progress.step < moved.steps
    assert moved.go(clock.Clock())
    for run, devices in ((two, [2]), (moved, [1, 2])):
        for row, expected in zip(run.progress.curve, one.progress.curve, strict=True):
            assert_allclose(row["loss"], expected["loss"], rtol=1e-4)
            assert row["validation"] == expected["validation"]
        assert run.progress.test == one.progress.test
        assert results.of(run, "complete")["devices"] == devices
        same_leaves(run.learner, one.learner)
    return two.learner


def images() -> store.DataSet:
    rng = np.random.default_rng(0)

    def split(count: int) -> store.Split:
        return store.Split(rng.integers(0, 256, (count, L), np.uint8), rng.integers(0, 10, count), None)

    splits = {"train": split(24), "validation": split(11), "test": split(11)}
    return store.DataSet("image", "made-up", 1, {"made_from": {}, "splits": {}}, splits)


def same_leaves(found: Any, expected: Any) -> None:
    for name, value in expected.parameters().items():
        assert_allclose(found.parameters()[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
