"""Every layer against the dense simulation of its continuous system (tests/dense.py), in every mode of running."""

from __future__ import annotations

import dense
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ptd
from ptd import DSS, S4, S4D, S5
from ptd.layers import STABILITY_MARGIN

CAUSAL = {
    "s4": S4(3, 8),
    "s4 of odd order": S4(2, 5),
    "s4 of rank 2, unshared": S4(2, 6, rank=2, shared=False),
    "s4 with all modes": S4(2, 5, conj_sym=False, rank=2),
    "s4 of one mode": S4(1, 1, skip=False),
    "s4d": S4D(3, 8),
    "s4d bilinear, shared, odd": S4D(2, 5, discretization="bilinear", shared=True),
    "s4d with all modes": S4D(2, 3, conj_sym=False, skip=False),
    "s4d of one mode": S4D(1, 2),
    "dss-exp": DSS(3, 4),
    "dss-exp bilinear": DSS(2, 3, discretization="bilinear"),
    "dss-softmax": DSS(3, 4, kernel_length=11),
    "s5": S5(3, 8),
    "s5 bilinear, odd blocks": S5(4, 9, blocks=3, discretization="bilinear"),
    "s5 with all modes": S5(3, 5, conj_sym=False, skip=False),
    "s5 of one mode": S5(2, 1),
}
BIDIRECTIONAL = {
    "s4": S4(2, 6, bidirectional=True),
    "s4d": S4D(2, 5, bidirectional=True),
    "dss": DSS(2, 3, bidirectional=True, kernel_length=7),
    "s5": S5(3, 6, bidirectional=True, blocks=2),
}
FORMS = ["scan", "convolution"]


@pytest.fixture(scope="module", params=CAUSAL.values(), ids=CAUSAL)
def layer(request):
    return request.param


@pytest.fixture(scope="module", params=BIDIRECTIONAL.values(), ids=BIDIRECTIONAL)
def two_way(request):
    return request.param


@pytest.fixture(scope="module")
def params(layer):
    return dense.parameters(layer)


@pytest.fixture(scope="module")
def system(layer, params):
    return dense.system(layer, params)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-12 of the largest entry: features and FFTs share their rounding."""
    assert_allclose(found, expected, rtol=0, atol=1e-12 * max(np.abs(expected).max(initial=0), 1))


# --- causal


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("L", [1, 2, 13, 24])
def test_output_is_that_of_the_dense_system(layer, params, system, L, form):
    u, state = draw(L, layer.d_model), draw(*layer.state_shape(), seed=1)
    y, end = layer.apply(params, u, state=state, return_state=True, form=form)
    expected, x = system.run(u, dense.state_vector(layer, state))
    assert_close(y, expected)
    assert_close(dense.state_vector(layer, end), x)


@pytest.mark.parametrize("form", FORMS)
def test_state_is_zero_by_default(layer, params, system, form):
    u = draw(7, layer.d_model)
    assert_close(layer.apply(params, u, form=form), system.run(u)[0])


def test_step_is_one_sample_of_the_dense_system(layer, params, system):
    u_k, state = draw(layer.d_model), draw(*layer.state_shape(), seed=1)
    y, end = layer.step(params, u_k, state, step_scale=1.5)
    expected, x = system.run(u_k[None], dense.state_vector(layer, state), factors=1.5)
    assert_close(y, expected[0])
    assert_close(dense.state_vector(layer, end), x)


@pytest.mark.parametrize("length", [0, 1, 5, 9])
@pytest.mark.parametrize("form", FORMS)
def test_padding_is_not_seen_and_gives_zero(layer, params, system, length, form):
    u, state = draw(2, 9, layer.d_model), draw(*layer.state_shape((2,)), seed=1)
    y, end = layer.apply(params, u, lengths=np.array([9, length]), state=state, return_state=True, form=form)
    expected, x = system.run(u[1, :length], dense.state_vector(layer, state[1]))
    assert_close(y[1, :length], expected)
    assert not y[1, length:].any()
    assert_close(dense.state_vector(layer, end[1]), x)


def test_reset_begins_a_new_sequence_in_each_row(layer, params, system):
    u, state = draw(2, 6, layer.d_model), draw(*layer.state_shape((2,)), seed=1)
    resets = np.array([[False, False, True, False, True, True], [True, False, False, False, False, False]])
    y, end = layer.apply(params, u, resets=resets, state=state, return_state=True)
    first, x = system.run(u[0], dense.state_vector(layer, state[0]), resets[0])
    assert_close(y[0], first)
    assert_close(y[1], system.run(u[1])[0])
    assert_close(dense.state_vector(layer, end[0]), x)


def test_step_scale_per_sample_stretches_each_step(layer, params, system):
    u, factors = draw(2, 5, layer.d_model), np.random.default_rng(2).uniform(0.1, 3, (2, 5))
    y = layer.apply(params, u, step_scale=factors)
    assert_close(y[1], system.run(u[1], factors=factors[1])[0])


@pytest.mark.parametrize("form", FORMS)
def test_step_scale_of_one_number_changes_the_sampling_rate(layer, params, system, form):
    u = draw(5, layer.d_model)
    assert_close(layer.apply(params, u, step_scale=0.5, form=form), system.run(u, factors=0.5)[0])


@pytest.mark.parametrize("form", FORMS)
def test_batch_axes_are_independent_runs(layer, params, system, form):
    u, state = draw(2, 3, 7, layer.d_model), draw(*layer.state_shape((2, 3)), seed=1)
    y = layer.apply(params, u, state=state, form=form)
    assert_close(y[1, 2], system.run(u[1, 2], dense.state_vector(layer, state[1, 2]))[0])


@pytest.mark.parametrize("form", FORMS)
def test_empty_batch_gives_an_empty_output(layer, params, form):
    y, end = layer.apply(params, np.zeros((0, 4, layer.d_model)), return_state=True, form=form)
    assert y.shape == (0, 4, layer.d_model)
    assert end.shape == layer.state_shape((0,))


# --- bidirectional


def run_both_ways(layer, params, u, states, resets=None, factors=None):
    """Both directions of a dense simulation; a reset before k is one before k - 1 seen from the right."""
    factors = np.ones(len(u)) if factors is None else factors
    resets = np.zeros(len(u), bool) if resets is None else resets
    starts = [dense.state_vector(layer, state) for state in states]
    forward, end = dense.system(layer, params).run(u, starts[0], resets, factors)
    reversed_resets = np.append(resets[1:], False)[::-1]
    system = dense.system(layer, params, "C_reverse")
    backward, start = system.run(u[::-1], starts[1], reversed_resets, factors[::-1])
    return forward + backward[::-1] - (params["D"] * u), (end, start)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("L", [1, 8, 11])
def test_bidirectional_output_is_the_sum_of_both_directions(two_way, L, form):
    params, u, states = dense.parameters(two_way), draw(L, two_way.d_model), draw(*two_way.state_shape(), seed=1)
    y, ends = two_way.apply(params, u, state=states, return_state=True, form=form)
    expected, (end, start) = run_both_ways(two_way, params, u, states)
    assert_close(y, expected)
    assert_close(dense.state_vector(two_way, ends[0]), end)
    assert_close(dense.state_vector(two_way, ends[1]), start)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_bidirectional_run_honours_padding_resets_and_steps(two_way, length):
    params, u = dense.parameters(two_way), draw(2, 7, two_way.d_model)
    states = draw(*two_way.state_shape((2,)), seed=1)
    resets = np.array([False, False, True, False, False, True, False])
    factors = np.random.default_rng(2).uniform(0.1, 3, (2, 7))
    call = {"lengths": np.array([7, length]), "resets": resets, "step_scale": factors, "state": states}
    y = two_way.apply(params, u, **call)
    expected, _ = run_both_ways(two_way, params, u[1, :length], states[1], resets[:length], factors[1, :length])
    assert_close(y[1, :length], expected)
    assert not y[1, length:].any()


# --- what the parameters mean


@pytest.mark.parametrize("L", [1, 10])
def test_dss_softmax_kernel_is_the_row_softmax_of_the_paper(L):
    """K = Re(w Lambda^-1 row-softmax(lambda_i k step)), k = 0 ... L-1 (Gupta et al. 2022 prop. 1)."""
    layer = DSS(1, 3, kernel_length=L, skip=False)
    params = dense.parameters(layer)
    Lambda = params["Lambda_re"] + 1j * params["Lambda_im"]
    w = (params["C_re"] + 1j * params["C_im"])[0]
    rows = np.exp(Lambda[:, None] * np.arange(L) * np.exp(params["log_step"]))
    kernel = ((w / Lambda) @ (rows / rows.sum(axis=1, keepdims=True))).real
    impulse = np.eye(L)[:, :1]
    assert_close(layer.apply(params, impulse)[:, 0], kernel)


@pytest.mark.parametrize("kind", [S4, S4D, S5])
def test_half_storage_is_full_storage_of_both_conjugates(kind):
    half, full = kind(2, 6), kind(2, 6, conj_sym=False)
    params, u = dense.parameters(half), draw(9, 2)
    assert_close(full.apply(dense.full_storage(half, params), u), half.apply(params, u))


@pytest.mark.parametrize("Lambda_re", [-STABILITY_MARGIN / 2, 0.0, 5.0])
def test_mode_beyond_the_stability_margin_decays_at_the_margin(layer, params, Lambda_re):
    beyond = params | {"Lambda_re": np.full_like(params["Lambda_re"], Lambda_re)}
    at = params | {"Lambda_re": np.full_like(params["Lambda_re"], -STABILITY_MARGIN)}
    u = draw(6, layer.d_model)
    assert np.array_equal(layer.apply(beyond, u), layer.apply(at, u))


def test_mode_inside_the_stability_margin_is_left_alone():
    layer = S4D(1, 2)
    slow = dense.parameters(layer) | {"Lambda_re": np.array([[-2 * STABILITY_MARGIN]])}
    u = draw(6, 1)
    assert_close(layer.apply(slow, u), dense.system(layer, slow).run(u)[0])


@pytest.mark.parametrize("form", ["scan", "chunked", "convolution"])
@pytest.mark.parametrize("dt", [1e-3, 1e-1])
def test_s4_keeps_its_digits_where_a_mode_hardly_decays(form, dt):
    """As HiPPO-FouT has one: a generating function at the roots of 1 cancels it, and loses three digits and more."""
    layer, rng = S4(2, 16), np.random.default_rng(1)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="fout", dt_min=dt, dt_max=dt)
    params = {name: value.astype(np.float32) for name, value in leaves.items()}
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    for L in (2, 64):
        u, state = (rng.standard_normal(shape).astype(np.float32) for shape in ((L, 2), layer.state_shape()))
        for start in (None, state):
            from_there = None if start is None else start.astype(np.float64)
            expected = layer.apply(wide, u.astype(np.float64), state=from_there, form="scan")
            found = layer.apply(params, u, state=start, form=form)
            assert np.max(np.abs(found - expected)) < 2e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("N", "rank", "init", "dt", "L"),
    [(16, 2, "legt", 1e-1, 4096), (64, 2, "legt", 1e-3, 4096), (64, 1, "fout", 5e-4, 2000)],
    ids=["LegT, 400 windows", "LegT, 4 windows", "FouT, one window"],
)
def test_s4_convolution_keeps_its_digits(N, rank, init, dt, L):
    """A point near a resonance of LegT loses three digits to cofactors; A_bar rounded to 1 loses L eps in a window."""
    layer = S4(2, N, rank=rank, skip=False)
    leaves = ptd.initialize(layer, np.random.default_rng(0), init=init, dt_min=dt, dt_max=dt)
    params = {name: value.astype(np.float32) for name, value in leaves.items()}
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    impulse = np.eye(L, 1, dtype=np.float32) * np.ones(2, np.float32)
    expected = layer.apply(wide, impulse.astype(np.float64), form="scan")
    found = layer.apply(params, impulse, form="convolution")
    assert np.max(np.abs(found - expected)) < 2e-5 * np.max(np.abs(expected))
