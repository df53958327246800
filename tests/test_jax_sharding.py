"""The jax backend across devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import ptd
from ptd_jax import sharding

LAYER = ptd.S5(2, 4)
MESH = Mesh(np.array(jax.devices()[:1]), ("time",))


def test_eight_devices_equal_one():
    """Sequence parallel, data parallel and both, gradients included; see sharded.py. The devices are host threads."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("sharded.py")
    done = subprocess.run([sys.executable, script], env=os.environ | flags, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


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
