"""Dropout of the jax backend: masks by counting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ptd_jax.dropout import dropout, step_key

KEY = jnp.uint32(12345)


def kept(mask: jax.Array) -> np.ndarray:
    return np.asarray(mask) != 0


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_share_of_zeros_is_the_rate_and_the_mean_stays(rate):
    """Five deviations of a binomial share of n numbers."""
    n = 200_000
    y = dropout(KEY)(jnp.ones((4, n // 40, 10)), rate, False)
    assert abs(np.mean(~kept(y)) - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / (1 - rate)], rtol=1e-6)


def test_calls_steps_and_neighbours_have_masks_of_their_own():
    drop, x = dropout(KEY), jnp.ones((2, 5000, 10))
    first, second = kept(drop(x, 0.5, False)), kept(drop(x, 0.5, False))
    other_step = kept(dropout(step_key(jax.random.key(0), jnp.int32(1)))(x, 0.5, False))
    pairs = [(first, second), (first, other_step), (first[:, 1:], first[:, :-1]), (first[..., 1:], first[..., :-1])]
    for a, b in pairs:
        assert abs(np.mean(a == b) - 0.5) < 5 * 0.5 / np.sqrt(a.size)


def test_a_pass_is_repeated_by_its_key_and_the_gradient_has_the_same_mask():
    x = jnp.ones((3, 7, 4))
    y, pull = jax.vjp(lambda x: dropout(KEY)(x, 0.3, False), x)
    np.testing.assert_array_equal(y, pull(x)[0])
    np.testing.assert_array_equal(y, jax.jit(lambda x: dropout(KEY)(x, 0.3, False))(x))


def test_a_mask_over_time_is_one_per_sequence_and_feature():
    y = np.asarray(dropout(KEY)(jnp.ones((3, 50, 40)), 0.5, True))
    assert (y == y[:, :1]).all()
    assert 0 < np.mean(y[:, 0] == 0) < 1
    assert (y[0, 0] != y[1, 0]).any()
