"""Training runs at a small size: every task end to end; a stopped or killed run resumed is the uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lra_sources import Stops, load, small_sets, tiny

import ptd
from ptd_conformance.lra import checkpoint, clock, lock, recipe, results, store
from ptd_conformance.lra.retest_command import retest
from ptd_conformance.lra.tasks import TASKS, Order
from ptd_conformance.lra.train_command import train as train_here
from ptd_conformance.lra.training import Diverged, Run

__all__ = ["small_sets"]

HERE = Path(__file__).parent
TRAINING = [n for n, found in ptd.backends().items() if found.loadable and "training" not in ptd.backend(n).unsupported]


@pytest.fixture(params=TRAINING)
def backend(request):
    return ptd.backend(request.param)


JAX = ptd.backend("jax")
RECIPES = {
    "listops": "s5-ptd",
    "text": "s5-ptd",
    "retrieval": "s5",
    "same-film": "s5-ptd-closed",
    "image": "s5-ptd-closed",
    "pathfinder": "s5",
    "pathx": "s4",
    "scifar": "s4d",
    "mnist": "s5",
    "pmnist": "s5",
}


def state(folder: Path) -> tuple[dict, dict]:
    """A checkpoint without its clock times and sessions."""
    arrays, values = checkpoint.load(folder)
    p = values["progress"]
    for name in ("seconds", "timed_seconds", "timed_samples", "sessions"):
        p.pop(name)
    for row in [*p["curve"], p["best"] or {}]:
        row.pop("seconds", None)
    return arrays, values


def assert_same(first: Path, second: Path) -> None:
    (a, values_a), (b, values_b) = state(first), state(second)
    assert values_a == values_b
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def accuracy_in_numpy(folder: Path, data: store.DataSet) -> float:
    """The accuracy of a run's model file on the test set, in the reference."""
    numpy, part = ptd.backend("numpy"), data.splits["test"]
    model, leaves = ptd.load(folder / "model.safetensors")
    outputs = numpy.apply_model(model, leaves, np.asarray(part.inputs), lengths=part.lengths)
    return float((outputs.argmax(-1) == part.targets).mean())


# --- every task


@pytest.mark.parametrize("task", RECIPES)
def test_task_runs_end_to_end(task, small_sets, tmp_path, backend):
    run = Run(tiny(task, RECIPES[task]), load(small_sets, task), backend, 0, tmp_path)
    assert run.go(clock.Clock())
    record = results.of(run, "complete")
    results.write(tmp_path / "record.json", record)
    assert results.read(tmp_path / "record.json") == json.loads(json.dumps(record))
    assert [row["epoch"] for row in record["curve"]] == [1, 2]
    assert 0 <= record["test"] <= 1
    assert (record["full"], record["task"], record["seed"]) == (False, task, 0)
    assert accuracy_in_numpy(tmp_path, run.data) == record["test"]


def test_there_is_something_to_learn_and_it_is_learnt(small_sets, tmp_path):
    """Made-up images carry their label in their brightness: ten epochs of a tiny model find it."""
    data = load(small_sets, "image", 32)
    learned = Run(tiny("image", "s4-ptd-closed", epochs=60), data, JAX, 0, tmp_path)
    assert learned.go(clock.Clock())
    losses = [row["loss"] for row in learned.progress.curve]
    assert losses[-1] < losses[0] / 2


def test_first_steps_are_equal_across_backends_and_ways_to_take_them(small_sets, backend):
    """From the same parameters: jax step by step, and every backend on its whole set."""
    small, data = tiny("listops", "s5-ptd-closed"), load(small_sets, "listops")
    model, rule = small.description(data.d_input), small.rule(7, 2)
    leaves, part, order = small.leaves(model, 0), data.splits["train"], np.arange(24).reshape(3, 8)
    one_by_one = JAX.learner(model, leaves, rule, 0)
    expected = [
        float(one_by_one.step(part.inputs[rows], part.targets[rows].astype(np.int32), part.lengths[rows]))
        for rows in order
    ]
    learner = backend.learner(model, leaves, rule, 0)
    losses = learner.train(learner.place(part.inputs, part.targets, part.lengths), order)
    np.testing.assert_allclose(losses[:1], expected[:1], rtol=1e-6)
    # Adam makes a full step of a gradient that is all rounding: single leaves may differ, moves as a whole may not.
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    for name, value in one_by_one.parameters().items():
        moved = np.abs(value - leaves[name]).mean()
        assert np.abs(learner.parameters()[name] - value).mean() <= 0.02 * moved, name


def test_evaluation_of_a_set_is_that_of_its_rows(small_sets, backend):
    small, data = tiny("text", "s5"), load(small_sets, "text")
    model, part = small.description(data.d_input), data.splits["test"]
    learner = backend.learner(model, small.leaves(model, 0), small.rule(7, 2), 0)
    outputs = learner.evaluate(learner.place(part.inputs, part.targets, part.lengths), np.array([5, 0, 7]), 2)
    expected = learner.outputs(part.inputs[[5, 0, 7]], part.lengths[[5, 0, 7]])
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-5)


# --- stopping and resuming


@pytest.fixture(scope="module")
def whole(small_sets, tmp_path_factory):
    """An uninterrupted run with dropout and batch norm, and what it was made of."""
    small = tiny("image", "s5-ptd-closed", epochs=3)
    data, folder = load(small_sets, "image", 32), tmp_path_factory.mktemp("whole")
    run = Run(small, data, JAX, 3, folder)
    assert run.go(clock.Clock())
    return small, data, folder


@pytest.mark.parametrize("pauses", [[1], [2, 1, 3], [4, 2], [5, 1, 1, 1, 1, 1]], ids=str)
def test_stopped_and_resumed_run_is_the_uninterrupted_one(whole, pauses, tmp_path):
    small, data, folder = whole
    for after in [*pauses, 1000]:
        run = Run(small, data, JAX, 3, tmp_path)
        run.restore()
        complete = run.go(Stops(after))
    assert complete
    assert run.progress.sessions == len(pauses) + 1
    assert_same(tmp_path, folder)


def test_a_stopped_run_has_no_test_accuracy_yet(whole, tmp_path):
    small, data, _ = whole
    run = Run(small, data, JAX, 3, tmp_path)
    assert not run.go(Stops(2))
    assert (run.progress.test, run.progress.step > 0 or run.progress.epoch > 0) == (None, True)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import ptd
from ptd import parameters
from ptd_conformance.lra import checkpoint, clock, training
from lra_sources import load, tiny
ending, at = sys.argv[4], int(sys.argv[5])
calls = [0]
honest = parameters.replace_file

def dying(path, data):
    calls[0] += path.name.endswith(ending)
    if calls[0] == at and path.name.endswith(ending):  # half of the file is written, nothing is renamed
        path.with_name(f".{path.name}.{os.getpid()}").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    honest(path, data)

checkpoint.replace_file = dying
checkpoint.PIECE = 4096
training.SAVE_SECONDS = 0.0
small = tiny("image", "s5-ptd-closed", epochs=3)
run = training.Run(small, load(Path(sys.argv[1]), "image", 32), ptd.backend("jax"), 3, Path(sys.argv[2]))
run.restore()
run.go(clock.Clock())
"""


@pytest.mark.parametrize(("ending", "at"), [(".piece", "8"), (".json", "3")])
def test_run_killed_in_the_middle_of_a_save_resumes_as_if_nothing_happened(whole, small_sets, ending, at, tmp_path):
    small, data, folder = whole
    command = [sys.executable, "-c", KILLED, str(small_sets), str(tmp_path), str(HERE), ending, at]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list(tmp_path.glob(".checkpoint*"))
    run = Run(small, data, JAX, 3, tmp_path)
    assert run.restore()
    assert run.go(clock.Clock())
    assert_same(tmp_path, folder)
    assert not list(tmp_path.glob(".checkpoint*"))


def test_checkpoint_from_before_there_could_be_several_devices_is_of_one(whole, tmp_path):
    small, data, folder = whole
    arrays, values = checkpoint.load(folder)
    del values["progress"]["devices"]
    checkpoint.save(tmp_path, arrays, values)
    run = Run(small, data, JAX, 3, tmp_path)
    assert run.restore()
    assert run.progress.devices == [1]


@pytest.mark.parametrize("what", ["seed", "epochs", "recipe", "activations"])
def test_checkpoint_of_another_run_is_refused(whole, what, tmp_path):
    small, data, folder = whole
    other = dataclasses.replace(small, optimizer=dict(small.optimizer) | {"lr": 0.5}) if what == "recipe" else small
    changed = {"epochs": {"epochs": 5}, "activations": {"activations": "bfloat16"}}.get(what, {})
    run = Run(other, data, JAX, 4 if what == "seed" else 3, folder, **changed)
    with pytest.raises(
        ValueError, match=rf": expected a checkpoint of the same {what}, got another's; use another --out"
    ):
        run.restore()


def test_damaged_piece_of_a_checkpoint_is_named(whole, tmp_path):
    import shutil

    _, _, folder = whole
    copy = shutil.copytree(folder, tmp_path / "copy")
    piece = next(copy.glob("*.piece"))
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^{piece.name}: expected the content its name says"):
        checkpoint.load(copy)


def test_selected_parameters_of_a_complete_run_give_its_test_accuracy(whole):
    _, data, folder = whole
    run = Run.selected(folder, data)
    assert run.accuracy("test") == run.progress.test


def test_further_samples_are_counted_into_the_record(small_sets, tmp_path):
    data, folder, further = load(small_sets, "listops", None), tmp_path / "run", tmp_path / "further"
    run = Run(tiny("listops", "s5", epochs=1), data, JAX, 0, folder)
    assert run.go(clock.Clock())
    path = folder / "listops-s5-jax-0.json"
    results.write(path, results.of(run, "complete"))
    TASKS["listops"].make(Order(further, further, seed=1, samples=50))
    retest([folder], further, root=small_sets)
    found, other = results.read(path)["further"], store.load(further, "listops")
    learner = Run.selected(folder, data).learner
    parts = other.splits.values()
    outputs = np.concatenate([learner.outputs(np.asarray(part.inputs), part.lengths) for part in parts])
    targets = np.concatenate([part.targets for part in parts])
    assert found["accuracy"] == pytest.approx((outputs.argmax(-1) == targets).mean(), abs=0.021)  # one near tie
    assert (found["key"], found["samples"]) == (other.key, 50)
    # of the same seed another number of samples begins alike
    same = TASKS["listops"].make(Order(tmp_path / "same", further, seed=0, samples=50)).parents[1]
    with pytest.raises(ValueError, match=r"^further: expected a set of 'listops 1' with another seed than 0, got"):
        retest([folder], same, root=small_sets)
    (tmp_path / "other").mkdir()
    manifest = (folder / "checkpoint.json").read_text().replace('"task": "listops"', '"task": "text"')
    (tmp_path / "other" / "checkpoint.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"^runs: expected runs of one task, got listops, text; one call a task$"):
        retest([folder, tmp_path / "other"], further, root=small_sets)
    results.renew(path, results.of(Run.selected(folder, data), "complete", "again"))
    assert (results.read(path)["note"], results.read(path)["further"]) == ("again", found)


def test_every_sample_comes_at_most_once_in_an_epoch_and_epochs_differ(whole):
    small, data, folder = whole
    run = Run(small, data, JAX, 3, folder)
    first, second = run.order(0), run.order(1)
    assert first.shape == (run.steps, small.batch)
    assert len(np.unique(first)) == first.size
    assert not np.array_equal(first, second)
    assert np.array_equal(first, Run(small, data, JAX, 3, folder).order(0))


def test_best_validation_accuracy_selects_and_the_later_of_equals(whole):
    _, values = state(whole[2])
    p = values["progress"]
    best = max(row["validation"] for row in p["curve"])
    assert p["best"] == [row for row in p["curve"] if row["validation"] == best][-1]


def test_model_of_a_complete_run_is_that_of_its_best_epoch(small_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "accuracy", lambda run, *_: 1 / (1 + run.progress.epoch))
    run = Run(tiny("image", "s4d"), load(small_sets, "image", 32), JAX, 0, tmp_path)
    assert run.go(clock.Clock())
    model, leaves = ptd.load(tmp_path / "model.safetensors")
    arrays, values = checkpoint.load(tmp_path)
    assert (model, values["progress"]["best"]["epoch"]) == (run.model, 1)
    assert [name for name in leaves if leaves[name].tobytes() != arrays[f"best.{name}"].tobytes()] == []
    assert leaves["decoder.weight"].tobytes() != arrays["leaves.decoder.weight"].tobytes()


def test_not_a_number_stops_the_run_with_step_and_parameter(small_sets, tmp_path):
    small = tiny("image", "s4-ptd-closed", epochs=4)
    small = dataclasses.replace(small, optimizer={"lr": 1e30, "ssm_lr": 1e-3})
    run = Run(small, load(small_sets, "image", 32), JAX, 0, tmp_path)
    with pytest.raises(
        Diverged, match=r"^step \d+ \(epoch \d+\).*: expected a finite loss, got one that is not, first in "
    ) as found:
        run.go(clock.Clock())
    named = str(found.value).rpartition("first in ")[2].partition(";")[0]
    assert named in run.model.shapes()


def test_run_whose_report_fails_is_saved_and_resumes_as_if_nothing_happened(whole, tmp_path):
    small, data, folder = whole
    steps = []

    def report(run, loss):
        steps.append(run.progress.step)
        if len(steps) == 3:
            raise BrokenPipeError

    run = Run(small, data, JAX, 3, tmp_path, report=report)
    with pytest.raises(BrokenPipeError):
        run.go(clock.Clock())
    resumed = Run(small, data, JAX, 3, tmp_path)
    resumed.restore()
    assert (resumed.progress.step, resumed.progress.epoch) == (run.progress.step, run.progress.epoch) != (0, 0)
    assert resumed.go(clock.Clock())
    assert_same(tmp_path, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.clear(), r"KeyError\('identity'\)"),
        (lambda values: values["progress"].update(mood="good"), "also mood"),
        (lambda values: values["identity"]["recipe"].pop("layer"), "none named layer"),
    ],
    ids=["empty", "unknown progress", "no layer"],
)
def test_checkpoint_of_no_run_is_refused_by_name(change, message, whole, tmp_path):
    small, data, folder = whole
    arrays, values = checkpoint.load(folder)
    change(values)
    checkpoint.save(tmp_path, arrays, values)
    expected = f"^{tmp_path.name}/checkpoint.json: expected the values of a run, got {message}; it is damaged"
    with pytest.raises(ValueError, match=expected):
        Run(small, data, JAX, 3, tmp_path).restore()
    with pytest.raises(ValueError, match=expected):
        retest([tmp_path], tmp_path, root=tmp_path)
    with pytest.raises(ValueError, match=expected):
        Run.selected(tmp_path, data)


# --- the clock


@pytest.mark.parametrize(("text", "expected"), [("9m", 540), ("90s", 90), ("1.5h", 5400), ("0.5s", 0.5)])
def test_durations(text, expected):
    assert clock.seconds(text) == expected


@pytest.mark.parametrize("text", ["soon", "9", "0s", "9 minutes"])
def test_what_is_no_duration_with_a_unit_is_refused(text):
    message = f"^budget: expected a duration with its unit, as 9m, 90s or 1.5h, got '{text}'$"
    with pytest.raises(ValueError, match=message):
        clock.seconds(text)


def test_nothing_begins_that_would_outlast_the_budget():
    watch = clock.Clock(100, reserve=10)
    assert (watch.has(80), watch.has(95)) == (True, False)


def test_signal_ends_the_time():
    with clock.Clock() as watch:
        assert watch.has(1e9)
        os.kill(os.getpid(), signal.SIGTERM)
        assert (watch.has(0), watch.why) == (False, "SIGTERM came")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- recipes


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in recipe.names(task)])
def test_recipe_builds_its_model_and_optimiser(task, name):
    found = recipe.recipe(task, name)
    model = found.description(3 if task == "scifar" else 1 if TASKS[task].input else 20)
    rule = found.rule(100, found.epochs)
    assert rule.total_steps == found.training.get("schedule_steps", 100 * found.epochs)
    assert rule.warmup_steps < rule.total_steps
    assert (model.d_output, model.pair) == (TASKS[task].classes, TASKS[task].pair)
    assert model.norm != "batch" or model.norm_momentum in (0.9, 0.95)


def test_s5_recipe_of_text_is_the_published_one():
    found = recipe.recipe("text", "s5-ptd")
    model, rule = found.description(136), found.rule(450, 40)
    assert (model.n_layers, model.layer.d_model, model.layer.d_state, model.layer.blocks) == (6, 256, 192, 12)
    assert (rule.lr, rule.ssm_lr, rule.weight_decay, rule.warmup_steps) == (0.004, 0.001, 0.07, 5 * 450)
    groups = {name: rule.group(f"blocks.0.layer.{name}") for name in ("B_re", "C_re", "Lambda_re", "log_step")}
    assert (groups["B_re"].lr, groups["B_re"].weight_decay) == (0.001, 0)
    assert (groups["C_re"].lr, groups["C_re"].weight_decay) == (0.004, 0.07)
    assert (groups["Lambda_re"].weight_decay, groups["log_step"].lr) == (0, 0.004)


def test_released_text_has_a_norm_after_the_last_block():
    ordinary, released = (recipe.recipe("text", name).description(256) for name in ("s4-ptd", "s4-ptd-released"))
    assert released.shapes().keys() - ordinary.shapes().keys() == {
        f"norm.{n}" for n in ("scale", "bias", "mean", "var")
    }


def test_a_schedule_may_go_on_after_the_last_step_and_ends_with_none_left():
    found = recipe.recipe("listops", "s4-ptd-released")
    rule = found.rule(1920, found.epochs)
    assert (rule.total_steps, rule.warmup_steps, rule.ssm_lr) == (1_200_000, 12_000, 4e-4)
    short = dataclasses.replace(found, training=found.training | {"schedule_steps": 9})
    with pytest.raises(ValueError, match=r"^schedule_steps: expected at least the 80 steps of 80 epochs, got 9"):
        short.rule(1, 80)


OWN = (
    '[a]\nlayer = {kind = "s4d", d_model = 4, d_state = 4}\ninitial = {init = "legs"}\n'
    "model = {n_layers = 1}\noptimizer = {lr = 0.01}\ntraining = {batch = 8, epochs = 2}\n"
)
ODD = {
    "like itself": ('[a]\nlike = "b"\n[b]\nlike = "a"', "FILE a: expected `like` to end .*, got a like b like a"),
    "like none": ('[a]\nlike = "b"', r"FILE a: expected a table \[b\] in the file, got none"),
    "no table": ("a = 3", r"FILE a: expected a table \[a\] in the file, got 3"),
    "no tables": ("[a]\nlayer = 3", "FILE a layer: expected a table, got 3"),
    "no TOML": ("[a", "FILE: expected recipes in TOML, got Expected"),
    "foreign table": (OWN + "layr = {}", "FILE a: expected only initial, layer, .* got also 'layr'"),
    "no kind": (OWN.replace('kind = "s4d", ', ""), "FILE a layer.kind: expected one of .*, got None"),
    "d_stat": (OWN.replace("d_state", "d_stat"), "FILE a layer: expected only .*, got also 'd_stat'"),
    "inti": (
        OWN.replace("init =", "inti ="),
        "FILE a initial: expected only B_init, dt_max, dt_min, init, weights, got also 'inti'",
    ),
    "kind of a rule": (OWN.replace("lr =", "kind = 1, lr ="), "FILE a optimizer: expected only .*, got also 'kind'"),
    "no rate": (OWN.replace("lr = 0.01", ""), "FILE a optimizer: expected at least lr, got no lr"),
    "warmup": (OWN.replace("batch", "warmup = 1, batch"), "FILE a training: expected only .*, got also 'warmup'"),
    "no batch": (OWN.replace("batch = 8, ", ""), "FILE a training: expected at least batch, epochs, got no batch"),
    "batch 0": (OWN.replace("batch = 8", "batch = 0"), "FILE a training.batch: expected a positive integer, got 0"),
    "text": (OWN.replace("batch = 8", 'batch = "8"'), "FILE a training.batch: expected a positive integer, got '8'"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_recipe_file_is_named_with_its_table_and_option(kind, tmp_path):
    text, message = ODD[kind]
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match="^" + message.replace("FILE", str(file))):
        recipe.recipe("image", f"{file}:a")


def test_recipe_file_without_a_name_is_told_its_names(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN + OWN.replace("[a]", "[b]"))
    message = f"^recipe: expected FILE.toml:NAME, got '{file}'; the file has {file}:a, {file}:b$"
    with pytest.raises(ValueError, match=message):
        recipe.recipe("image", str(file))


@pytest.mark.parametrize("name", ["none.toml", "none.toml:a"])
def test_recipe_file_that_is_not_there_is_named(name, tmp_path):
    message = f"^recipe: expected a file FILE.toml:NAME, got no file {tmp_path}/none.toml; pass the path of one$"
    with pytest.raises(ValueError, match=message):
        recipe.recipe("image", f"{tmp_path}/{name}")


def test_recipe_files_are_utf_8_whatever_the_locale(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN.replace("[a]", '[a]\nnote = "Poincaré"'), encoding="utf-8")
    code = "import sys; from ptd_conformance.lra import recipe; print(ascii(recipe.recipe('image', sys.argv[1]).note))"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, f"{file}:a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | plain)
    assert done.stdout == "'Poincar\\xe9'\n", done.stderr


# --- the command


def train(*arguments: str, data: Path) -> subprocess.CompletedProcess:
    code = "from ptd.cli import main; main()"
    environment = os.environ | {"PTD_DATA": str(data)}
    command = [sys.executable, "-c", code, "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def own_recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "own.toml"
    path.write_text(
        '[small]\nlayer = {kind = "s4d", d_model = 4, d_state = 4}\ninitial = {init = "legs"}\n'
        "model = {n_layers = 1}\noptimizer = {lr = 0.01}\ntraining = {batch = 8, epochs = 2}\n"
    )
    return f"{path}:small"


def test_command_trains_and_leaves_record_curve_and_checkpoint(small_sets, own_recipe, tmp_path):
    out = tmp_path / "run"
    done = train("mnist", "--recipe", own_recipe, "--out", str(out), "--note", "a test", data=small_sets)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert done.stdout.splitlines()[-1] == f'ptd.load("{out / "model.safetensors"}") runs in any backend'
    record = results.read(out / "mnist-small-jax-0.json")
    assert (record["state"], record["full"], record["note"], len(record["source"])) == ("complete", False, "a test", 64)
    assert (out / "curve.csv").read_text().splitlines()[0] == "epoch,loss,validation,seconds"
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    again = train("mnist", "--recipe", own_recipe, "--out", str(out), data=small_sets)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "pass --resume or another --out" in again.stderr
    assert [read["note"] for read in results.read_all(out)] == ["a test"]


@pytest.fixture
def here(small_sets, own_recipe, tmp_path):
    """The command in this process, on one folder."""

    def call(*, resume: bool = False, **options) -> dict:
        train_here("mnist", own_recipe, out=tmp_path, root=small_sets, resume=resume, **options)
        return results.read(tmp_path / "mnist-small-jax-0.json")

    return call


def test_resumed_run_keeps_its_note_unless_there_is_a_new_one(here):
    assert here(note="shared GPU", budget="0.001s")["note"] == "shared GPU"
    assert here(resume=True)["note"] == "shared GPU"
    assert here(resume=True, note="another")["note"] == "another"


def test_complete_run_that_is_resumed_says_its_result_and_writes_nothing(here, tmp_path, monkeypatch, capsys):
    here()
    capsys.readouterr()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setenv("PTD_COMMIT", "another")
    record = here(resume=True)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "test accuracy" in capsys.readouterr().out
    noted = here(resume=True, note="later")
    assert noted == record | {"note": "later"}
    assert (noted["commit"], noted["sessions"]) != ("another", 2)


def test_complete_run_from_before_there_were_model_files_gets_one_when_it_is_resumed(here, small_sets, tmp_path):
    record = here()
    (tmp_path / "model.safetensors").unlink()
    assert here(resume=True) == record
    assert accuracy_in_numpy(tmp_path, store.load(small_sets, "mnist")) == record["test"]


def test_damaged_record_of_an_intact_checkpoint_is_written_again(here, tmp_path, capsys):
    record, path = here(note="lost"), tmp_path / "mnist-small-jax-0.json"
    path.write_text(path.read_text()[:100])
    assert here(resume=True) == record | {"note": ""}
    assert "mnist-small-jax-0.json: expected the record of a run, got" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a positive integer, got 0"),
        ({"seed": -1}, r"seed: expected an integer in 0..2\^32 - 1, got -1"),
    ],
    ids=str,
)
def test_numbers_of_no_run_are_refused(options, message, here, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        here(**options)
    assert list(tmp_path.iterdir()) == []


def test_second_run_in_a_folder_is_refused_in_one_line(here, tmp_path):
    with (
        lock.alone(tmp_path / ".lock", "out", "a folder"),
        pytest.raises(ValueError, match=r"^out: expected a folder that no other process works on, got one that holds"),
    ):
        here()
    assert not (tmp_path / "checkpoint.json").exists()


def test_lock_ends_with_the_process_that_holds_it(tmp_path):
    code = "import sys, os; from pathlib import Path; from ptd_conformance.lra import lock\n"
    code += "with lock.alone(Path(sys.argv[1]), 'out', 'a folder'): os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")], check=True)
    with lock.alone(tmp_path / ".lock", "out", "a folder"):
        assert (tmp_path / ".lock").exists()


def test_train_names_the_extra_that_is_missing_before_it_trains(here, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"^ptd train: needs matplotlib .*pip install \"ptd\[lra\]\"$"):
        here()
    assert list(tmp_path.iterdir()) == []


def test_run_whose_reader_is_gone_says_so_and_is_saved(small_sets, own_recipe, tmp_path):
    code = "from ptd.cli import main; main()"
    command = [sys.executable, "-c", code, "train", "mnist", "--recipe", own_recipe, "--out", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PTD_DATA": str(small_sets), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (
        1,
        ["ptd: output: expected a reader, got a closed pipe; write it to a file"],
    )


def test_command_trains_with_narrower_activations_and_says_so(small_sets, own_recipe, tmp_path):
    options = ("--recipe", own_recipe, "--out", str(tmp_path), "--activations", "bfloat16")
    done = train("mnist", *options, data=small_sets)
    assert done.returncode == 0, done.stderr
    assert results.read(tmp_path / "mnist-small-jax-0.json")["activations"] == "bfloat16"
    refused = train("mnist", *options, "--backend", "mlx", "--resume", data=small_sets)
    assert refused.stderr.startswith("ptd: activations: expected None, got 'bfloat16'")


def test_command_trains_on_two_devices_and_says_so(small_sets, own_recipe, tmp_path, monkeypatch):
    options = ("mnist", "--recipe", own_recipe, "--out", str(tmp_path), "--devices", "2")
    refused = train(*options, "--backend", "mlx", data=small_sets)
    message = "ptd: devices: expected 1, what mlx trains on, got 2; the jax and torch backends take several\n"
    assert refused.stderr == message
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2", prepend=" ")
    done = train(*options, data=small_sets)
    assert done.returncode == 0, done.stderr
    assert "jax on 2 x cpu, seed 0" in done.stdout
    assert results.read(tmp_path / "mnist-small-jax-0.json")["devices"] == [2]


def test_command_stops_within_its_budget_with_status_0(small_sets, own_recipe, tmp_path):
    done = train("mnist", "--recipe", own_recipe, "--out", str(tmp_path), "--budget", "1s", data=small_sets)
    assert done.returncode == 0, done.stderr
    assert "stopped, the time budget is used up" in done.stdout.replace("\n", " ")
    assert results.read(tmp_path / "mnist-small-jax-0.json")["state"] == "running"
    assert checkpoint.load(tmp_path) is not None
    assert not (tmp_path / "model.safetensors").exists()


def test_command_names_a_backend_that_does_not_train(small_sets):
    done = train("mnist", "--recipe", "s5", "--backend", "numpy", data=small_sets)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "backend: expected one that trains, got numpy" in done.stderr


def test_command_names_what_initialises_where_the_recipe_does_not(small_sets, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN.replace("d_state = 4", "d_state = 2").replace("legs", "ptd"))
    done = train("mnist", "--recipe", f"{file}:a", "--out", str(tmp_path / "run"), data=small_sets)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(
        "ptd: init: expected modes of order 2 by 'ptd', got none: 2 real eigenvalues remain; "
    )


def test_data_sets_are_read_from_the_store_as_they_were_written(small_sets):
    assert store.load(small_sets, "pathx").splits["train"].inputs.shape == (48, 16384)


def test_commands_run_from_a_tree_that_is_not_installed(small_sets, own_recipe, tmp_path):
    command = [sys.executable, "-m", "ptd_conformance.lra", "train", "mnist", "--recipe", own_recipe]
    command += ["--backend", "ptd_jax:backend", "--root", str(small_sets), "--out", str(tmp_path), "--budget", "1s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results.read(tmp_path / "mnist-small-jax-0.json")["state"] == "running"
