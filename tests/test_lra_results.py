"""Records against published accuracies, the report's section, and the robustness measurement."""

from __future__ import annotations

import base64
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lra_sources import load, small_sets, tiny

import ptd
from ptd.quickstart import last_spike, wave
from ptd_conformance.lra import checkpoint, clock, results, robustness, standings
from ptd_conformance.lra.recipe import recipe
from ptd_conformance.lra.training import Run

__all__ = ["small_sets"]


def record(**changes) -> results.Record:
    """A record of a complete full run of S5 on ListOps."""
    values = {
        "lra": results.FORMAT,
        "task": "listops",
        "recipe": "s5",
        "of": "S5",
        "backend": "jax",
        "device": "a device",
        "seed": 0,
        "epochs": 40,
        "activations": "float32",
        "devices": [1],
        "full": True,
        "state": "complete",
        "note": "",
        "training_seconds": 1800,
        "test": 0.63,
        "curve": [],
        "data": {"splits": {"train": 96_000, "validation": 2_000, "test": 2_000}},
    }
    return values | changes


def outcome(*records: results.Record) -> str:
    (found,) = [s for s in standings.standings(records) if s.backend]
    return found.outcome


def test_accuracy_at_or_above_the_published_one_meets_it():
    assert outcome(record(test=0.6215)) == "met"


def test_narrower_activations_are_said_beside_the_result():
    (found,) = [s for s in standings.standings([record(activations="bfloat16")]) if s.backend]
    assert found.note == "bfloat16 activations"


def test_what_further_samples_say_stands_beside_the_result():
    further = {"samples": 20_000, "accuracy": 0.61}
    (found,) = [s for s in standings.standings([record(test=0.60, further=further)]) if s.backend]
    assert found.note == "seed 0: 61.00 ± 0.34 on 20000 further samples"
    assert found.outcome == "missed"


def test_a_record_that_does_not_say_is_of_float32_on_one_device(tmp_path):
    old = {name: value for name, value in record().items() if name not in ("activations", "devices")}
    results.write(tmp_path / "old.json", old)
    (found,) = [s for s in standings.standings(results.read_all(tmp_path)) if s.backend]
    assert found.note == ""


def test_devices_of_a_run_are_said_where_they_were_several():
    ran = [record(devices=[1, 2]), record(seed=1, devices=[2])]
    (found,) = [s for s in standings.standings(ran) if s.backend]
    assert found.note == "on 1 and 2 devices"


def test_a_run_under_way_says_how_far_it_came():
    under_way = record(state="running", test=None, best={"epoch": 26, "validation": 0.8848})
    (found,) = [s for s in standings.standings([under_way]) if s.backend]
    assert (found.outcome, found.note) == ("running", "best validation so far 88.48, epoch 26 of 40")


@pytest.mark.parametrize(("test", "expected"), [(0.6107, "within error"), (0.6105, "missed")])
def test_one_seed_is_held_to_the_sampling_error_of_its_test_set(test, expected):
    """Against 62.15: sqrt(.61 .39 / 2000) is 1.09 points."""
    assert outcome(record(test=test)) == expected


def test_seeds_count_together_whatever_devices_they_ran_on():
    (found,) = [s for s in standings.standings([record(), record(seed=1, test=0.61, device="another")]) if s.backend]
    assert (found.device, found.mean, sorted(found.accuracies)) == ("a device, another", 62.0, [0, 1])


def test_mean_within_one_standard_deviation_of_its_seeds_meets():
    """Seeds 61.0, 62.0, 63.0: mean 62.0, deviation 1.0, against 62.15."""
    assert outcome(*(record(seed=i, test=0.61 + 0.01 * i) for i in range(3))) == "met"


def test_mean_further_off_than_its_spread_misses():
    """Seeds 61.0, 61.1, 61.2: deviation 0.1."""
    assert outcome(*(record(seed=i, test=0.61 + 0.001 * i) for i in range(3))) == "missed"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"state": "running", "test": None}, "running"),
        ({"state": "diverged", "test": None}, "diverged"),
        ({"full": False, "test": 0.9}, "trial"),
        ({"of": "", "test": 0.1}, "met"),
    ],
    ids=["running", "diverged", "trial", "no target"],
)
def test_what_is_no_result_is_called_by_its_name(changes, expected):
    assert outcome(record(**changes)) == expected


def test_trial_does_not_count_beside_a_full_run():
    (found,) = [s for s in standings.standings([record(), record(seed=1, full=False, test=0.9)]) if s.backend]
    assert found.accuracies == {0: pytest.approx(63.0)}


def test_the_summary_has_what_completed_beside_the_published_figure_bold_where_that_is_reached(tmp_path):
    ran = [
        record(),
        record(seed=1, test=0.64),
        record(recipe="s5-ptd", of="S5-PTD", test=0.5),
        record(task="text", test=None, state="running"),
        record(task="image", recipe="s4d", of="S4D", test=None, state="running"),
    ]
    for i, made in enumerate(ran):
        results.write(tmp_path / f"{i}.json", made)
    assert standings.summary([tmp_path, tmp_path / "none"]) == [
        ["recipe", "backend", "ListOps", "Text (IMDB)", "Image (grey CIFAR-10)"],
        ["s5", "jax", "**63.50 ± 0.71** (62.15)", "running (89.31)", ""],
        ["s5-ptd", "jax", "50.00 (62.75)", "", ""],
    ]


def test_what_is_said_of_a_task_stands_once_above_its_runs(tmp_path):
    for i, made in enumerate([record(task="text"), record(task="text", recipe="s4d", of="S4D")]):
        results.write(tmp_path / f"{i}.json", made)
    (table, *_) = standings.section(tmp_path)
    said = [row for row in table["rows"] if row[-1].startswith("trained on 22,500")]
    assert [row[:2] for row in table["rows"]].index(["Text (IMDB)", ""]) == table["rows"].index(said[0])
    assert (len(said), {len(row) for row in table["rows"]}) == (1, {len(standings.COLUMNS)})
    assert [row[1] for row in table["rows"] if row[0] == "Text (IMDB)"][:3] == ["", "s4d", "s5"]
    assert not [row for row in table["rows"] if row[:2] == ["ListOps", ""]]  # of which nothing ran


def test_runs_that_are_due_and_missing_are_listed_with_the_reason():
    found = {(s.task, s.recipe): s for s in standings.standings([record()])}
    assert found["listops", "s5-ptd"].outcome == "not run"
    assert found["retrieval", "s5"].note == "the data set has to be fetched from its publisher"
    assert found["listops", "s5"].hours == 0.5


def test_every_due_recipe_and_target_exists():
    published = standings.targets()
    for task, names in published["due"].items():
        for name in names:
            assert task in published["accuracy"][recipe(task, name).of]


@pytest.mark.parametrize(
    ("name", "what", "read"),
    [
        ("odd.json", "the record of a run", results.read_all),
        ("robustness-odd.json", "a result of ptd robustness", robustness.read_all),
        ("checkpoint.json", "the checkpoint of .*", checkpoint.values_of),
    ],
)
@pytest.mark.parametrize(("text", "got"), [('{"a": ', "JSONDecodeError: "), ("[]", "a list"), ("{}", ".*, .* missing")])
def test_file_of_another_kind_is_refused_by_name(name, what, read, text, got, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"^{name}: expected {what}, got {got}.*; .*copy"):
        read(tmp_path)


@pytest.mark.parametrize("changes", [{"lra": 2}, {"task": "sudoku"}, {"state": "lost"}], ids=str)
def test_record_of_another_format_task_or_state_is_refused(changes, tmp_path):
    results.write(tmp_path / "odd.json", record(**changes))
    with pytest.raises(ValueError, match=r"^odd.json: expected the record of a run, got another format, task or state"):
        results.read_all(tmp_path)


def test_changed_recipe_is_no_full_run(small_sets, tmp_path):
    data = load(small_sets, "mnist", 16)
    data = type(data)(data.task, data.key, data.d_input, dict(data.manifest) | {"full": True}, data.splits)
    full = recipe("mnist", "s5")
    small = tiny("mnist", "s5", epochs=full.epochs)
    assert not results.is_full(Run(small, data, ptd.backend("jax"), 0, tmp_path))


# --- commands


def command(*arguments: str) -> subprocess.CompletedProcess:
    code = "from ptd.cli import main; main()"
    environment = os.environ | {"COLUMNS": "250"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize(("test", "status"), [(0.63, 0), (0.60, 1)], ids=["met", "missed"])
def test_conformance_checks_recorded_accuracies_and_fails_on_a_miss(test, status, tmp_path):
    results.write(tmp_path / "a.json", record(test=test))
    done = command("conformance", "--lra", "--results", str(tmp_path))
    assert (done.returncode, "FAIL" in done.stdout) == (status, bool(status)), done.stderr


def test_conformance_without_backend_or_lra_says_what_to_pass():
    done = command("conformance")
    assert (done.returncode, done.stderr.count("\n"), "pass --backend NAME, or --lra" in done.stderr) == (1, 1, True)


def test_report_shows_the_accuracies(tmp_path):
    source = Path(__file__).parent.parent / "conformance" / "results" / "numpy-cpu.json"
    (tmp_path / "numpy-cpu.json").write_text(source.read_text())
    (tmp_path / "lra").mkdir()
    results.write(tmp_path / "lra" / "a.json", record())
    done = command("report", str(tmp_path), "--html", str(tmp_path / "index.html"))
    page = (tmp_path / "index.html").read_text()
    assert done.returncode == 0, done.stderr
    assert all(text in page for text in ("Long Range Arena", "<td>63.00", "<td>62.15", "<td>met", "<td>not run"))


# --- robustness


@pytest.fixture(scope="module")
def trained(small_sets, tmp_path_factory) -> tuple[Run, Path]:
    folder, data = tmp_path_factory.mktemp("scifar"), load(small_sets, "scifar", 64)
    small = tiny("scifar", "s4d-learned", epochs=20)
    assert Run(small, data, ptd.backend("jax"), 0, folder).go(clock.Clock())
    return Run.selected(folder, data), folder


def test_noise_is_measured_against_the_clean_accuracy_of_the_run(trained):
    run, _ = trained
    found = robustness.measure(run, amplitudes=(0.0, 300.0), frequencies=(1.0,), samples=1000)
    assert found["clean"] == run.progress.test
    assert found["by_amplitude"][0] == [0.0, found["clean"]]
    assert found["by_amplitude"][1][1] < found["clean"]
    assert found["w_0"] == last_spike(8)


def test_noise_of_a_layer_runs_with_its_own_steps():
    step = np.array([0.01, 0.02])
    np.testing.assert_allclose(wave(step, 5, 10.0)[:, 1], np.cos(0.2 * np.arange(5)), rtol=1e-6)


def test_results_are_written_read_and_tabulated(trained, tmp_path):
    run, _ = trained
    found = robustness.measure(run, amplitudes=robustness.AMPLITUDES[:1], frequencies=(0.5,), samples=8)
    with pytest.raises(ValueError, match=r"^out: expected a folder with results of ptd robustness, got .*; pass runs$"):
        robustness.draw(tmp_path)
    robustness.write(tmp_path, found)
    assert robustness.table(tmp_path)[0]["picture"] == ""
    robustness.draw(tmp_path)
    drawn = (tmp_path / "robustness.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    (table,) = robustness.table(tmp_path)
    assert base64.b64decode(table["picture"]) == drawn
    assert table["rows"][0][:2] == ["s4d-learned", "jax"]
    assert results.read_all(tmp_path) == []
    assert standings.section(tmp_path)[1]["title"] == table["title"]


def test_run_that_is_not_complete_is_not_measured(small_sets, tmp_path):
    with pytest.raises(ValueError, match=r"^runs: expected the folder of a complete run, got .*ptd train --resume"):
        Run.selected(tmp_path, load(small_sets, "scifar", 64))


@pytest.mark.parametrize("samples", [0, -4])
def test_noise_needs_samples(trained, samples):
    with pytest.raises(ValueError, match=f"^samples: expected a positive integer, got {samples}"):
        robustness.measure(trained[0], samples=samples)


def test_layer_whose_steps_are_its_modes_is_not_measured(small_sets, tmp_path):
    s5 = dataclasses.replace(
        tiny("scifar", "s4d-learned"),
        layer={"kind": "s5", "d_model": 4, "d_state": 8},
    )
    run = Run(s5, load(small_sets, "scifar", 64), ptd.backend("jax"), 0, tmp_path)
    with pytest.raises(
        ValueError, match=r"^runs: expected layers with a step for every feature, .* got s5; pass other"
    ):
        robustness.measure(run, samples=8)


def test_recipe_that_freezes_nothing_is_drawn(trained, tmp_path):
    found = robustness.measure(trained[0], amplitudes=(), frequencies=(), samples=8)
    del found["options"]["optimizer"]["frozen"]
    robustness.write(tmp_path, found)
    robustness.draw(tmp_path)
    assert (tmp_path / robustness.FIGURE).exists()
