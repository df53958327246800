"""`ptd analyze`: the numbers are core's, the tables are what is drawn, the files are what was asked for."""

from __future__ import annotations

import csv
import subprocess
import sys

import numpy as np
import pytest

from ptd import analyze, hippo, transfer
from ptd.analyze import conditioning, gain, outputs, pseudospectra, regression, systems, tables
from ptd.quickstart import MODELS

HEADINGS = {name: f"|G(iw)| {name}" for name in systems.NAMES}


# --- |G(iw)|


@pytest.fixture(scope="module")
def gains():
    return gain.data((4, 12), 0)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("name", systems.NAMES)
def test_gains_are_those_of_the_dense_systems(gains, name, n):
    table = tables.rows(gains[""], n=n)
    w, exact = table[gain.FREQUENCY], table[HEADINGS[name]]
    A, B = systems.system(name, n)
    G = transfer.dense_response(A, B, systems.averaging_row(n), w)
    assert np.allclose(np.abs(G), exact, rtol=1e-10, atol=1e-13)


def test_zoom_shows_the_spike_of_the_exact_formula_in_its_middle(gains):
    for n in (4, 12):
        table = tables.rows(gains["zoom"], n=n)
        spike, middle = transfer.legs_spikes(n, 1), len(table[gain.ZOOM]) // 2
        assert table[gain.ZOOM][middle] == 0
        ratio = table[HEADINGS["S4D"]] / table[HEADINGS["S4"]]
        assert ratio[middle] == pytest.approx(spike.gain[0], rel=1e-9)


def test_last_spike_is_equally_high_at_every_order():
    """4/pi^2 = 2n^2/pi^2 times the 2/n^2 of S4, to first order in 1/n."""
    peaks = [gain.gains(n, {"S4D": "legs"}, transfer.legs_spikes(n, 1).omega)["S4D"][0] for n in (16, 64, 256)]
    assert np.allclose(peaks, 4 / np.pi**2, rtol=0.03)


# --- outputs in time


def test_output_for_the_decaying_input_is_that_of_the_convolution():
    """t e^{-t} for S4 and C = e_0, whatever the order."""
    t = np.linspace(0, 5, 51)
    for n in (4, 16):
        y = outputs.samples(*outputs.decay(*systems.system("S4", n)), systems.first_state(n), t)
        assert np.allclose(y, t * np.exp(-t), atol=1e-12)


def test_impulse_response_of_s4_is_a_decay():
    t = np.linspace(0, 5, 51)
    y = outputs.samples(*outputs.impulse(*systems.system("S4", 16)), systems.first_state(16), t)
    assert np.allclose(y, np.exp(-t), atol=1e-12)


@pytest.mark.parametrize("name", systems.NAMES)
def test_output_for_a_fourier_mode_settles_at_the_gain(name):
    n, w = 8, 5.0
    A, B = systems.system(name, n)
    slowest = -np.linalg.eigvals(A).real.max()
    t = np.linspace(0, 40 / slowest, 40001)
    y = outputs.samples(*outputs.fourier_mode(A, B, w), systems.averaging_row(n), t)
    G = transfer.dense_response(A, B, systems.averaging_row(n), [w])[0]
    late = t > 30 / slowest
    assert np.allclose(y[late], (G * np.exp(1j * w * t[late])).real, atol=1e-11)


@pytest.mark.parametrize("n", [16, 32])
def test_error_of_s4d_is_one_over_two_n_for_a_decaying_input(n):
    assert outputs.output_error(outputs.DECAY, "S4D", n) == pytest.approx(1 / (2 * n), rel=0.1 / n**2)


def test_error_of_s4d_for_an_impulse_does_not_fall_with_the_order_and_that_of_the_closed_form_does():
    s4d, closed = (
        [outputs.output_error(outputs.IMPULSE, name, n) for n in (8, 32)] for name in ("S4D", "S4-PTD, closed form")
    )
    assert s4d[1] > 0.98 * s4d[0] > 0.4
    assert closed[1] < 0.6 * closed[0]


def test_output_error_is_the_norm_of_the_difference_of_the_outputs():
    t = np.linspace(0, 60, 60001)
    for kind, begin in outputs.INPUTS.items():
        y, exact = (
            outputs.samples(*begin(*systems.system(name, 6)), systems.first_state(6), t) for name in ("S4D", "S4")
        )
        norm = np.sqrt(np.trapezoid((y - exact) ** 2, t))
        assert outputs.output_error(kind, "S4D", 6) == pytest.approx(norm, rel=1e-4)


# --- kappa against ||E||


@pytest.fixture(scope="module")
def sweep():
    return conditioning.data((6,), 3)[""]


def test_optimised_condition_number_is_below_the_random_ones_at_every_size(sweep):
    random, best = (tables.rows(sweep, method=method) for method in ("random", "optimised"))
    at = np.interp(np.log(best[conditioning.RATIO]), np.log(random[conditioning.RATIO]), np.log(random["kappa(V)"]))
    assert (np.log(best["kappa(V)"]) < at).all()
    assert (best["max Re Lambda"] < 0).all()


def test_closed_form_keeps_its_promises_at_every_rho(sweep):
    table = tables.rows(sweep, method="closed form")
    norm = np.linalg.norm(hippo.legs(6)[0], 2)
    assert (table["kappa(V)"] <= 1 / table["rho"]).all()
    # ||E|| = rho/(1+rho) ||B||^2, and ||B||^2 = n^2
    assert np.allclose(table[conditioning.RATIO], table["rho"] / (1 + table["rho"]) * 36 / norm)


def test_sweep_is_repeated_by_its_seed(sweep):
    again, other = (conditioning.random(6, seed)["kappa(V)"] for seed in (3, 40))
    assert np.array_equal(again, tables.rows(sweep, method="random")["kappa(V)"])
    assert not np.array_equal(again, other)


# --- pseudospectra


def test_pseudospectrum_is_the_distance_to_the_nearest_matrix_with_that_eigenvalue():
    found = pseudospectra.data((4,), 0)
    for name, (M, _) in pseudospectra.matrices(4).items():
        table = tables.rows(found[""], n=4, matrix=name)
        z = table[pseudospectra.RE][::97] + 1j * table[pseudospectra.IM][::97]
        distance = [np.linalg.svd(p * np.eye(4) - M, compute_uv=False)[-1] for p in z]
        assert np.allclose(table[pseudospectra.SIZE][::97], distance / np.linalg.norm(hippo.legs(4)[0], 2))
        spectrum = tables.rows(found["eigenvalues"], matrix=name)
        sorted_ours = np.sort_complex(spectrum[pseudospectra.RE] + 1j * spectrum[pseudospectra.IM])
        assert np.allclose(sorted_ours, np.sort_complex(np.linalg.eigvals(M).astype(complex)))


# --- tables and files


def test_table_reads_back_as_it_was_written(tmp_path):
    tables.write(
        tmp_path / "t.csv", {"n": np.array([8, 16]), "kind": np.array(["a", "b, c"]), "x": np.array([0.1, np.inf])}
    )
    with open(tmp_path / "t.csv", newline="") as file:
        assert list(csv.reader(file)) == [["n", "kind", "x"], ["8", "a", "0.1"], ["16", "b, c", "inf"]]


def test_every_figure_is_drawn_with_its_numbers_beside_it(tmp_path, sweep, monkeypatch):
    monkeypatch.setattr(conditioning, "random", lambda n, seed: tables.rows(sweep, method="random"))
    monkeypatch.setattr(conditioning, "optimised", lambda n, seed: tables.rows(sweep, method="optimised"))
    monkeypatch.setattr(outputs, "ERROR_ORDERS", (4, 8))
    quick = [name for name in analyze.FIGURES if name != "regression"]
    files = analyze.analyze(tmp_path, only=quick, orders=(6,))
    assert {path.name for path in files} == {path.name for path in tmp_path.iterdir()}
    for name in quick:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()
        with open(tmp_path / f"{name}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert header[0] in ("n", "input")
        assert len(rows) > 10


def test_regression_is_drawn_from_its_table_alone():
    table = {regression.S: np.arange(3.0)}
    for name in systems.NAMES:
        table |= {f"amplitude {name}": np.ones(3), f"{regression.S} {name}": np.arange(3.0)}
    left, right = regression.draw({"": table}).axes
    assert len(left.lines) >= len(systems.NAMES) <= len(right.lines)
    assert any("negative: none" in text.get_text() for text in left.texts)


def test_same_numbers_give_the_same_files(tmp_path):
    first, second = (analyze.analyze(tmp_path / folder, only=["gain"], orders=(4,)) for folder in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_quickstart_and_analysis_draw_the_same_curves():
    w = gain.frequencies(8)
    ours, theirs = gain.gains(8, systems.INITS, w), gain.gains(8, MODELS, w)
    assert np.array_equal(ours["S4-PTD, closed form"], theirs["S4-PTD"])


BAD = {
    "only: expected one of": {"only": ["gains"]},
    "n: expected orders >= 4, got 3": {"orders": [8, 3]},
    "n: expected a positive integer": {"orders": [0]},
    "n: expected each order once": {"orders": [8, 8]},
    "seed: expected an integer >= 0, got -1": {"seed": -1},
    "n: expected no orders for regression": {"only": ["regression"], "orders": [4]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_argument_is_named_before_any_file_is_written(message, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        analyze.analyze(tmp_path / "out", **BAD[message])
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib_is_one_line_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'^analyze: needs matplotlib.*pip install "ptd\[analyze\]"$'):
        analyze.analyze(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_writes_the_figures_asked_for(tmp_path):
    out = tmp_path / "an[/x]"
    call = ("analyze", "--only", "gain", "--n", "6", "--out", str(out))
    code = "from ptd.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *call], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{out}/gain.png, .svg, .csv: |G(iw)| with the last spike" in done.stdout.splitlines()
    assert {path.name for path in out.iterdir()} == {"gain.csv", "gain-zoom.csv", "gain.png", "gain.svg"}
    refused = subprocess.run(
        [sys.executable, "-c", code, "analyze", "--only", "x"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
