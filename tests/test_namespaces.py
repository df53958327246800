"""The same layer source in other array namespaces and precisions: the standard's strict one, and float32."""

from __future__ import annotations

import dataclasses

import array_api_strict as strict
import dense
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import special

from ptd import DSS, S4, S4D, S5, SequenceModel
from ptd.arrays import erf
from ptd.kernels import Kernels
from ptd.portable import PortableBackend

LAYERS = {
    "s4": S4(2, 6),
    "s4 of rank 2, all modes": S4(2, 3, rank=2, conj_sym=False, shared=False),
    "s4d": S4D(2, 5, discretization="bilinear"),
    "dss": DSS(2, 3, kernel_length=5),
    "s5": S5(3, 6, blocks=3),
    "s4 both ways": S4(2, 6, bidirectional=True),
    "s5 both ways": S5(3, 5, bidirectional=True, conj_sym=False),
}
L, BATCH = 5, 2
CALLS = {
    "scan": {"form": "scan"},
    "convolution": {"form": "convolution"},
    "lengths": {"lengths": np.array([3, 0])},
    "resets": {"resets": np.array([False, True, False, False, True])},
    "resets and lengths": {"resets": np.eye(2, L, k=1, dtype=bool), "lengths": np.array([4, 5])},
    "steps": {"step_scale": np.linspace(0.5, 2, L)},
    "steps per row": {"step_scale": np.linspace(0.5, 2, BATCH * L).reshape(BATCH, L), "lengths": np.array([5, 2])},
    "sampling rate": {"step_scale": 0.5},
}
STRICT = PortableBackend()
STRICT.name, STRICT.xp = "array-api-strict", strict


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS)
def layer(request):
    return request.param


@pytest.fixture(scope="module")
def params(layer):
    return dense.parameters(layer)


@pytest.fixture(scope="module")
def u(layer):
    return np.random.default_rng(1).standard_normal((BATCH, L, layer.d_model))


@pytest.fixture(scope="module")
def state(layer):
    return np.random.default_rng(2).standard_normal(layer.state_shape((BATCH,)))


def to_strict(value):
    """Arrays into the strict namespace, through dicts; plain numbers and names as they are."""
    if isinstance(value, dict):
        return {name: to_strict(entry) for name, entry in value.items()}
    return strict.asarray(value) if isinstance(value, np.ndarray) else value


def to_float32(value):
    """float64 arrays as float32, through dicts; the rest as it is."""
    if isinstance(value, dict):
        return {name: to_float32(entry) for name, entry in value.items()}
    return value.astype("float32") if getattr(value, "dtype", None) == np.float64 else value


def assert_equal(found, expected: np.ndarray) -> None:
    assert_allclose(np.asarray(found), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_strict_standard_gives_what_numpy_gives(layer, params, u, state, call):
    call = call | {"state": state, "return_state": True}
    y, end = layer.apply(params, u, **call)
    y_strict, end_strict = layer.apply(to_strict(params), to_strict(u), **to_strict(call))
    assert_equal(y_strict, y)
    assert_equal(end_strict, end)


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("causal", [LAYERS["s4"], LAYERS["s4d"], LAYERS["dss"], LAYERS["s5"]], ids=lambda v: v.kind)
def test_step_in_the_strict_standard_gives_what_numpy_gives(causal, scale):
    params, u_k = dense.parameters(causal), np.ones((BATCH, causal.d_model))
    state = np.ones(causal.state_shape((BATCH,)))
    y, end = causal.step(params, u_k, state, step_scale=scale)
    y_strict, end_strict = causal.step(*map(to_strict, (params, u_k, state)), step_scale=scale)
    assert_equal(y_strict, y)
    assert_equal(end_strict, end)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer", "pooling": "mean"},
        {"norm": "batch", "pooling": "last", "activation": "full_glu"},
        {"encoder": "embedding", "norm": "none", "pooling": "none"},
    ],
    ids=str,
)
def test_model_in_the_strict_standard_gives_what_numpy_gives(options):
    model = SequenceModel(S5(4, 4), n_layers=2, d_input=3, d_output=2, **options)
    params = model.initialize(np.random.default_rng(0), init="legs")
    tokens = np.arange(10).reshape(2, 5) % 3
    u = tokens if model.encoder == "embedding" else np.eye(3)[tokens]
    lengths = np.array([5, 3])
    expected = model.apply(params, u, lengths=lengths)
    assert_equal(STRICT.apply_model(model, to_strict(params), to_strict(u), lengths=to_strict(lengths)), expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_float32_stays_float32(layer, params, u, state, call):
    call = call | {"state": state, "return_state": True}
    y, end = layer.apply(to_float32(params), to_float32(u), **to_float32(call))
    assert y.dtype == end.dtype == np.float32
    # 5 samples of unit size: single precision, not more and not less
    assert_allclose(y, layer.apply(params, u, **call)[0], rtol=1e-4, atol=1e-4)


def spied_kernels(seen: list[str]) -> Kernels:
    """The portable kernels, which note the dtype of every array passed to them."""

    def spy(kernel):
        def called(*arguments, **options):
            seen.extend(str(value.dtype) for value in arguments if hasattr(value, "dtype"))
            return kernel(*arguments, **options)

        return called

    functions = {field.name: field.default for field in dataclasses.fields(Kernels) if callable(field.default)}
    return Kernels(**{name: spy(function) for name, function in functions.items()})


@pytest.mark.parametrize("form", ["scan", "convolution"])
def test_kernels_of_a_float32_layer_see_single_precision_only(layer, params, u, form):
    seen: list[str] = []
    layer.apply(to_float32(params), to_float32(u), form=form, kernels=spied_kernels(seen))
    assert seen
    assert set(seen) <= {"float32", "complex64"}


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_the_error_function_of_a_namespace_that_has_none(dtype):
    x = np.linspace(-9, 9, 400).astype(dtype)
    found = erf(x) if dtype == "longdouble" else np.asarray(erf(strict.asarray(x)))
    assert found.dtype == x.dtype
    eps = max(np.finfo(dtype).eps, np.finfo(np.float64).eps)
    assert_allclose(found, special.erf(x.astype(np.float64)), rtol=40 * eps)
