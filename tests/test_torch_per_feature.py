"""Layers with a system per feature as Triton kernels, against core's parts, through Triton's interpreter."""

from __future__ import annotations

import dataclasses
import functools

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd_torch import backend, per_feature_chunks
from ptd_torch.kernels import KERNELS
from ptd_torch.per_feature_chunks import chunks, chunks_adjoint

pytestmark = interpreter.needed

FUSED = dataclasses.replace(KERNELS["cpu"], chunk_length=lambda layer, L: 16)
PARTS = dataclasses.replace(FUSED, per_feature_chunks=None)
LAYERS = {
    "s4d both ways": ptd.S4D(3, 8, bidirectional=True),
    "s4d, 17 modes": ptd.S4D(2, 17, conj_sym=False),
    "dss": ptd.DSS(2, 5, bidirectional=True),
    "s4": ptd.S4(2, 6),
    "s4 both ways": ptd.S4(2, 4, bidirectional=True),
}
BATCH, L = 2, 32


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request):
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The lengths of the sequences that the operator was called on."""
    found: list[int] = []

    def counted(u, *rest):
        found.append(u.shape[1])
        return chunks(u, *rest)

    monkeypatch.setattr(per_feature_chunks, "chunks", counted)
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(layer, dtype: str = "float32") -> dict[str, torch.Tensor]:
    leaves = ptd.initialize(layer, np.random.default_rng(0), init="legs")
    return {name: backend.asarray(value, dtype) for name, value in leaves.items()}


def results(layer, kernels, dtype: torch.dtype, u: torch.Tensor, **call) -> list[torch.Tensor]:
    """Outputs, final state if asked for, and the gradients by every leaf, u and the state."""
    params = {name: value.to(dtype).requires_grad_() for name, value in parameters(layer).items()}
    u = u.detach().to(u.dtype if u.dtype == torch.bfloat16 else dtype).requires_grad_()
    leaves = [*params.values(), u]
    if "state" in call:
        call["state"] = call["state"].detach().to(dtype).requires_grad_()
        leaves.append(call["state"])
    out = layer.apply(params, u, kernels=kernels, form="chunked", **call)
    out = list(out) if call.get("return_state") else [out]
    loss = sum((value * draw(*value.shape, seed=7 + i)).sum() for i, value in enumerate(out))
    return [value.detach() for value in (*out, *torch.autograd.grad(loss, leaves))]


def assert_as_precise_as_the_parts(found, layer, u, **call) -> None:
    """Within 16 times what the parts lose in float32 and 64 roundings of the largest entry of each result."""
    own, wide = (results(layer, PARTS, dtype, u, **call) for dtype in (torch.float32, torch.float64))
    for value, narrow, exact in zip(found, own, wide, strict=True):
        lost = 16 * float((narrow - exact).abs().max()) + 64 * 2**-24 * float(exact.abs().max())
        assert_close(value.double(), exact, rtol=0, atol=lost)


@pytest.mark.parametrize("length", [L, 25])
def test_outputs_and_gradients_are_those_of_the_parts_in_double_precision(layer, length, calls):
    u = draw(BATCH, length, layer.d_model)
    found = results(layer, FUSED, torch.float32, u)
    assert calls == [length]
    assert_as_precise_as_the_parts(found, layer, u)


@pytest.fixture
def no_zeros_by_chance():
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("length", "bounded"), [(L, False), (25, False), (L, True)], ids=["whole chunks", "not", "lengths"]
)
def test_features_first_are_left_so_where_that_can_be_and_so_are_gradients(length, bounded, monkeypatch):
    """The signal of the gradient is not copied then: the turn of outputs is never called, that of u once."""
    turns = interpreter.counted_turns(monkeypatch)
    layer = LAYERS["s4d both ways"]
    params, u = parameters(layer), draw(BATCH, length, layer.d_model).requires_grad_()
    call = {"form": "chunked", "lengths": torch.tensor([length, 20]) if bounded else None}
    upstream = draw(layer.d_model, BATCH, length).movedim(0, -1)
    found = []
    for turned in (False, True):
        turns.clear()
        run = functools.partial(per_feature_chunks.per_feature_chunks, features_first=turned)
        y = layer.apply(params, u, kernels=dataclasses.replace(FUSED, per_feature_chunks=run), **call)
        found.append((y, *torch.autograd.grad(y, u, upstream)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    left = length == L and not bounded
    assert y.movedim(-1, 0).is_contiguous() == left
    assert turns == ["to_features", "from_features"] if left else sorted(turns)[::3] == ["from_features", "to_features"]


def test_features_may_lie_further_apart_than_32_bits_count():
    from ptd_torch.triton import turns

    apart = 2**30
    memory = torch.empty(2 * apart + 16, dtype=torch.int8)  # of which three pages are touched
    u = memory.as_strided((1, 16, 3), (1, 1, apart))
    u.copy_(torch.arange(48).view(1, 16, 3))
    assert torch.equal(turns.to_features(u, 16, None, 16), u.movedim(-1, 0))


@pytest.mark.usefixtures("no_zeros_by_chance")
@pytest.mark.parametrize("state", [False, True], ids=["from rest", "from a state"])
def test_padding_is_neither_read_nor_written_to(layer, state, calls):
    """Padded with NaN, which any product would hand on; a sequence without samples, and one that ends with a chunk."""
    u, lengths = draw(4, 56, layer.d_model), torch.tensor([[0, 7], [16, 7], [56, 7], [33, 7]])[:, 0]
    call = {"lengths": lengths}
    if state and not layer.bidirectional:
        call["state"] = draw(*layer.state_shape((4,)), seed=1)
    padded = u.masked_fill(torch.arange(56)[:, None] >= lengths[:, None, None], torch.nan)
    found = results(layer, FUSED, torch.float32, padded, **call)
    assert calls == [56]
    assert_as_precise_as_the_parts(found, layer, u, **call)


@pytest.mark.usefixtures("no_zeros_by_chance")
def test_segments_of_padded_time_are_joined(monkeypatch, calls):
    from ptd_torch.triton import chunks as triton_chunks

    monkeypatch.setattr(triton_chunks, "ENOUGH_PROGRAMS", 10**6)
    layer, lengths = ptd.S4D(2, 6, bidirectional=True), torch.tensor([0, 300, 512])
    u = draw(3, 16 * 32, layer.d_model)
    padded = u.masked_fill(torch.arange(512)[:, None] >= lengths[:, None, None], torch.nan)
    found = results(layer, FUSED, torch.float32, padded, lengths=lengths)
    assert calls == [512]
    assert_as_precise_as_the_parts(found, layer, u, lengths=lengths)


@pytest.mark.parametrize("layer", [ptd.S4D(3, 8), ptd.S4(2, 6)], ids=["s4d", "s4"])
def test_state_enters_and_leaves_with_its_gradient(layer, calls):
    u, state = draw(BATCH, L, layer.d_model), draw(*layer.state_shape((BATCH,)), seed=1)
    found = results(layer, FUSED, torch.float32, u, state=state, return_state=True)
    assert calls == [L]
    assert_as_precise_as_the_parts(found, layer, u, state=state, return_state=True)


@pytest.mark.parametrize("layer", [ptd.S4D(2, 6, bidirectional=True), ptd.S4(2, 6)], ids=["s4d", "s4"])
def test_segments_of_time_are_joined(layer, monkeypatch, calls):
    from ptd_torch.triton import chunks as triton_chunks

    segments = []
    cut = triton_chunks._cut
    monkeypatch.setattr(triton_chunks, "_cut", lambda *args: segments.append(cut(*args)[0]) or cut(*args))
    u = draw(1, 16 * 32, layer.d_model)
    found = results(layer, FUSED, torch.float32, u)
    assert segments == [4, 4]
    assert_as_precise_as_the_parts(found, layer, u)


def test_final_state_within_a_chunk_is_left_to_the_parts(calls):
    layer, u = ptd.S4D(3, 8), draw(BATCH, 25, 3)
    found = results(layer, FUSED, torch.float32, u, return_state=True)
    assert calls == []
    assert_as_precise_as_the_parts(found, layer, u, return_state=True)


def test_narrow_activations_round_at_the_border_only(layer, calls):
    u = draw(BATCH, L, layer.d_model).to(torch.bfloat16)
    found = results(layer, FUSED, torch.float32, u)
    assert calls == [L]
    assert found[0].dtype == torch.bfloat16
    # Eight bits of u, of the matrices and of y, each once in a sum of terms no larger than the largest output.
    expected = results(layer, PARTS, torch.float64, u.double())[0]
    assert_close(found[0].double(), expected, rtol=0, atol=4 * 2**-8 * float(expected.abs().max()))


def test_double_precision_and_transformations_are_left_to_the_parts(calls):
    layer = ptd.S4D(3, 8)
    params, u = parameters(layer), draw(BATCH, L, 3)
    by_batch = torch.func.vmap(lambda u: layer.apply(params, u, kernels=FUSED, form="chunked"))(u)
    layer.apply(parameters(layer, "float64"), u.double(), kernels=FUSED, form="chunked")
    assert calls == []
    assert_close(by_batch, layer.apply(params, u, kernels=FUSED, form="chunked"), rtol=0, atol=1e-5)
    assert calls == [L]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_operator_passes_torchs_own_checks(dense, state):
    H, T, D, M, R = 2, 16, 2, 3, 2
    decay = 0.3 * draw(*((H, 2, M, 2, M) if dense else (H, 2, M)))
    shapes = ((H, T, D * 2 * M), (H, D * 2 * M, T), (H, T, T))
    matrices = [0.3 * draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    arguments = [draw(R, 40, H), decay, *matrices, draw(H, D, R, 2, M) if state else None]
    arguments = [None if value is None else value.requires_grad_() for value in arguments]
    # With a valid sample in each chunk: others are not set.
    for lengths in (None, torch.tensor([40, 33])):
        torch.library.opcheck(torch.ops.ptd.chunks.default, (*arguments, lengths))


@pytest.mark.parametrize("first", [False, True], ids=["features last", "features first"])
@pytest.mark.parametrize("R", [1, 2])
def test_operators_pass_torchs_own_checks_wherever_features_lie(R, first):
    H, T, M, L = 2, 16, 3, 32
    shapes = ((H, 2, M), (H, T, 2 * M), (H, 2 * M, T), (H, T, T))
    matrices = [(0.3 * draw(*shape, seed=i)).requires_grad_() for i, shape in enumerate(shapes)]
    u = draw(H, R, L).movedim(0, -1) if first else draw(R, L, H)
    torch.library.opcheck(chunks, (u.requires_grad_(), *matrices, None, None, first))
    signal, entering = draw(H, R, L), draw(H, R, L // T, 1, 2, M)
    adjoint = (signal, *(m.detach() for m in matrices), entering, None, u.detach(), None, False, first)
    torch.library.opcheck(chunks_adjoint, adjoint, test_utils=("test_schema", "test_faketensor"))


def test_final_state_alone_has_a_gradient_where_the_last_chunk_is_cut():
    """Outputs that nobody used are as outputs with a gradient of zero."""
    H, T, M, R = 2, 16, 3, 2
    shapes = ((R, 40, H), (H, 2, M), (H, T, 2 * M), (H, 2 * M, T), (H, T, T))
    arguments = [(0.3 * draw(*shape, seed=i)).requires_grad_() for i, shape in enumerate(shapes)]
    y, final, _, _ = chunks(*arguments, None, None)
    alone = torch.autograd.grad(final.sum(), arguments, retain_graph=True)
    beside = torch.autograd.grad([final.sum(), y], arguments, [torch.ones(()), torch.zeros_like(y)])
    for found, expected in zip(alone, beside, strict=True):
        assert_close(found, expected)


def test_states_that_enter_from_both_ends_pass_through_padding():
    H, T, D, M, R, L = 2, 16, 2, 3, 2, 40
    lengths = torch.tensor([3, 20])
    shapes = ((H, 2, M), (H, T, D * 2 * M), (H, D * 2 * M, T), (H, T, T))
    system = [0.5 * draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    u, x0 = draw(R, L, H, seed=4), draw(H, D, R, 2, M, seed=5)
    padding = torch.arange(L)[:, None] >= lengths[:, None, None]
    expected = chunks(u.masked_fill(padding, 0.0), *system, x0, None)[0].masked_fill(padding, 0.0)
    assert_close(chunks(u, *system, x0, lengths)[0], expected)


def test_a_second_derivative_is_refused():
    layer, u = ptd.S4D(3, 8), draw(BATCH, L, 3).requires_grad_()
    y = layer.apply(parameters(layer), u, kernels=FUSED, form="chunked")
    (first,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^gradients: .*of form='chunked' on a GPU, got a second"):
        torch.autograd.grad(first.sum(), u)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch 2.13's forward mode
def test_tangents_are_left_to_the_parts(calls):
    layer, u = ptd.S4D(3, 8), draw(BATCH, L, 3)
    params, forward_ad = parameters(layer), torch.autograd.forward_ad
    with forward_ad.dual_level():
        y = layer.apply(params, forward_ad.make_dual(u, u), kernels=FUSED, form="chunked")
        y, slope = forward_ad.unpack_dual(y)  # the output is linear in u
    assert not calls
    assert_close(slope, y)
