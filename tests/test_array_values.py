"""Wrong values in a framework's own arrays: refused on a CPU, and harmless where nobody can look at them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import mlx.core as mx
import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import ptd
from ptd import arrays, sequences
from ptd_jax.host import on_host as jax_on_host
from ptd_mlx.host import on_host as mlx_on_host
from ptd_torch.host import on_host as torch_on_host

LAYER = ptd.S5(2, 4, bidirectional=True)
U = np.random.default_rng(0).standard_normal((3, 9, 2))
RULE = ptd.Optimizer(lr=1e-2, total_steps=9)
BACKENDS = {name: ptd.backend(name) for name in ("numpy", "jax", "mlx")} | {"torch": ptd.backend("torch").on("cpu")}
TRAINING = ("jax", "torch", "mlx")

#: How functions of arrays are traced, by backend; a vmap maps over their first axes.
TRACED = {
    ("jax", "jit"): jax.jit,
    ("jax", "vmap"): jax.vmap,
    ("torch", "compile"): lambda f: torch.compile(f, backend="aot_eager", fullgraph=True),
    ("torch", "vmap"): torch.func.vmap,
    ("mlx", "compile"): mx.compile,
    ("mlx", "vmap"): mx.vmap,
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


@pytest.fixture(params=TRAINING)
def blind(request, monkeypatch):
    """A backend whose arrays nobody looks at, as on an accelerator."""
    monkeypatch.setattr(arrays, "on_host", lambda x: None)
    return BACKENDS[request.param]


def leaves(backend, description):
    drawn = getattr(description, "initialize", functools.partial(ptd.initialize, description))(np.random.default_rng(0))
    return {name: backend.asarray(value, "float32") for name, value in drawn.items()}


def run(backend, layer=LAYER, u=U, **call):
    """Output and final state, on the host."""
    found = backend.apply(layer, leaves(backend, layer), backend.asarray(u, "float32"), return_state=True, **call)
    return tuple(backend.to_numpy(part) for part in found)


def tokens(V, **options):
    return ptd.SequenceModel(ptd.S5(4, 4), 1, V, 3, encoder="embedding", **options)


# --- where a CPU holds them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "got"), [([9, 10, 0], "10"), ([9, -1, 0], "-1"), ([10000, 7, 3], "10000")])
def test_lengths_past_an_end_are_refused(backend, lengths, got):
    with pytest.raises(ValueError, match=rf"^lengths: expected values in 0\.\.9, the length of u, got {got}$"):
        run(backend, lengths=backend.asarray(np.array(lengths)))


@pytest.mark.parametrize("scale", [np.array(0.0), -np.ones((3, 9)), np.where(U[..., 0] > 0, np.nan, 1.0)])
def test_step_scales_that_are_no_times_are_refused(backend, scale):
    with pytest.raises(ValueError, match=r"^step_scale: expected finite values > 0, got (0\.0|-1\.0|nan); "):
        run(backend, step_scale=backend.asarray(scale, "float32"))


def test_step_scales_of_a_step_are_refused(backend):
    layer = ptd.S5(2, 4)
    u_k, state = (backend.asarray(np.ones(shape), "float32") for shape in ((3, 2), layer.state_shape((3,))))
    with pytest.raises(ValueError, match=r"^step_scale: expected finite values > 0, got 0\.0; "):
        backend.step(layer, leaves(backend, layer), u_k, state, step_scale=backend.asarray([1.0, 0.0, 1.0], "float32"))


@pytest.mark.parametrize("V", [5, 600], ids=["product", "gather"])
@pytest.mark.parametrize("token", [600, -1])
def test_tokens_that_name_no_row_are_refused(backend, V, token):
    model = tokens(V)
    u = backend.asarray(np.full((2, 6), token))
    with pytest.raises(ValueError, match=rf"^u: expected tokens in 0\.\.{V - 1} from d_input, got {token}$"):
        backend.apply_model(model, leaves(backend, model), u)


@pytest.mark.parametrize(
    ("token", "target", "length", "message"),
    [
        (0, 0, 7, r"lengths: expected values in 0\.\.6, the length of u, got 7"),
        (5, 0, 6, r"inputs: expected tokens in 0\.\.4 from d_input, got 5"),
        (-1, 0, 6, r"inputs: expected tokens in 0\.\.4 from d_input, got -1"),
        (0, 3, 6, r"targets: expected class numbers in 0\.\.2 from d_output, got 3"),
    ],
)
@pytest.mark.parametrize("name", TRAINING)
def test_learners_refuse_them_and_train_on_nothing(name, token, target, length, message):
    backend, model = BACKENDS[name], tokens(5)
    before = model.initialize(np.random.default_rng(0))
    learner = backend.learner(model, before, RULE, 0)
    batch = np.full((2, 6), token), np.full(2, target), np.full(2, length)
    with pytest.raises(ValueError, match=f"^{message}$"):
        learner.step(*map(backend.asarray, batch))
    for leaf, value in learner.parameters().items():
        np.testing.assert_array_equal(value, before[leaf].astype(np.float32))


@pytest.mark.parametrize(
    ("token", "length", "argument"), [(5, 6, "inputs"), (-1, 6, "inputs"), (0, 7, "lengths"), (0, -1, "lengths")]
)
@pytest.mark.parametrize("own", [True, False], ids=["framework", "numpy"])
@pytest.mark.parametrize("name", TRAINING)
def test_outputs_of_learners_refuse_them(name, own, token, length, argument):
    model = tokens(5)
    learner = BACKENDS[name].learner(model, model.initialize(np.random.default_rng(0)), RULE, 0)
    given = BACKENDS[name].asarray if own else np.asarray
    with pytest.raises(ValueError, match=f"^{argument}: "):
        learner.outputs(given(np.full((2, 6), token)), given(np.full(2, length)))


# --- where nobody looks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scan", "convolution", "chunked"])
@pytest.mark.parametrize("layer", [ptd.S5(2, 4), LAYER, ptd.S4D(2, 4)], ids=["s5", "s5-both-ways", "s4d"])
def test_lengths_that_nobody_looks_at_count_as_the_nearest(blind, layer, form):
    past, nearest = (
        run(blind, layer, lengths=blind.asarray(np.array(lengths)), form=form) for lengths in ([99, -3, 4], [9, 0, 4])
    )
    for part, expected in zip(past, nearest, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_counts_them_as_the_nearest(blind, pooling):
    model = tokens(5, pooling=pooling)
    params, u = leaves(blind, model), blind.asarray(np.arange(12).reshape(2, 6) % 5)
    past, nearest = (
        blind.to_numpy(blind.apply_model(model, params, u, lengths=blind.asarray(np.array(lengths))))
        for lengths in ([600, -1], [6, 0])
    )
    np.testing.assert_array_equal(past, nearest)


@pytest.mark.parametrize(("target", "length", "argument"), [(3, 6, "targets"), (0, 7, "lengths")])
def test_sets_are_placed_by_way_of_the_host_and_looked_at_there(blind, target, length, argument):
    model = tokens(5)
    learner = blind.learner(model, model.initialize(np.random.default_rng(0)), RULE, 0)
    with pytest.raises(ValueError, match=f"^{argument}: "):
        learner.place(np.zeros((2, 6), int), *map(blind.asarray, (np.full(2, target), np.full(2, length))))


@pytest.mark.parametrize(("name", "how"), TRACED)
def test_traced_lengths_count_as_the_nearest(name, how):
    backend = BACKENDS[name]
    params, u = leaves(backend, LAYER), backend.asarray(U, "float32")
    traced = TRACED[name, how](lambda u, lengths: backend.apply(LAYER, params, u, lengths=lengths, return_state=True))
    past, nearest = (traced(u, backend.asarray(np.array(lengths))) for lengths in ([10000, -3, 4], [9, 0, 4]))
    for part, expected in zip(past, nearest, strict=True):
        np.testing.assert_array_equal(backend.to_numpy(part), backend.to_numpy(expected))


@pytest.mark.parametrize("blind", ["mlx"], indirect=True)
def test_mlx_gathers_within_its_rows(blind):
    """Other frameworks say so, or give nan."""
    model = tokens(600)
    params = leaves(blind, model)
    past, nearest = (
        blind.to_numpy(blind.apply_model(model, params, blind.asarray(np.array(u)))) for u in ([[-1, 600]], [[0, 599]])
    )
    np.testing.assert_array_equal(past, nearest)


def test_torch_clips_without_copying_the_limits_to_the_device():
    traced = make_fx(lambda lengths: sequences.within(lengths, 9))(torch.tensor([1, 99]))
    called = [node.target for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    assert called == [torch.ops.aten.clamp.default]


# --- what can be looked at -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64"])
def test_narrow_lengths_hold_on_sequences_longer_than_their_type(backend, dtype):
    narrow, wide = (
        run(backend, u=np.ones((1, 300, 2)), lengths=backend.asarray(np.array([100], of))) for of in (dtype, "int32")
    )
    for part, expected in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(
    ("on_host", "x"),
    [
        (torch_on_host, torch.tensor([1.0, 2.0], requires_grad=True)),
        (torch_on_host, torch.tensor([1.0, 2.0], dtype=torch.bfloat16)),
        (jax_on_host, jnp.array([1.0, 2.0], jnp.bfloat16)),
        (mlx_on_host, mx.array([1.0, 2.0], mx.bfloat16)),
    ],
    ids=["torch-gradient", "torch-bfloat16", "jax-bfloat16", "mlx-bfloat16"],
)
def test_values_come_as_numbers(on_host, x):
    assert on_host(x).tolist() == [1.0, 2.0]
    assert on_host(x).dtype.kind == "f"


@pytest.mark.parametrize(("name", "how"), TRACED)
def test_traced_arrays_are_not_looked_at(name, how):
    seen = []
    on_host = {"jax": jax_on_host, "torch": torch_on_host, "mlx": mlx_on_host}[name]

    def looked(x):
        seen.append(on_host(x))
        return 2 * x

    TRACED[name, how](looked)(BACKENDS[name].asarray(np.arange(3)))
    assert seen == [None]


def test_stand_ins_of_torch_are_not_looked_at():
    own = torch.ones(2)
    with torch._subclasses.FakeTensorMode():
        fake = torch.ones(2)
        assert torch_on_host(own) is None
    assert torch_on_host(fake) is None
    assert torch_on_host(torch.ones(2, device="meta")) is None
