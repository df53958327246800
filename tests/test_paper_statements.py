"""The statements of Yu et al. 2024 on S4, S4D and PTD, each as a measurement."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from ptd import hippo, perturb_then_diagonalize, transfer
from ptd.analyze import regression


def solve(A, B=None, **options):
    return perturb_then_diagonalize(A, B, cache=False, **options)


# --- sec. 3: S4D


@pytest.mark.parametrize("n", [16, 32, 64, 128])
def test_s4d_does_not_converge_in_operator_norm(n):
    """sup ||x_Diag(iw)||/||B|| tends to 2/pi from above, at a frequency where S4's own gain vanishes."""
    A_N, _, B = hippo.normal_plus_low_rank("legs", n)
    diag = transfer.hinf_norm(A_N, B / 2 / n, np.eye(n))
    dplr = np.linalg.norm(transfer.legs_states(n, 1j * diag.omega)) / n
    assert 0 < diag.gain - 2 / np.pi < 0.6 / n**2
    assert diag.omega == pytest.approx(transfer.legs_spikes(n, 1).omega[0], rel=1e-3)
    assert dplr < 4 / n**2


def error_for_a_decaying_input(n):
    """||y_DPLR - y_Diag||_{L2} for u = e^{-t} and C = e_0; y_DPLR = t e^{-t}, so that two more states hold u, y."""
    A_N, _, B = hippo.normal_plus_low_rank("legs", n)
    system = scipy.linalg.block_diag(A_N, [[-1, 1], [0, -1]])
    system[:n, -1] = B / 2
    start, output = np.eye(n + 2)[-1], np.eye(n + 2)[0] - np.eye(n + 2)[-2]
    gramian = scipy.linalg.solve_continuous_lyapunov(system, -np.outer(start, start))
    return np.sqrt(output @ gramian @ output)


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256])
def test_s4d_converges_input_by_input(n):
    assert error_for_a_decaying_input(n) == pytest.approx(1 / (2 * n), rel=0.1 / n**2)


# --- sec. 4: PTD


@pytest.mark.parametrize("n", [8, 32, 128])
@pytest.mark.parametrize("rho", [0.01, 0.1, 0.5])
def test_closed_form_ptd_converges_uniformly(n, rho):
    """|G_rho/G - 1| <= rho/(1 - rho) for the modes themselves, at S4D's spikes and everywhere else."""
    A, B = hippo.legs(n)
    found = solve(A, B, method="closed-form", rho=rho)
    spikes = transfer.legs_spikes(n).omega
    w = np.concatenate([[0.0], np.geomspace(1e-3, 1e3 * n**2, 400), spikes, spikes + 0.3])
    G = transfer.diagonal_response(found.Lambda, found.V_inv @ found.B, np.eye(n)[0] @ found.V, w)
    assert np.abs(G / transfer.legs_states(n, 1j * w)[:, 0] - 1).max() <= transfer.closed_form_bound(rho)


@pytest.mark.parametrize("n", [8, 16, 32])
def test_first_order_bound_holds_for_an_optimised_perturbation(n):
    A, B = hippo.legs(n)
    found = solve(A, B, iterations=60)
    exact = transfer.deviation(A, found.E, B).gain
    assert exact < (2 * np.log(n) + 4) * found.perturbation_norm
    assert exact == pytest.approx(found.deviation, rel=1e-3)


def test_condition_number_follows_the_inverse_of_a_random_perturbations_size():
    A, _ = hippo.legs(32)
    sizes = np.linalg.norm(A, 2) * np.geomspace(1e-5, 1e-2, 7)
    kappas = [[solve(A, method="random", size=size, seed=k).condition_number for k in range(9)] for size in sizes]
    slope = np.polyfit(np.log(sizes), np.log(np.median(kappas, axis=1)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_real_perturbation_of_order_32_loses_nothing_against_a_complex_one():
    A, _ = hippo.legs(32)
    real, full = solve(A, size=24.731), solve(A.astype(complex), size=24.731)
    assert np.isrealobj(real.E)
    assert np.abs(full.E.imag).max() > 0
    assert max(real.perturbation_norm, full.perturbation_norm) <= 24.731 * (1 + 1e-12)
    assert real.condition_number < 1.03 * full.condition_number


# --- sec. 3.4: the frequency regression (`ptd.analyze.regression` says how it differs from the paper's)

TRAINED, UNSEEN = np.arange(1.0, 80.0), np.arange(81.5, 100.0, 0.5)


@pytest.fixture(scope="module", params=[0, 1])
def regressions(request):
    """Predicted amplitudes of cos(s t) over trained and over unseen frequencies, by model."""
    s = np.concatenate([TRAINED, UNSEEN])
    amplitudes = {name: regression.predictions(name, s, request.param)[:, 1] for name in regression.NAMES}
    return {name: np.split(a, [len(TRAINED)]) for name, a in amplitudes.items()}


def test_every_model_learns_the_amplitude_at_the_trained_frequencies(regressions):
    assert max(np.abs(trained - 1).max() for trained, _ in regressions.values()) < 0.15


def test_s4d_predicts_negative_amplitudes_past_its_last_spike(regressions):
    assert 80 < transfer.legs_spikes(regression.ORDER, 1).omega[0] < UNSEEN[0]
    _, unseen = regressions["S4D"]
    assert unseen.min() < -0.3
    assert np.abs(unseen - 1).min() > 0.1


@pytest.mark.parametrize("name", ["S4", "S4-PTD, optimised", "S4-PTD, closed form"])
def test_s4_and_s4_ptd_know_the_amplitude_past_the_trained_frequencies(regressions, name):
    _, unseen = regressions[name]
    assert np.abs(unseen - 1).max() < 0.2
