"""The quickstart at a small size: what it writes, what it reports, and the noise it adds."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import ptd
from ptd.analyze import gain
from ptd.quickstart import MODELS, Result, fourier_mode, last_spike, quickstart


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return quickstart("jax", tmp_path_factory.mktemp("quickstart"), seed=3, epochs=2, width=8, depth=1, d_state=8)


def test_quickstart_writes_a_figure_its_numbers_and_a_checkpoint_per_model(result: Result):
    assert result.figure.read_bytes().startswith(b"\x89PNG")
    w, *gains = np.loadtxt(result.table, delimiter=",", skiprows=1, unpack=True)
    assert len(gains) == 1 + len(MODELS)
    assert np.all(np.diff(w) > 0)
    assert [ptd.load(score.checkpoint)[0].layer.d_state for score in result.scores.values()] == [8, 8]


def test_a_reloaded_checkpoint_gives_the_same_outputs_in_the_reference(result: Result):
    """float32 training against float64 reference on the same leaves: outputs of order 1 through one block."""
    assert max(score.reload_difference for score in result.scores.values()) < 1e-4
    assert all(score.predictions_agree for score in result.scores.values())


def test_two_epochs_already_beat_chance(result: Result):
    assert min(score.clean for score in result.scores.values()) > 0.2


def test_training_leaves_the_state_matrix_the_input_column_and_the_steps_as_they_were(result: Result):
    model, leaves = ptd.load(result.scores["S4D"].checkpoint)
    initial = model.initialize(np.random.default_rng(3), init="legs", dt_min=1e-3, dt_max=1e-1)
    frozen = ("Lambda_re", "Lambda_im", "B_re", "B_im", "log_step")
    for name in frozen:
        np.testing.assert_array_equal(
            leaves[f"blocks.0.layer.{name}"], initial[f"blocks.0.layer.{name}"].astype(np.float32)
        )
    assert np.any(leaves["blocks.0.layer.C_re"] != initial["blocks.0.layer.C_re"].astype(np.float32))


def test_the_models_differ_in_state_matrix_and_input_column_only():
    model = ptd.SequenceModel(ptd.S4D(3, 8, shared=True), 1, 1, 10)
    first, second = (model.initialize(np.random.default_rng(0), init=init) for init in MODELS.values())
    different = {name.rpartition(".")[2] for name in first if np.any(first[name] != second[name])}
    assert different <= {"Lambda_re", "Lambda_im", "B_re", "B_im"}


@pytest.mark.parametrize("n", [8, 16, 32, 33])
def test_the_noise_frequency_is_the_last_spike(n: int):
    """-1/2 + i w_0 is a pole of G/(1 + r_n), and |1 + r_n(iw)| > 1 from 1.6 w_0 on: there is none above."""

    def r(s: np.ndarray) -> np.ndarray:
        j = np.arange(n)
        return np.prod((s[..., None] - j) / (s[..., None] + j + 1), axis=-1)

    w_0 = last_spike(n)
    assert abs(1 + r(np.array(-0.5 + 1j * w_0))) < 1e-9
    assert np.all(np.abs(1 + r(1j * np.geomspace(1.6 * w_0, 1000 * w_0, 1000))) > 1)


def test_the_quickstart_reports_the_last_spike_of_its_own_order(result: Result):
    assert result.noise_frequency == last_spike(8)
    assert result.noise_frequency == pytest.approx(19.857, abs=5e-4)  # Yu et al. 2024: n^2/pi to first order


def test_the_noise_is_one_fourier_mode_per_channel_with_a_uniform_amplitude():
    """The clause: amplitude a cos(w_0 step_h l), a ~ U[0, 1) per sequence and channel."""
    step = np.array([0.001, 0.02, 0.1])
    noise = fourier_mode(step, (2000, 64), 325.4, 0.5, np.random.default_rng(0)).astype(np.float64)
    a = noise[:, 0, :] / 0.5
    expected = 0.5 * a[:, None, :] * np.cos(325.4 * step * np.arange(64)[:, None])
    np.testing.assert_allclose(noise, expected, atol=1e-7)
    assert np.all((a >= 0) & (a < 1))
    # mean 1/2 and variance 1/12, to five standard errors; independent between channels
    assert np.all(np.abs(a.mean(axis=0) - 1 / 2) < 5 * np.sqrt(1 / 12 / 2000))
    assert np.all(np.abs(np.cov(a.T) - np.eye(3) / 12) < 5 / 12 / np.sqrt(2000))


def test_the_figure_shows_the_exact_transfer_functions():
    """G_S4 = (1 - r_n)/n^2, G_S4D = G_S4/(1 + r_n), closed-form PTD = G_S4/(1 + r_n/10)."""
    w, j = gain.frequencies(32), np.arange(32)
    r = np.prod((1j * w[:, None] - j) / (1j * w[:, None] + j + 1), axis=1)
    gains = gain.gains(32, MODELS, w)
    G = (1 - r) / 32**2
    for name, expected in {"S4": G, "S4D": G / (1 + r), "S4-PTD": G / (1 + 0.1 * r)}.items():
        np.testing.assert_allclose(gains[name], np.abs(expected), rtol=1e-11)


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "rich"])
def test_a_missing_package_is_one_line_with_the_pip_command(module: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}.*pip install "ptd\[quickstart,jax\]"$'):
        quickstart("jax", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "value"), [("epochs", 1), ("d_state", 1), ("width", 0), ("amplitude", -1), ("seed", -1)]
)
def test_a_bad_size_is_named_before_anything_is_trained(argument: str, value: int, tmp_path):
    with pytest.raises(ValueError, match=f"^{argument.replace('width', 'd_model')}: expected"):
        quickstart("jax", tmp_path / "out", **{argument: value})
    assert not (tmp_path / "out").exists()
