"""Learners of several processes, on a CPU, against those of one: ptd_torch.data_parallel."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from several_devices import L, run_on_two_devices_is_that_of_one, same_leaves

import ptd
from ptd_torch import backend
from ptd_torch.ranks import Part, Ranks

CPU = backend.on("cpu")
# Under a final batch norm the gradient by this bias is all rounding, of which Adam makes full steps.
RULE = ptd.Optimizer(lr=1e-2, total_steps=9, frozen=("encoder.bias",))


def model(**own) -> ptd.SequenceModel:
    return ptd.SequenceModel(ptd.S5(4, 4, bidirectional=True), **{"n_layers": 1, "d_input": 1, "d_output": 3} | own)


def learners(described: ptd.SequenceModel, *devices: int) -> list:
    leaves = described.initialize(np.random.default_rng(0), init="legs")
    return [CPU.learner(described, leaves, RULE, 0, devices=n) for n in devices]


def samples(count: int, *, pairs: bool = False) -> tuple:
    rng, pair = np.random.default_rng(1), (2,) if pairs else ()
    inputs = rng.standard_normal((count, *pair, L, 1)).astype(np.float32)
    return inputs, rng.integers(0, 3, count), rng.integers(5, L, (count, *pair))


@pytest.mark.parametrize(
    ("described", "devices"),
    [
        (model(norm="batch", norm_epsilon=0.1, dropout=0.3, tie_dropout=True, final_norm=True), 2),
        (model(norm="layer", dropout=0.3, pair=True), 3),
    ],
    ids=["batch norm, tied dropout", "pairs, three devices"],
)
def test_learner_of_several_devices_is_that_of_one(described, devices):
    """Losses, leaves, moments, outputs; batches that do not divide; a snapshot goes on bit for bit."""
    data = samples(30, pairs=described.pair)
    order = np.random.default_rng(2).permutation(28).reshape(4, 7)
    one, many = learners(described, 1, devices)
    sets = [learner.place(*data) for learner in (one, many)]
    found = []
    for learner, placed in zip((one, many), sets, strict=True):
        first, kept = learner.train(placed, order[:2]), learner.snapshot()
        then = learner.train(placed, order[2:])
        step = float(learner.step(*(part[:8] for part in data)))
        found.append(([*first, *then, step], learner.evaluate(placed, np.arange(17), 5)))
    assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    assert_allclose(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)
    same_leaves(many, one)
    assert_allclose(many.outputs(data[0], data[2]), one.outputs(data[0], data[2]), rtol=1e-4, atol=1e-5)
    many.restore(kept)
    assert (many.train(sets[1], order[2:]) == found[1][0][2:4]).all()


def test_run_on_two_devices_is_that_of_one(tmp_path):
    assert run_on_two_devices_is_that_of_one(CPU, tmp_path).learner.ranks.size == 2


def test_processes_agree_on_precision_sets_and_ends():
    """Autocast is theirs too; what is freed here is freed there; bad batches are refused, and cost nothing."""
    one, two = learners(model(), 1, 2)
    data = samples(12)
    placed = [learner.place(*data) for learner in (one, two)]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = [learner.train(whole, np.arange(8)[None]) for learner, whole in zip((one, two), placed, strict=True)]
    assert_allclose(*narrow, rtol=1e-5)
    with pytest.raises(ValueError, match=r"^batch: expected at least 2 rows, one a device, got 1; train on fewer"):
        two.train(placed[1], np.arange(3)[:, None])
    with pytest.raises(ValueError, match=r"^order: expected row numbers"):
        two.train(placed[1], np.array([[3, 99]]))
    with pytest.raises(ValueError, match=r"^inputs: expected shape \(\.\.\., L, 1\) from d_input, got \(12, 16, 0\)"):
        two.step(data[0][..., :0], data[1])
    another = two.place(*data)
    assert len(two._sets) == 2
    del another
    gc.collect()
    assert len(two._sets) == 1
    losses = [learner.train(whole, np.arange(8)[None]) for learner, whole in zip((one, two), placed, strict=True)]
    assert_allclose(*losses, rtol=1e-4)
    with pytest.raises(RuntimeError, match="KeyError: 2"), two._team.told("train", 2, np.arange(8)[None]):
        time.sleep(0.1)


def test_learner_ends_with_a_process_of_its_own_and_they_end_with_it():
    (two,) = learners(model(), 2)
    placed = two.place(*samples(8))
    ((_, process),) = two._team._others
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(RuntimeError, match="a process of one of the devices ended"):
        two.train(placed, np.arange(8)[None])
    with pytest.raises(RuntimeError, match="at an end since one of its devices failed: make another, and restore"):
        two.train(placed, np.arange(8)[None])
    (two,) = learners(model(), 2)
    ((_, process),) = two._team._others
    del two
    gc.collect()
    assert process.poll() == 0


def test_learner_goes_on_whatever_befalls_its_processes_and_their_forks(monkeypatch):
    """Signals to all of a job, an end of a forked process, another default dtype, half a snapshot that cannot be."""
    (two,) = learners(model(), 2)
    placed, kept = two.place(*samples(8)), two.snapshot()
    ((_, process),) = two._team._others
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        _, end, arguments, _ = two._team._end.peek()
        end(*arguments)
    torch.set_default_dtype(torch.float64)
    try:
        first = two.train(placed, np.arange(8)[None])
    finally:
        torch.set_default_dtype(torch.float32)
    changed = {name: value + 1 for name, value in kept.items()} | {"steps": np.array("many")}
    with pytest.raises(TypeError):
        two.restore(changed)
    two.restore(kept)
    assert (two.train(placed, np.arange(8)[None]) == first).all()


def test_restore_changes_all_or_nothing():
    (one,) = learners(model(), 1)
    kept = one.snapshot()
    with pytest.raises(TypeError):
        one.restore({name: value + 1 for name, value in kept.items()} | {"steps": np.array("many")})
    assert all((value == kept[name]).all() for name, value in one.snapshot().items())


def test_learner_is_at_an_end_once_interrupted(monkeypatch):
    """Also where this process has done its part: what the others still say is of no later call."""
    (two,) = learners(model(), 2)
    monkeypatch.setattr(two._team, "_wait", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        two.place(*samples(8))
    with pytest.raises(RuntimeError, match="at an end"):
        two.place(*samples(8))


def test_what_other_processes_cannot_have_is_refused_before_they_start(monkeypatch):
    class Own(ptd.S5):
        pass

    monkeypatch.setattr(subprocess, "Popen", None)
    leaves = model().initialize(np.random.default_rng(0))
    local = dataclasses.replace(model(), layer=Own(4, 4, bidirectional=True))
    with pytest.raises(ValueError, match=r"^devices: expected with .* can import, got .*\.Own; define it in a module$"):
        CPU.learner(local, leaves, RULE, 0, devices=2)
    monkeypatch.setattr(Own, "__module__", "__main__")
    with pytest.raises(ValueError, match=r", got __main__\..*Own; define it in a module$"):
        CPU.learner(local, leaves, RULE, 0, devices=2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_available", lambda: False)
        with pytest.raises(ValueError, match=r"^devices: expected 1 on cpu, for which this torch has no gloo, got 2$"):
            learners(model(), 2)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match=r"^devices: expected 1 on Windows, .*, got 2$"):
        learners(model(), 2)


def test_what_fails_on_a_device_is_said_here():
    (two,) = learners(model(), 2)
    said = r"cpu, 2 of 2, failed:\n(.*\n)*AttributeError: .*no_such_method"
    with pytest.raises(RuntimeError, match=said), two._team.told("no_such_method"):
        time.sleep(0.1)


def test_processes_end_with_the_one_they_are_of(tmp_path):
    """Though it is killed, and they wait for it in a sum."""
    code = (
        f"import numpy as np, time, sys; sys.path[:0] = [{os.path.dirname(__file__)!r}]\n"
        "from test_torch_data_parallel import learners, model, samples\n"
        "two, = learners(model(), 2); placed = two.place(*samples(8))\n"
        "with two._team.told('train', 1, np.arange(8, dtype=np.int32)[None]):\n"
        "    print(two._team._others[0][1].pid, flush=True); time.sleep(60)\n"
    )
    own = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    with subprocess.Popen([sys.executable, "-c", code], **own) as process:
        other = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and _runs(other):
        time.sleep(0.05)
    assert not _runs(other)


def _runs(pid: int) -> bool:
    """Whether a process is there and no mere entry that nobody has looked at."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_are_all_of_a_batch():
    ranks = [Ranks.__new__(Ranks) for _ in range(3)]
    for rank, each in enumerate(ranks):
        each.rank, each.size = rank, 3
    assert [each.part(128) for each in ranks] == [Part(0, 42, 128), Part(42, 43, 128), Part(85, 43, 128)]
