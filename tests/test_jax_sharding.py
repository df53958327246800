"""The jax backend across devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from numpy.testing import assert_allclose

import ptd
from ptd_jax import backend, sharding

LAYER = ptd.S5(2, 4)
MESH = Mesh(np.array(jax.devices()[:1]), ("time",))


@pytest.mark.parametrize(("script", "devices"), [("sharded.py", 8), ("data_parallel.py", 4)])
def test_several_devices_equal_one(script, devices, monkeypatch):
    """Sequence parallel, data parallel and both, gradients included; learners; runs. The devices are host threads."""
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}", prepend=" ")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    script = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


def test_learner_on_a_mesh_of_one_device_is_one():
    """Of explicit axes, as jax.make_mesh makes them; and something else is refused."""
    model = ptd.SequenceModel(ptd.S5(2, 4), 1, 1, 2, norm="batch")
    leaves, rule = model.initialize(np.random.default_rng(0)), ptd.Optimizer(lr=1e-2, total_steps=9)
    u, targets = np.random.default_rng(1).standard_normal((4, 9, 1), np.float32), np.array([0, 1, 1, 0])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    one, other = (backend.learner(model, leaves, rule, 0, mesh=each) for each in (None, mesh))
    assert_allclose([other.step(u, targets) for _ in range(2)], [one.step(u, targets) for _ in range(2)], rtol=1e-5)
    with pytest.raises(ValueError, match=r"mesh: expected a jax\.sharding\.Mesh, got 2"):
        backend.learner(model, leaves, rule, 0, mesh=2)
    with pytest.raises(ValueError, match=r"devices: expected 1 with mesh, got 2; a mesh names its devices"):
        backend.learner(model, leaves, rule, 0, mesh=mesh, devices=2)
    with pytest.raises(ValueError, match=r"devices: expected at most the \d+ that jax finds, got 99; pass fewer"):
        backend.learner(model, leaves, rule, 0, devices=99)
    with pytest.raises(ValueError, match=r"devices: expected a positive integer, got 0"):
        backend.learner(model, leaves, rule, 0, devices=0)


@pytest.mark.parametrize(
    ("layer", "call", "message"),
    [
        (LAYER, {"axis": "space"}, r"axis: expected one of 'time', got 'space'"),
        (LAYER, {"lengths": [3], "return_state": True}, r"return_state: expected False with lengths"),
        (ptd.S4(2, 4), {}, r"layer: expected a diagonal layer, got s4"),
    ],
)
def test_sharded_runs_refuse_what_they_cannot_do(layer, call, message):
    params = {n: np.float32(v) for n, v in ptd.initialize(layer, np.random.default_rng(0), init="legs").items()}
    with pytest.raises(ValueError, match=message):
        sharding.apply(layer, params, np.zeros((1, 4, 2), np.float32), **{"mesh": MESH, "axis": "time", **call})
