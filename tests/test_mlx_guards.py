"""What mlx gets wrong and the backend works around. Each test fails when mlx changes: then the workaround can go."""

from __future__ import annotations

import sys
from importlib import metadata

import mlx.core as mx
import numpy as np
import pytest

from ptd_mlx import namespace

EPS = 2.0**-23
Z = np.array([0.3 + 0.7j, -0.4 + 0.2j], np.complex64)
W = np.array([1.3 - 0.4j, 0.2 + 0.9j], np.complex64)


def gradient(function):
    """d/d(re, im) of <W, function(re + i im)>, as mlx has it."""

    def loss(re, im):
        y = function(re + 1j * im)
        return mx.sum(mx.array(W.real) * mx.real(y) + mx.array(W.imag) * mx.imag(y))

    re, im = mx.grad(loss, argnums=(0, 1))(mx.array(Z.real), mx.array(Z.imag))
    return np.array(re) + 1j * np.array(im)


def difference(function, step=1e-6):
    """The same by central differences in double precision."""
    loss = lambda z: np.sum(W.real * function(z).real + W.imag * function(z).imag)  # noqa: E731
    unit = np.eye(len(Z))
    along = lambda d: np.array([loss(Z + step * d * e) - loss(Z - step * d * e) for e in unit]) / (2 * step)  # noqa: E731
    return along(1) + 1j * along(1j)


#: Complex functions whose gradients mlx 0.32 gets wrong without a word, with NumPy's.
WRONG = {
    "power": (lambda z: z**2, lambda z: z**2),
    "fractional power": (lambda z: z**0.5, lambda z: z**0.5),
    "cumprod": (lambda z: mx.cumprod(z, axis=0), np.cumprod),
    "logcumsumexp": (lambda z: mx.logcumsumexp(z, axis=0), lambda z: np.log(np.cumsum(np.exp(z)))),
    "sign": (mx.sign, lambda z: z / np.abs(z)),
}
#: A control: the same measurement finds these right.
RIGHT = {
    "product": (lambda z: z * z, lambda z: z * z),
    "exp": (mx.exp, np.exp),
    "fft": (mx.fft.fft, np.fft.fft),
}


@pytest.mark.parametrize("name", WRONG)
def test_complex_gradient_is_still_wrong_of(name):
    """ptd.pairs keeps complex arithmetic out of mlx; these would be the reason not to let it back in."""
    ours, theirs = WRONG[name]
    assert np.max(np.abs(gradient(ours) - difference(theirs))) > 0.1


@pytest.mark.parametrize("name", RIGHT)
def test_complex_gradient_is_right_of(name):
    ours, theirs = RIGHT[name]
    np.testing.assert_allclose(gradient(ours), difference(theirs), atol=1e-4)


def test_complex128_still_becomes_complex64():
    """MlxBackend.dtypes has no float64."""
    assert mx.array(np.array([1j])).dtype == mx.complex64


def test_float64_exponentials_are_still_computed_in_float32():
    """MlxBackend.dtypes has no float64."""
    with mx.stream(mx.cpu):
        error = abs(mx.exp(mx.array(0.3, mx.float64)).item() - np.exp(0.3))
    assert error > 1e-9


HALF_LN2 = np.log(2) / 2
ON_A_GPU = mx.default_device() == mx.gpu


def exponential_error(function, low=-20.0, high=0.0):
    """The largest relative error over an interval, in EPS."""
    x = np.random.default_rng(0).uniform(low, high, 100_000).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    return np.max(np.abs(np.array(function(mx.array(x)), np.float64) - exact) / exact) / EPS


@pytest.mark.skipif(ON_A_GPU, reason="a fact about the CPU")
def test_float32_exponential_is_still_off_by_more_than_an_ulp():
    """namespace.exp reduces the argument itself."""
    assert exponential_error(mx.exp) > 4


def test_the_backends_exponential_adds_a_quarter_of_an_ulp_to_mlx_s_own_near_zero():
    """Rounding of the reduced argument, below ln(2)/2, is an eighth of EPS; the scaling by 2^n is exact."""
    assert exponential_error(namespace.exp) < exponential_error(mx.exp, -HALF_LN2, HALF_LN2) + 0.25


def test_the_backends_exponential_is_as_good_as_its_device_allows():
    """A CPU's series gives 0.89 EPS, an H200 1.16: CUDA takes 2^x from an instruction. Metal promises 4 ulp for exp."""
    limit = 1 if not ON_A_GPU else 1.25 if mx.cuda.is_available() else 4.25
    assert exponential_error(namespace.exp) < limit


@pytest.mark.parametrize("x", [-np.inf, -200.0, -87.5, 0.0, 88.7, 89.0, np.inf, np.nan])
def test_the_backends_exponential_keeps_the_ends_of_its_range(x):
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(np.float32(x))
    found = namespace.exp(mx.array(x, mx.float32)).item()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2.0**-126)


@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "sqrt", "log"])
def test_other_functions_are_off_by_two_ulp_at_most(name):
    """The conformance tolerances count a rounding or two per elementary function, no more."""
    x = np.random.default_rng(1).uniform(0.01, 20, 100_000).astype(np.float32)
    exact = getattr(np, name)(x.astype(np.float64))
    error = np.abs(np.array(getattr(mx, name)(mx.array(x)), np.float64) - exact)
    assert np.max(error / (EPS * np.maximum(np.abs(exact), 2.0**-4))) < 2


@pytest.mark.skipif(sys.platform != "linux" or ON_A_GPU, reason="about mlx's wheel for Linux CPUs")
def test_the_linux_wheel_still_brings_the_reference_blas():
    """ptd_mlx.streams.linear goes round its slow loops, and the README names a BLAS to load in its place."""
    libraries = {file.name.partition("-")[0] for file in metadata.files("mlx-cpu") or () if ".so" in file.name}
    assert "libblas" in libraries
    assert not any("openblas" in library for library in libraries)


def test_there_is_still_no_scan():
    """ptd_mlx.tree is one."""
    assert not any("scan" in name for name in dir(mx))


@pytest.mark.skipif(mx.metal.is_available(), reason="there it runs")
def test_kernels_still_cannot_run_without_their_device():
    """tests/metal_shim runs them."""
    kernel = mx.fast.metal_kernel("copy", ["a"], ["b"], "b[thread_position_in_grid.x] = a[thread_position_in_grid.x];")
    launch = {"grid": (4, 1, 1), "threadgroup": (4, 1, 1), "output_shapes": [(4,)], "output_dtypes": [mx.float32]}
    with pytest.raises(RuntimeError, match="No Metal back-end"):
        kernel(inputs=[mx.zeros(4)], **launch)
