"""What `perturb_then_diagonalize` promises (Yu et al. 2024 sec. 4; figures recomputed from its matrices)."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.linalg

from ill_posed import companion, frank, grcar, jordan, recurrent, toeplitz
from ptd import Diagonalization, NotConverged, hippo, perturb_then_diagonalize
from ptd.perturbation import eigen_gradients, responses, result_cache
from ptd.perturbation import solver as module
from ptd.perturbation.minimization import Problem

# n, ||E||_2, kappa(V), deviation of the published perturbations
PUBLISHED = [
    (8, 4.010, 5.114, 0.0505),
    (16, 8.243, 6.555, 0.0140),
    (16, 13.343, 4.454, 0.0660),
    (32, 24.731, 8.312, 0.0399),
    (64, 88.92, 9.168, 0.0521),
]


def solve(A, B=None, **options) -> Diagonalization:
    return perturb_then_diagonalize(A, B, **{"cache": False, **options})


@pytest.fixture(scope="module")
def odd() -> Diagonalization:
    """An odd order, so that at least one mode is real."""
    return solve(*hippo.legs(9), iterations=40)


# --- figures to beat


@pytest.mark.parametrize(("n", "norm", "kappa", "deviation"), PUBLISHED)
def test_published_perturbation_is_beaten_on_every_count_at_once(n, norm, kappa, deviation):
    found = solve(*hippo.legs(n), size=norm)
    assert found.perturbation_norm <= norm
    assert found.condition_number < kappa
    assert found.deviation < deviation
    assert found.spectral_abscissa < 0
    assert found.backward_error < 1e-13


def test_real_perturbation_loses_nothing_against_complex():
    A, _ = hippo.legs(16)
    real, dense = solve(A, size=8.243), solve(A.astype(complex), size=8.243)
    assert np.isrealobj(real.E)
    assert np.iscomplexobj(dense.E)
    assert real.condition_number < 1.03 * dense.condition_number


def test_deviation_is_the_largest_on_a_finer_grid(odd):
    A, B = hippo.legs(9)
    w = np.concatenate([[0], np.geomspace(1e-3, 1e4, 4000), np.abs(odd.Lambda.imag)])[:, None, None]
    ours, exact = (np.linalg.solve(1j * w * np.eye(9) - M, B[:, None]) for M in (A + odd.E, A))
    largest = np.linalg.norm(ours - exact, axis=1).max() / np.linalg.norm(B)
    assert largest <= odd.deviation * (1 + 1e-6)
    assert odd.deviation <= largest * 1.001


def test_first_order_bound_is_the_papers_and_holds(odd):
    assert odd.deviation_bound == pytest.approx((2 * np.log(9) + 4) * np.linalg.norm(odd.E, 2))
    assert odd.deviation < odd.deviation_bound


def test_deviation_of_several_inputs_is_that_of_the_worst_combination():
    A, B = hippo.legs(6)
    one, two = solve(A, B, iterations=20), solve(A, np.stack([B, 0 * B], axis=1), iterations=20)
    assert two.deviation == pytest.approx(one.deviation, rel=1e-6)
    assert two.deviation_bound is None


def test_response_by_schur_form_is_the_closed_form_of_legs():
    A, B = hippo.legs(12)
    turned = scipy.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    w = np.array([0.0, 0.3, 5, 90])
    exact = responses.schur_response(turned @ A @ turned.T, (turned @ B)[:, None])(w)
    assert np.allclose(np.tensordot(turned, responses.legs_response(12)(w), axes=1), exact, atol=1e-12)


def test_larger_gamma_buys_a_smaller_perturbation_with_a_larger_condition_number():
    A, B = hippo.legs(8)
    cheap, dear = solve(A, B, gamma=0.1), solve(A, B, gamma=2.0)
    assert dear.perturbation_norm < cheap.perturbation_norm
    assert dear.condition_number > cheap.condition_number


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_no_other_size_improves_the_trade_off(factor):
    A, _ = hippo.legs(8)
    best = solve(A, gamma=0.5)
    other = solve(A, size=factor * best.perturbation_norm)
    mine, others = (found.condition_number + 0.5 * found.perturbation_norm for found in (best, other))
    assert mine < 1.02 * others


# --- gradients


@pytest.mark.parametrize("gamma", [None, 0.7])
@pytest.mark.parametrize("twist", [0.0, 0.3j])
def test_gradient_of_the_objective_matches_central_differences(twist, gamma):
    """Real and complex A, with and without gamma, two inputs, an active instability penalty."""
    rng = np.random.default_rng(1)
    A, B = hippo.legs(6)
    A = A + twist * np.diag(np.arange(6.0)) if twist else A
    problem = Problem(A, np.stack([B, rng.standard_normal(6)], axis=1), 4.0, gamma, 0.3)
    F = rng.standard_normal((6, 6)) + (1j * rng.standard_normal((6, 6)) if twist else 0)
    x, samples = problem.pack(0.2, F), problem.samples(problem.pack(0.0, 0.1 * F))
    direction = rng.standard_normal(x.size)
    high, low = (problem.objective(x + h * direction, 0.1, samples)[0] for h in (1e-5, -1e-5))
    assert np.linalg.eigvals(A + problem.perturbation(x)).real.max() > problem.ceiling
    assert problem.objective(x, 0.1, samples)[1] @ direction == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_soft_condition_number_bounds_the_true_one_from_above():
    V = np.random.default_rng(0).standard_normal((20, 20))
    V /= np.linalg.norm(V, axis=0)
    value, _, V_inv = eigen_gradients.log_condition_number(V)
    assert 0 <= value - np.log(np.linalg.cond(V)) <= np.log(20) / eigen_gradients.SHARPNESS
    assert np.allclose(V_inv @ V, np.eye(20))


def test_ball_parametrisation_stays_inside_the_ball():
    F = 1e3 * np.random.default_rng(0).standard_normal((5, 5))
    assert np.linalg.norm(eigen_gradients.ball(F)[0], 2) <= 1 + 1e-15


# --- conjugate symmetry


@pytest.mark.parametrize("n", [4, 9, 16, 64, 96])
def test_paired_eigenvalues_leave_a_real_one_at_odd_orders_only(n):
    found = solve(*hippo.legs(n), paired=True, iterations=400 if n <= 64 else 160)
    assert np.sum(found.Lambda.imag == 0) == n % 2
    assert found.condition_number < 8
    assert found.deviation < 0.015
    assert found.spectral_abscissa < 0


def test_conjugate_pairs_of_a_real_matrix_are_exact(odd):
    pairs = np.flatnonzero(odd.Lambda.imag > 0)
    mirror = odd.Lambda.size - 1 - pairs
    assert np.array_equal(odd.Lambda[mirror], odd.Lambda[pairs].conj())
    assert np.array_equal(odd.V[:, mirror], odd.V[:, pairs].conj())
    assert np.array_equal(odd.V_inv[mirror], odd.V_inv[pairs].conj())


def test_real_modes_of_a_real_matrix_are_exactly_real(odd):
    single = odd.Lambda.imag == 0
    assert single.sum() % 2 == 1
    assert not odd.V[:, single].imag.any()
    assert not odd.V_inv[single].imag.any()


def test_eigenvalues_ascend_by_imaginary_part(odd):
    assert (np.diff(odd.Lambda.imag) >= 0).all()


def test_columns_of_V_have_unit_norm(odd):
    assert np.allclose(np.linalg.norm(odd.V, axis=0), 1, rtol=1e-15, atol=0)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_half_of_the_modes_represents_every_real_signal(n):
    found = solve(*hippo.legs(n), method="random")
    Lambda, V, V_inv = found.half()
    x = np.random.default_rng(0).standard_normal((n, 3))
    assert Lambda.size == (n + np.sum(found.Lambda.imag == 0)) // 2
    assert np.allclose(2 * (V @ (V_inv @ x)).real, x)
    assert np.allclose(2 * (V @ (Lambda[:, None] * (V_inv @ x))).real, (hippo.legs(n)[0] + found.E) @ x)


def test_half_of_a_complex_matrix_is_refused():
    with pytest.raises(ValueError, match=r"^A: expected a real matrix, got a complex one"):
        solve(np.diag([1j, 2])).half()


# --- other ill-posed matrices

ILL_POSED = {
    **{f"jordan-{n}": jordan(n) for n in (2, 3, 4, 8, 16, 32, 64)},  # nilpotent shifts
    **{f"jordan-stable-{n}": jordan(n, -1.5) for n in (8, 32)},
    "grcar": grcar(32),
    "toeplitz": toeplitz(24),
    "companion": companion(12),
    "frank": frank(16),
    "recurrent": recurrent(32),
    "legt": hippo.legt(16)[0],
    "complex": hippo.legs(16)[0] * (1 + 0.2j),
}


@pytest.mark.parametrize("name", ILL_POSED)
def test_ill_posed_matrix_gets_a_small_condition_number_within_the_size(name):
    A = ILL_POSED[name]
    found = solve(A, iterations=120)
    assert found.condition_number < min(30, 0.5 * np.linalg.cond(np.linalg.eig(A)[1]))
    assert found.relative_perturbation_norm <= 0.04 * (1 + 1e-12)
    assert found.backward_error < 1e-12
    assert np.isrealobj(found.E) == np.isrealobj(A)


@pytest.mark.parametrize(("n", "eigenvalue", "ratio"), [(n, -1.0, 0.04) for n in (2, 8, 16, 64)] + [(32, -0.5, 0.45)])
def test_stable_jordan_block_stays_stable_with_a_small_condition_number(n, eigenvalue, ratio):
    """At -1 the pseudospectrum of 0.04 ||A|| nearly reaches the imaginary axis; at -1/2 a third of ||A|| is needed."""
    A = jordan(n, eigenvalue)
    found = solve(A, size=ratio * np.linalg.norm(A, 2))
    assert found.spectral_abscissa < 0
    assert found.condition_number < 13


def test_half_of_the_decay_rate_is_kept_where_it_is_cheap_and_a_twentieth_where_it_is_not():
    cheap, dear = (solve(jordan(n, -1.0), iterations=200).spectral_abscissa for n in (8, 32))
    assert cheap == pytest.approx(-0.5, abs=0.01)
    assert dear == pytest.approx(-0.05, abs=0.01)


@pytest.mark.parametrize("A", [np.zeros((3, 3)), np.eye(4), np.diag([1.0, 1.0, 2.0]), np.array([[2.0]])])
def test_normal_matrix_needs_no_perturbation(A):
    found = solve(A)
    assert not found.E.any()
    assert found.condition_number == pytest.approx(1)
    assert np.allclose((found.V * found.Lambda) @ found.V_inv, A)


def test_skew_matrix_needs_no_perturbation():
    found = solve(np.array([[0.0, 2.0], [-2.0, 0.0]]))
    assert not found.E.any()
    assert np.allclose(found.Lambda, [-2j, 2j])


def test_deviation_is_left_out_where_the_matrix_is_not_stable():
    assert solve(jordan(4), np.ones(4), iterations=20).deviation is None


def test_stability_that_cannot_be_kept_is_an_error_with_the_best_attached():
    """Within 0.04 ||A||, the 64 eigenvalues of a well-conditioned A + E lie on a circle of radius near 1."""
    A = jordan(64, -0.5)
    with pytest.raises(NotConverged, match=r"A is stable but A \+ E is not") as caught:
        solve(A, iterations=8)
    assert caught.value.best.spectral_abscissa >= 0
    assert caught.value.best.relative_perturbation_norm <= 0.04


def test_numerically_singular_eigenvectors_are_an_error():
    with pytest.raises(NotConverged, match="numerically singular"):
        solve(jordan(3), method="random", size=1e-300)


# --- the random control


def test_condition_number_of_random_perturbations_follows_the_inverse_of_their_size():
    """Yu et al. 2024 app. I: the slope in log-log is -1."""
    A, _ = hippo.legs(24)
    ratios = np.array([0.001, 0.01, 0.1])
    sizes = ratios * np.linalg.norm(A, 2)
    kappa = [[solve(A, method="random", size=s, seed=k).condition_number for k in range(15)] for s in sizes]
    slope = np.polyfit(np.log(ratios), np.log(np.median(kappa, axis=1)), 1)[0]
    assert slope == pytest.approx(-1, abs=0.2)


def test_random_perturbation_has_the_size_asked_for():
    A, B = hippo.legs(8)
    found = solve(A, B, method="random", size=2.5)
    assert found.perturbation_norm == pytest.approx(2.5)
    assert found.relative_perturbation_norm == pytest.approx(2.5 / np.linalg.norm(A, 2))


# --- the closed form


@pytest.mark.parametrize("rho", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("n", [3, 32])
def test_closed_form_transfer_function_is_exactly_that_of_legs_over_one_plus_rho_r(n, rho):
    A, B = hippo.legs(n)
    found = solve(A, B, method="closed-form", rho=rho)
    s, j = 1j * np.geomspace(0.1, 4 * n**2, 40), np.arange(n)[:, None]
    r = np.prod((s - j) / (s + j + 1), axis=0)
    exact = np.linalg.solve(s[:, None, None] * np.eye(n) - A, B[:, None])[:, :, 0].T / (1 + rho * r)
    ours = found.V @ ((found.V_inv @ found.B)[:, None] / (s - found.Lambda[:, None]))
    # two resolvents, each below 4, carry the rounding ||A|| eps / rho of the modes to ||B|| = n
    assert np.abs(ours - exact).max() < 16 * n / rho * np.linalg.norm(A, 2) * np.finfo(float).eps


@pytest.mark.parametrize("rho", [None, 0.5])
@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_closed_form_is_stable_and_conditioned_below_one_over_rho_at_every_order(n, rho):
    found = solve(*hippo.legs(n), method="closed-form", rho=rho)
    assert found.spectral_abscissa < -0.5
    assert found.condition_number <= 1 / (rho or 0.1)
    assert found.backward_error < 1e-12
    assert np.isrealobj(found.E)


def test_closed_form_without_the_input_column_is_refused():
    with pytest.raises(ValueError, match=r"got no B; pass hippo.legs"):
        solve(hippo.legs(4)[0], method="closed-form")


# --- determinism and the cache


def test_same_seed_gives_the_same_result_and_another_seed_another():
    first, again, other = (solve(*hippo.legs(6), seed=seed, iterations=20) for seed in (3, 3, 4))
    assert np.array_equal(first.E, again.E)
    assert not np.array_equal(first.E, other.E)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PTD_CACHE", str(tmp_path))
    return tmp_path


def forbid_arithmetic(monkeypatch) -> None:
    def arithmetic(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(module, "_perturbation", arithmetic)


@pytest.mark.parametrize("B", [None, np.ones(5)])
def test_second_call_reads_the_cache(folder, monkeypatch, B):
    A = grcar(5) - 4 * np.eye(5)
    first = perturb_then_diagonalize(A, B, iterations=5)
    forbid_arithmetic(monkeypatch)
    second = perturb_then_diagonalize(A, B, iterations=5)
    assert all(np.array_equal(vars(second)[name], value) for name, value in vars(first).items())
    assert all(type(vars(second)[name]) is type(value) for name, value in vars(first).items())


def test_other_parameters_are_other_entries(folder):
    for options in ({}, {"seed": 1}, {"size": 0.1}, {"method": "random"}):
        perturb_then_diagonalize(grcar(4), iterations=2, **options)
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("kept", [0, 1, 500, -1])
def test_truncated_entry_is_computed_again(folder, kept):
    first = perturb_then_diagonalize(grcar(5), iterations=5)
    (entry,) = folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:kept])
    assert result_cache.load(entry.stem) is None
    assert np.array_equal(perturb_then_diagonalize(grcar(5), iterations=5).E, first.E)
    assert np.array_equal(result_cache.load(entry.stem)["E"], first.E)


def test_flipped_byte_in_an_entry_is_noticed(folder):
    perturb_then_diagonalize(grcar(5), iterations=5)
    (entry,) = folder.iterdir()
    whole = bytearray(entry.read_bytes())
    whole[200] ^= 1
    entry.write_bytes(whole)
    assert result_cache.load(entry.stem) is None


def test_entry_of_other_fields_is_computed_again(folder):
    first = perturb_then_diagonalize(grcar(5), iterations=5)
    (entry,) = folder.iterdir()
    result_cache.store(entry.stem, {"E": np.eye(5)})
    assert np.array_equal(perturb_then_diagonalize(grcar(5), iterations=5).E, first.E)


def test_cache_false_neither_reads_nor_writes(folder):
    solve(grcar(4), iterations=2)
    assert not list(folder.iterdir())


def test_unwritable_folder_costs_only_the_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTD_CACHE", str(tmp_path / "file" / "folder"))
    assert perturb_then_diagonalize(grcar(4), iterations=2).perturbation_norm > 0


@pytest.mark.parametrize(
    ("platform", "ending"),
    [("linux", "/somewhere/ptd"), ("darwin", "Library/Caches/ptd"), ("win32", "local/ptd")],
)
def test_cache_folder_follows_the_platform(monkeypatch, platform, ending):
    monkeypatch.delenv("PTD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setenv("LOCALAPPDATA", "local")
    monkeypatch.setattr("sys.platform", platform)
    assert result_cache.folder().as_posix().endswith(ending)


# --- bad input: one line, before any arithmetic

BAD = {
    "A: expected a square matrix (n, n), n >= 1, got shape (2, 3)": {"A": np.ones((2, 3))},
    "A: expected a square matrix (n, n), n >= 1, got shape (0, 0)": {"A": np.ones((0, 0))},
    "A: expected finite values, got nan at index (0, 1)": {"A": np.array([[0, np.nan], [0, 0]])},
    "A: expected real or complex numbers": {"A": np.array([["a"]])},
    "B: expected shape (n,) or (n, m) with n=3 from A, got shape (2,)": {"B": np.ones(2)},
    "B: expected shape (n,) or (n, m) with n=3 from A, got shape (3, 0)": {"B": np.ones((3, 0))},
    "B: expected finite values": {"B": np.array([1, np.inf, 0])},
    "method: expected one of": {"method": "adam"},
    "method 'closed-form': expected A and B of HiPPO-LegS, got another pair": {
        "method": "closed-form",
        "B": np.ones(3),
    },
    "size: expected a finite number > 0, got 0": {"size": 0},
    "size: expected a finite number > 0, got -1": {"size": -1},
    "size: expected a finite number > 0, got nan": {"size": np.nan},
    "size: expected a finite number > 0, got 'big'": {"size": "big"},
    "size: expected None for method 'closed-form'": {"method": "closed-form", "size": 1.0},
    "gamma: expected a finite number > 0": {"gamma": 0.0},
    "gamma: expected None where size is given": {"gamma": 1.0, "size": 1.0},
    "gamma: expected None for method 'random'": {"gamma": 1.0, "method": "random"},
    "rho: expected None for method 'optimized'": {"rho": 0.5},
    "rho: expected 0 < rho < 1, got 1": {"rho": 1, "method": "closed-form"},
    "rho: expected a finite number > 0, got -0.1": {"rho": -0.1, "method": "closed-form"},
    "seed: expected an integer >= 0, got -1": {"seed": -1},
    "seed: expected an integer >= 0, got None": {"seed": None},
    "deviation_weight: expected a finite number >= 0": {"deviation_weight": -0.1},
    "restarts: expected a positive integer": {"restarts": 0},
    "iterations: expected a positive integer": {"iterations": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_argument_is_named_in_one_line(message, monkeypatch):
    forbid_arithmetic(monkeypatch)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        solve(**{"A": jordan(3), **BAD[message]})
    assert str(caught.value).startswith(message)


# --- normal, defective and badly scaled matrices ---------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 5, 12, 32])
def test_repeated_eigenvalues_of_a_symmetric_matrix_get_orthogonal_vectors(n):
    """A general eigenvalue solver's are dependent there."""
    found = solve(np.ones((n, n)))
    assert (found.condition_number, found.perturbation_norm) == (pytest.approx(1, abs=1e-13), 0)
    assert found.backward_error < 1e-14


@pytest.mark.parametrize("seed", range(40))
def test_projectors_are_diagonalised_by_orthogonal_vectors(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 12))
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0][:, : int(rng.integers(1, n))]
    found = solve(-Q @ Q.T)
    assert found.condition_number < 1 + 1e-12
    assert found.backward_error < 1e-13


def test_repeated_rotations_and_hermitian_matrices_get_orthogonal_vectors():
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((10, 10)))
    U, _ = np.linalg.qr(rng.standard_normal((10, 10)) + 1j * rng.standard_normal((10, 10)))
    rotations = Q @ np.kron([[-0.5, 2.0], [-2.0, -0.5]], np.eye(5)) @ Q.T
    for A in (rotations, U @ np.diag(np.repeat([1.0, 2.0], 5)) @ U.conj().T):
        found = solve(A)
        assert found.condition_number < 1 + 1e-12
        assert found.backward_error < 1e-13
    Lambda = solve(rotations).Lambda
    np.testing.assert_array_equal(Lambda, Lambda[::-1].conj())


@pytest.mark.parametrize(
    ("A", "size"),
    [
        ([[1, 1e-7], [0, 1]], 0.1),
        (np.diag([-1e6, -2e6, -1, -1.0]) + np.diag([0, 0, 0.1], 1), 10.0),
        (scipy.linalg.block_diag(-1e8, [[-1, 1], [0, -1.0]]), 10.0),
    ],
)
def test_defect_that_a_square_or_a_large_eigenvalue_hides_is_perturbed(A, size):
    found = solve(A, size=size)
    assert found.condition_number < 10
    assert found.backward_error < 1e-13


def test_normal_matrix_of_real_eigenvalues_is_perturbed_where_they_are_to_be_paired():
    for A in (np.diag([-1.0, -2, -3, -4]), -np.eye(4)):
        found = solve(A, size=3.0, paired=True)
        assert np.all(found.Lambda.imag != 0)
        assert found.condition_number < 2


@pytest.mark.parametrize("B", [np.ones(8), np.zeros(8)], ids=["ones", "zeros"])
def test_pairing_of_another_matrix_than_legs_starts_at_random(B):
    found = solve(-np.eye(8) + np.eye(8, k=1), B, size=0.5, paired=True)
    assert np.all(found.Lambda.imag != 0)
    assert found.condition_number < 2


@pytest.mark.parametrize("factor", [1e-250, 1e-100, 1e100, 1e150])
def test_scale_of_the_matrix_does_not_matter(factor):
    A, _ = hippo.legs(8)
    found, plain = solve(A * factor), solve(A)
    assert found.condition_number == pytest.approx(plain.condition_number, rel=0.02)
    assert found.backward_error < 1e-13


def test_pairing_the_zero_matrix_needs_a_size():
    assert np.all(solve(np.zeros((4, 4)), size=1.0, paired=True).Lambda.imag != 0)
    with pytest.raises(NotConverged, match=r"^4 real eigenvalues remain: pass a larger size"):
        solve(np.zeros((4, 4)), paired=True)


def test_error_of_a_worker_process_keeps_its_result():
    error = NotConverged("no", solve(-np.eye(2)))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.best.condition_number) == ("no", 1.0)
