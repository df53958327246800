"""What `ptd.transfer` promises: responses, exact LegS formulas, norms with a guarantee (Yu et al. 2024 sec. 3, 4)."""

from __future__ import annotations

import re

import dense
import numpy as np
import pytest

from ptd import S4, hippo, modes, transfer

N = 6
SAMPLINGS = [(None, "zoh"), (0.2, "zoh"), (0.2, "bilinear")]
OMEGA = np.array([-2.5, 0.0, 0.3, 1.0, np.pi])

rng = np.random.default_rng(7)
LAMBDA = -rng.uniform(0.5, 1, N) + 3j * rng.standard_normal(N)
P = rng.standard_normal((N, 2)) + 1j * rng.standard_normal((N, 2))
B = rng.standard_normal((N, 2)) + 1j * rng.standard_normal((N, 2))
C = rng.standard_normal((3, N)) + 1j * rng.standard_normal((3, N))
DPLR = np.diag(LAMBDA) - P @ P.conj().T
FULL = rng.standard_normal((N, N)) / 4 - np.eye(N)


def solved(A, B, C, omega):
    """C (i omega - A)^{-1} B by dense solves, (K, p, m)."""
    return C @ np.linalg.solve(1j * np.asarray(omega)[:, None, None] * np.eye(len(A)) - A, B)


def summed(A, B, C, theta, step, rule):
    """sum_k C A_bar^k B_bar e^{-i theta k} over 800 terms, by then below e^{-60}; step is one number or (N,)."""
    system = dense.System(A, B, C, np.zeros(1), np.broadcast_to(step, len(A)), rule)
    A_bar, x = system.discretized(1.0)
    total = np.zeros((len(theta), len(C), B.shape[1]), complex)
    for k in range(800):
        total += np.exp(-1j * k * theta)[:, None, None] * (C @ x)
        x = A_bar @ x
    return total


def expected(A, step, rule):
    return solved(A, B, C, OMEGA) if step is None else summed(A, B, C, OMEGA, step, rule)


def gains(responses):
    return np.linalg.norm(responses, 2, axis=(1, 2))


# --- responses


@pytest.mark.parametrize(("step", "rule"), SAMPLINGS)
def test_response_of_a_diagonal_system_is_the_dense_one(step, rule):
    ours = transfer.diagonal_response(LAMBDA, B, C, OMEGA, step=step, discretization=rule)
    np.testing.assert_allclose(ours, expected(np.diag(LAMBDA), step, rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("step", "rule"), SAMPLINGS)
def test_response_of_diagonal_plus_low_rank_is_the_dense_one(step, rule):
    ours = transfer.dplr_response(LAMBDA, P, B, C, OMEGA, step=step, discretization=rule)
    np.testing.assert_allclose(ours, expected(DPLR, step, rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize("A", [FULL, DPLR], ids=["real", "complex"])
@pytest.mark.parametrize(("step", "rule"), SAMPLINGS)
def test_response_of_any_matrix_is_the_dense_one(step, rule, A):
    ours = transfer.dense_response(A, B, C, OMEGA, step=step, discretization=rule)
    np.testing.assert_allclose(ours, expected(A, step, rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_every_mode_may_have_its_own_step(rule):
    steps = np.linspace(0.1, 0.4, N)
    ours = transfer.diagonal_response(LAMBDA, B, C, OMEGA, step=steps, discretization=rule)
    np.testing.assert_allclose(ours, summed(np.diag(LAMBDA), B, C, OMEGA, steps, rule), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("step", "rule"), SAMPLINGS)
def test_half_of_the_modes_stand_for_all_of_them(step, rule):
    both = [np.concatenate([x, x.conj()], axis) for x, axis in ((LAMBDA, 0), (B, 0), (C, 1))]
    ours = transfer.diagonal_response(LAMBDA, B, C, OMEGA, step=step, discretization=rule, conj_sym=True)
    full = transfer.diagonal_response(*both, OMEGA, step=step, discretization=rule)
    np.testing.assert_allclose(ours, full, rtol=0, atol=1e-13)


def test_response_of_an_s4_layers_leaves_is_the_dense_one():
    layer = S4(1, 8)
    leaves = dense.parameters(layer)
    system, step = dense.system(layer, leaves), np.exp(leaves["log_step"][0])
    Lambda, B, C, P = (
        np.reshape(leaves[x + "_re"] + 1j * leaves[x + "_im"], shape)
        for x, shape in (("Lambda", 4), ("B", 4), ("C", 4), ("P", (4, 1)))
    )
    ours = transfer.dplr_response(Lambda, P, B, C, OMEGA, step=step, discretization="bilinear", conj_sym=True)
    sums = summed(system.A, system.B, system.C, OMEGA, step, "bilinear")[:, 0, 0]
    np.testing.assert_allclose(ours, sums, rtol=0, atol=1e-12)


@pytest.mark.parametrize("column", [B, B[:, 0]], ids=["matrix B", "column B"])
@pytest.mark.parametrize("row", [C, C[0]], ids=["matrix C", "row C"])
@pytest.mark.parametrize("omega", [0.7, np.ones((2, 3)), np.ones(0)], ids=["one", "table", "none"])
@pytest.mark.parametrize("form", ["diagonal", "dplr", "dense"])
def test_response_has_the_axes_of_omega_then_C_then_B(form, omega, row, column):
    response = {
        "diagonal": lambda: transfer.diagonal_response(LAMBDA, column, row, omega),
        "dplr": lambda: transfer.dplr_response(LAMBDA, P, column, row, omega),
        "dense": lambda: transfer.dense_response(FULL, column, row, omega),
    }[form]()
    assert response.shape == np.shape(omega) + row.shape[:-1] + column.shape[1:]


@pytest.mark.parametrize("eigenvalue", [0.0, -1e-12])
def test_zero_order_hold_of_a_resting_mode_is_a_running_sum(eigenvalue):
    ours = transfer.diagonal_response([eigenvalue], [1.0], [1.0], [1.0], step=0.1)
    np.testing.assert_allclose(ours, 0.1 / (1 - np.exp(-1j)), rtol=1e-11)


def test_response_of_hippo_does_not_suffer_from_its_eigenvectors():
    A, column = hippo.legs(64)
    w = np.array([0.0, 1.0, 50.0, 1303.0])
    ours = np.stack(transfer.dense_response(A, column, np.eye(64), w))
    error = np.linalg.norm(ours - transfer.legs_states(64, 1j * w), axis=1)
    assert (error <= 1e-12 * np.linalg.norm(ours, axis=1)).all()


def test_a_defective_matrix_is_as_good_as_any():
    A = -np.eye(8) + np.eye(8, k=1)
    response = transfer.dense_response(A, np.eye(8)[7], np.eye(8)[0], [0.0, 2.0])
    np.testing.assert_allclose(response, (1 / (1 + np.array([0, 2j]))) ** 8, rtol=1e-14)


# --- exact formulas of LegS


@pytest.mark.parametrize("n", [1, 2, 7, 32, 1024])
def test_modulus_of_r_on_the_imaginary_axis_is_w_over_hypot_w_n(n):
    w = np.array([-3e4, -1.0, 1e-300, 0.1, 20.0, 1e7])
    np.testing.assert_allclose(np.abs(transfer.legs_r(n, 1j * w)), np.abs(w) / np.hypot(w, n), rtol=1e-14)


def test_r_at_the_smallest_frequency_vanishes_without_overflow():
    assert abs(transfer.legs_r(1024, 5e-324j)) == 0


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_r_on_the_imaginary_axis_is_the_product(n):
    s, j = 1j * np.array([-300.0, -0.2, 0.0, 1.0, 17.0, 2e3]), np.arange(n)
    product = np.prod((s[:, None] - j) / (s[:, None] + j + 1), axis=1)
    np.testing.assert_allclose(transfer.legs_r(n, s), product, rtol=1e-13)


def test_output_along_B_is_one_minus_r():
    A, column = hippo.legs(9)
    s = np.array([[0.3 + 2j, -0.4], [5.0, 40j]])
    states = np.linalg.solve(s[..., None, None] * np.eye(9) - A, column[:, None])[..., 0]
    np.testing.assert_allclose(states @ column, 1 - transfer.legs_r(9, s), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 9, 32])
def test_product_formula_of_the_states_is_the_dense_solve(n):
    A, column = hippo.legs(n)
    s = np.array([0.0, 1.0, 2j, -30j, -0.4 + 100j])
    states = np.linalg.solve(s[:, None, None] * np.eye(n) - A, column[:, None])[..., 0]
    np.testing.assert_allclose(transfer.legs_states(n, s), states, rtol=0, atol=1e-11)


def test_diagonal_plus_low_rank_form_of_legs_has_the_exact_response():
    legs, w = modes.dplr("legs", 32, conj_sym=False), np.array([0.0, 3.0, 325.4])
    row = hippo.legs(32)[1] @ legs.V
    ours = transfer.dplr_response(legs.Lambda, legs.P_tilde, legs.B_tilde, row, w)
    np.testing.assert_allclose(ours, 1 - transfer.legs_r(32, 1j * w), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("n", "omega", "gain"),
    [
        (8, 19.857, 13.8),
        (16, 80.966, 52.7),
        (32, 325.426, 208.3),
        (64, 1303.27, 830.9),
        (128, 5214.67, 3320.9),
        (256, 20860.2, 13281),
        (1024, 333771.6, 212487),
    ],
)
def test_last_spike_is_where_the_table_has_it(n, omega, gain):
    spike = transfer.legs_spikes(n, 1)
    assert spike.omega[0] == pytest.approx(omega, rel=3e-5)  # half a unit of the table's fifth digit
    assert spike.gain[0] == pytest.approx(gain, rel=2e-3)


def test_next_spikes_are_where_the_table_has_them():
    np.testing.assert_allclose(transfer.legs_spikes(32, 5).omega[1:], [107.09, 62.61, 43.01, 31.73], atol=0.006)


@pytest.mark.parametrize("n", [2, 3, 32, 33])
def test_spikes_are_the_eigenvalues_of_the_normal_part(n):
    frequencies = np.linalg.eigvals(hippo.normal_plus_low_rank("legs", n)[0]).imag
    np.testing.assert_allclose(transfer.legs_spikes(n).omega, np.sort(frequencies)[::-1][: n // 2], rtol=1e-11)


# --- H-infinity norm


def test_norm_of_a_first_order_lag_is_its_gain_at_rest():
    assert transfer.hinf_norm([[-0.25]], [3.0], [1.0]) == pytest.approx((12.0, 0.0))


@pytest.mark.parametrize("damping", [0.5, 1e-3, 1e-7])
def test_norm_of_a_resonant_pair_is_found_where_a_coarse_grid_misses_it(damping):
    A, column, row = np.array([[0.0, 1.0], [-1.0, -2 * damping]]), [0.0, 1.0], [1.0, 0.0]
    gain, omega = transfer.hinf_norm(A, column, row)
    assert gain == pytest.approx(1 / (2 * damping * np.sqrt(1 - damping**2)), rel=1e-7)
    assert omega == pytest.approx(np.sqrt(1 - 2 * damping**2), rel=1e-4)
    coarse = np.abs(transfer.dense_response(A, column, row, np.geomspace(0.01, 100, 200)))
    assert coarse.max() < gain * (1.0 if damping > 0.1 else 0.1)


def test_norm_is_the_higher_of_two_peaks_however_narrow():
    poles = np.array([-1 + 1j, -1e-6 + 900j])
    peak = transfer.hinf_norm(np.diag(poles), [1.0, 1.0], [1.0, 2e-6])
    assert peak == pytest.approx((2.0, 900.0), rel=2e-3)


@pytest.mark.parametrize("A", [FULL, DPLR], ids=["real", "complex"])
@pytest.mark.parametrize("size", [0.0, 0.3], ids=["no D", "with D"])
def test_norm_is_never_below_a_dense_grid_and_is_attained(A, size):
    D = size * np.ones((3, 2))
    gain, omega = transfer.hinf_norm(A, B, C, D)
    grid = np.concatenate([-np.geomspace(1e-3, 1e3, 8000), [0], np.geomspace(1e-3, 1e3, 8000)])
    on_grid = gains(transfer.dense_response(A, B, C, grid) + D).max()
    assert on_grid <= gain * (1 + 1e-8)
    assert gain <= on_grid * (1 + 1e-5)
    assert gains(solved(A, B, C, [omega]) + D)[0] == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize(("b", "omega"), [(-1.0, np.inf), (-2.0, None)], ids=["high pass", "all pass"])
def test_norm_attained_at_infinity_is_the_feedthroughs(b, omega):
    peak = transfer.hinf_norm([[-1.0]], [b], [1.0], [[1.0]])
    assert peak.gain == pytest.approx(1.0, rel=1e-8)
    assert omega is None or peak.omega == omega


@pytest.mark.parametrize(("column", "row"), [(np.zeros(2), np.ones(2)), (np.eye(2)[0], np.eye(2)[1])])
def test_norm_of_a_system_that_passes_nothing_is_zero_at_rest(column, row):
    assert transfer.hinf_norm(np.diag([-1 + 2j, -1 - 2j]), column, row) == (0, 0)


# --- deviation


@pytest.mark.parametrize(("rho", "figure"), [(0.05, 0.00081), (0.1, 0.0017), (0.25, 0.0047), (0.5, 0.012)])
def test_deviation_of_the_closed_form_is_the_published_figure(rho, figure):
    A, column = hippo.legs(32)
    E = rho / (1 + rho) * np.outer(column, column)
    gain, omega = transfer.deviation(A, E, column, B_perturbed=column / (1 + rho))
    assert gain == pytest.approx(figure, rel=0.05)
    r, exact = transfer.legs_r(32, 1j * omega), np.linalg.norm(transfer.legs_states(32, 1j * omega)) / 32
    assert gain == pytest.approx(np.abs(rho * r / (1 + rho * r)) * exact, rel=1e-9)


@pytest.mark.parametrize(("n", "figure"), [(16, 0.627), (32, 0.634), (64, 0.636)])
def test_deviation_of_s4d_is_the_published_figure(n, figure):
    A, column = hippo.legs(n)
    peak = transfer.deviation(A, np.outer(column, column) / 2, column, B_perturbed=column / 2)
    assert peak.gain == pytest.approx(figure, abs=6e-4)
    assert peak.omega == pytest.approx(transfer.legs_spikes(n, 1).omega[0], rel=1e-3)


def test_deviation_of_no_perturbation_is_zero():
    A, column = hippo.legs(8)
    assert transfer.deviation(A, np.zeros((8, 8)), column) == (0, 0)


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.9])
def test_closed_form_bound_holds_and_is_approached(rho):
    w = transfer.legs_spikes(64, 1).omega * np.linspace(0.9, 1.1, 2001)
    relative = np.abs(1 / (1 + rho * transfer.legs_r(64, 1j * w)) - 1).max()
    assert 0.98 * transfer.closed_form_bound(rho) < relative < transfer.closed_form_bound(rho)


# --- resolvent norm


def test_resolvent_norm_of_a_normal_matrix_is_the_inverse_distance_to_its_spectrum():
    A = hippo.normal_plus_low_rank("legs", 8)[0]
    s = np.array([[0.0, 1 + 1j], [20j, -3.0]])
    distance = np.abs(s[..., None] - np.linalg.eigvals(A)).min(axis=-1)
    np.testing.assert_allclose(transfer.resolvent_norm(A, s), 1 / distance, rtol=1e-12)


@pytest.mark.parametrize(("n", "figure"), [(8, 2.75), (16, 3.00), (32, 3.18), (64, 3.32)])
def test_squared_resolvent_norm_of_legs_on_the_axis_is_the_published_figure(n, figure):
    A, _ = hippo.legs(n)
    largest = transfer.hinf_norm(A, np.eye(n), np.eye(n)).gain
    assert largest**2 == pytest.approx(figure, abs=6e-3)
    assert transfer.resolvent_norm(A, 0.0) <= largest * (1 + 1e-8)


# --- worst Fourier mode


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("conj_sym", [False, True])
def test_worst_fourier_mode_is_that_of_a_dense_grid(rule, conj_sym):
    options = {"step": np.linspace(0.1, 0.4, N), "discretization": rule, "conj_sym": conj_sym}
    gain, theta = transfer.worst_fourier_mode(LAMBDA, B, C, **options)
    on_grid = gains(transfer.diagonal_response(LAMBDA, B, C, np.linspace(-np.pi, np.pi, 20001), **options)).max()
    assert on_grid <= gain * (1 + 1e-8)
    assert gain <= on_grid * (1 + 1e-5)
    assert gains(transfer.diagonal_response(LAMBDA, B, C, [theta], **options))[0] == pytest.approx(gain, rel=1e-10)


@pytest.mark.parametrize("angle", [0.0, 0.5, np.pi])
def test_worst_fourier_mode_of_one_resonance_is_its_angle(angle):
    gain, theta = transfer.worst_fourier_mode([-1e-6 + 1j * angle], [1.0], [1.0], step=1.0)
    assert abs(theta) == pytest.approx(angle, abs=1e-6)
    assert gain == pytest.approx(abs((np.exp(-1e-6 + 1j * angle) - 1) / (-1e-6 + 1j * angle)) * 1e6, rel=1e-5)


def test_worst_fourier_mode_of_s4d_is_its_last_spike():
    """Without C the gain is that of the state: its 2 P modal coordinates, in norm the real state's."""
    legs, step = modes.legs(32), 1e-4
    gain, theta = transfer.worst_fourier_mode(legs.Lambda, legs.B_tilde, step=step, conj_sym=True)
    assert theta / step == pytest.approx(transfer.legs_spikes(32, 1).omega[0], rel=1e-4)
    assert gain / 32 == pytest.approx(0.6371, rel=1e-3)


# --- bad input

ONE = np.ones(2)
STABLE = -np.eye(2)
BAD = {
    "A: expected a square matrix (N, N), got shape (2, 3)": lambda: transfer.dense_response(
        np.ones((2, 3)), ONE, ONE, 1.0
    ),
    "A: expected numbers, got dtype <U1": lambda: transfer.hinf_norm("x", ONE, ONE),
    "A: expected eigenvalues with Re < 0, got max Re = 1;": lambda: transfer.hinf_norm(np.eye(2), ONE, ONE),
    "A: expected eigenvalues with Re < 0, got max Re = 0;": lambda: transfer.hinf_norm(np.zeros((2, 2)), ONE, ONE),
    "A: expected eigenvalues with Re < 0, got max Re = 2": lambda: transfer.deviation(2 * np.eye(2), STABLE, ONE),
    "A + E: expected eigenvalues with Re < 0, got max Re = 1": lambda: transfer.deviation(STABLE, 2 * np.eye(2), ONE),
    "E: expected shape (2, 2), (N, N) from A, got (3, 3)": lambda: transfer.deviation(STABLE, np.eye(3), ONE),
    "B: expected a nonzero input matrix, got all zeros": lambda: transfer.deviation(STABLE, STABLE, 0 * ONE),
    "B_perturbed: expected shape (2,), the shape of B, got (2, 1)": lambda: transfer.deviation(
        STABLE, STABLE, ONE, B_perturbed=ONE[:, None]
    ),
    "D: expected shape (1, 1), (p, m) from C and B, got (2, 1)": lambda: transfer.hinf_norm(
        STABLE, ONE, ONE, np.ones((2, 1))
    ),
    "rtol: expected a number in [1e-12, 1), got 0": lambda: transfer.hinf_norm(STABLE, ONE, ONE, rtol=0),
    "Lambda: expected modes (P,), got shape (2, 2)": lambda: transfer.diagonal_response(STABLE, ONE, ONE, 1.0),
    "Lambda: expected finite values, got nan": lambda: transfer.diagonal_response(np.nan * ONE, ONE, ONE, 1.0),
    "B: expected shape (N,) or (N, m) with N=2, got (3,)": lambda: transfer.diagonal_response(
        ONE, np.ones(3), ONE, 1.0
    ),
    "C: expected shape (N,) or (p, N) with N=2, got (2, 3)": lambda: transfer.diagonal_response(
        ONE, ONE, np.ones((2, 3)), 1.0
    ),
    "P: expected shape (N,) or (N, m) with N=2, got (1, 2)": lambda: transfer.dplr_response(
        ONE, ONE[None], ONE, ONE, 1.0
    ),
    "omega: expected real frequencies, got dtype complex128": lambda: transfer.diagonal_response(ONE, ONE, ONE, 1j),
    "omega: expected frequencies off the poles": lambda: transfer.diagonal_response(1j * ONE, ONE, ONE, 1.0),
    "omega: expected frequencies off the poles,": lambda: transfer.dense_response(0 * STABLE, ONE, ONE, 0.0),
    "step: expected finite values > 0, got 0.0": lambda: transfer.diagonal_response(-ONE, ONE, ONE, 1.0, step=0.0),
    "step: expected shape (2,), (P,) from Lambda, or one number, got (3,)": lambda: transfer.diagonal_response(
        -ONE, ONE, ONE, 1.0, step=np.ones(3)
    ),
    "step: expected one positive finite number, or None for": lambda: transfer.dense_response(
        STABLE, ONE, ONE, 1.0, step=ONE
    ),
    "discretization: expected one of 'bilinear', 'zoh', got 'euler'": lambda: transfer.dense_response(
        STABLE, ONE, ONE, 1.0, step=1.0, discretization="euler"
    ),
    "diag(Lambda): expected eigenvalues with Re < 0, got max Re = 1": lambda: transfer.worst_fourier_mode(
        ONE, ONE, step=1.0
    ),
    "n: expected a positive integer, got 0": lambda: transfer.legs_r(0, 1.0),
    "n: expected an integer >= 2, got 1": lambda: transfer.legs_spikes(1),
    "count: expected at most n // 2 = 4, got 5": lambda: transfer.legs_spikes(8, 5),
    "s: expected points other than the poles -1 ... -3, got (-2+0j)": lambda: transfer.legs_states(3, [0, -2]),
    "s: expected finite values, got inf": lambda: transfer.legs_r(3, np.inf),
    "rho: expected a number in (0, 1) (0 is S4 itself and 1 is S4D), got 1": lambda: transfer.closed_form_bound(1),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_in_one_line(message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        BAD[message]()


@pytest.mark.parametrize(
    ("A", "B", "C", "gain"),
    [(-1, 1e-100, 1e-100, 1e-200), (-1, 1e78, 1e78, 1e156), (-1, 1e170, 1e-170, 1), (-1e200, 1, 1, 1e-200)],
)
def test_hinf_norm_is_found_at_any_scale(A, B, C, gain):
    assert transfer.hinf_norm([[A]], [B], [C]).gain == pytest.approx(gain)


def test_mode_that_does_not_decay_in_a_step_is_named():
    with pytest.raises(ValueError, match=r"^Lambda: expected modes that decay by more than rounding in a step, got"):
        transfer.worst_fourier_mode([-1e-12], [1.0], [1.0], step=1e-5)


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize(("decay", "step"), [(1e-6, 1e-5), (1e-12, 1e-6), (1e-12, 1.0)])
def test_sampled_gain_of_a_slow_mode_keeps_its_digits(rule, decay, step):
    """At frequency 0 that of continuous time, 1/decay; of 1 - Lambda_bar step times decay leaves few digits."""
    found = transfer.diagonal_response([-decay], [1.0], [1.0], [0.0], step=step, discretization=rule)
    assert found[0] * decay == pytest.approx(1, rel=1e-14)
