"""The end of a block as one operator against core's array code, through Triton's interpreter."""

from __future__ import annotations

import interpreter
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd import model as core
from ptd.model import SequenceModel, Training
from ptd_torch import end, fused
from ptd_torch.dropout import Dropout
from ptd_torch.end import block_end, block_end_adjoint

pytestmark = interpreter.needed

# Whole tiles of 16 and 32 rows, each of one sequence; and neither.
EVEN, ODD = (2, 32), (3, 29)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles of rows and of features, other ones for the gradient; partial moments of two levels."""
    from ptd_torch.triton import columns
    from ptd_torch.triton import end as triton_end

    tile = triton_end.Tile(rows=16, outputs=64, inner=32, features=32, warps=4, stages=1, registers=None)
    back = tile._replace(rows=32, features=128)
    for name, own in {"FORWARD": tile, "FORWARD_FULL": tile, "BACKWARD": back}.items():
        monkeypatch.setattr(triton_end, name, dict.fromkeys((torch.float32, torch.bfloat16), own))
    monkeypatch.setattr(columns, "PROGRAMS", 3)
    monkeypatch.setattr(columns, "PARTS", 4)


def model(activation: str, H: int, dropout: float = 0.0, tied: bool = False) -> SequenceModel:
    options = {"activation": activation, "dropout": dropout, "tie_dropout": tied}
    return SequenceModel(ptd.S5(H, 4), n_layers=1, d_input=1, d_output=2, norm="batch", **options)


def draws(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng) for shape in shapes]


def lengths_of(shape: tuple[int, int]) -> torch.Tensor:
    # Not side by side, as a column of a table.
    return torch.tensor([[shape[1], 1], [0, 1], [17, 1]])[: shape[0], 0]


def ends(
    each: SequenceModel, dtype: torch.dtype, shape: tuple[int, int], lengths: torch.Tensor | None
) -> list[list[torch.Tensor]]:
    """Output, moments and gradients by y, x, weight and bias of a block's end, by array code and by the operator."""
    H = each.layer.d_model
    wide = 2 * H if each.activation == "full_glu" else H
    y, x, upstream, weight, bias = draws(0, *[(*shape, H)] * 3, (wide, H), (wide,))
    results = []
    for run in (plain_end, fused_end):
        leaves = [y.to(dtype), x.to(dtype), weight / H**0.5, bias]
        leaves = [v.clone().requires_grad_() for v in leaves]
        training = Training(Dropout(torch.tensor(12345)))
        out, found = run(each, training, leaves, lengths)
        grads = torch.autograd.grad(out, leaves, upstream.to(dtype))
        results.append([out.detach(), *found, *grads])
    return results


def plain_end(each, training, leaves, lengths):
    y, x, weight, bias = leaves
    H = y.shape[-1]
    named = {"value.weight": weight[:-H], "value.bias": bias[:-H], "gate.weight": weight[-H:], "gate.bias": bias[-H:]}
    out = each.finish(named, y, x, training)
    return out, core.moments(out.detach().float(), lengths)


def fused_end(each, training, leaves, lengths):
    passes = fused.Passes(each, training.dropout, None, lengths)
    out = passes.of({"norm", "gate", "end"})["end"](*leaves)
    return out, passes.found


CASES = [
    (model("half_glu2", 64), EVEN),
    (model("half_glu1", 128, 0.3), EVEN),
    (model("half_glu2", 192, 0.3, tied=True), EVEN),
    (model("half_glu2", 64, 0.3), ODD),
    (model("half_glu1", 64, 0.3, tied=True), ODD),
    (model("full_glu", 128, 0.3, tied=True), EVEN),
    (model("full_glu", 64, 0.3), ODD),
]
NAMED = pytest.mark.parametrize(
    ("each", "shape"), CASES, ids=lambda v: f"{v.activation}-{v.layer.d_model}" if isinstance(v, SequenceModel) else ""
)


@NAMED
@pytest.mark.parametrize("bounded", [False, True], ids=["whole", "lengths"])
def test_end_equals_array_code(each, shape, bounded):
    plain, kernels = ends(each, torch.float32, shape, lengths_of(shape) if bounded else None)
    for expected, found in zip(plain, kernels, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@NAMED
def test_end_in_bfloat16_is_as_near_as_its_rounding(each, shape):
    exact, _ = ends(each, torch.float32, shape, None)
    _, kernels = ends(each, torch.bfloat16, shape, None)
    for expected, found in zip(exact, kernels, strict=True):
        assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


@NAMED
def test_layers_output_may_have_features_first_and_its_gradient_has_then(each, shape):
    H = each.layer.d_model
    wide = 2 * H if each.activation == "full_glu" else H
    y, x, upstream, weight, bias = draws(0, *[(*shape, H)] * 3, (wide, H), (wide,))
    found = []
    for turned in (y, y.movedim(-1, 0).contiguous().movedim(0, -1)):
        leaves = [turned.requires_grad_(), *(v.clone().requires_grad_() for v in (x, weight, bias))]
        out, moments = fused_end(each, Training(Dropout(torch.tensor(12345))), leaves, None)
        found.append([out, moments, *torch.autograd.grad(out, leaves, upstream)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert found[0][2].is_contiguous()
    assert found[1][2].movedim(-1, 0).is_contiguous()


@pytest.mark.parametrize(("L", "first"), [(2**25 - 1, True), (2**25, False)])
def test_features_are_read_first_only_where_32_bits_count_them(L, first):
    y = torch.empty((64, 1, L), device="meta").movedim(0, -1)
    assert end._laid_out(y).is_contiguous() == (not first)
    after = SequenceModel(ptd.S4D(64, 4), 1, 1, 2, norm="layer", prenorm=False)
    assert fused.reads_features_first(after, y, None) == first


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid that is 0 then
def test_gelu_and_its_slope_are_cores_and_its_derivative():
    from ptd_torch.triton import end as triton_end

    y = torch.linspace(-20, 20, 16 * 64).view(1, 16, 64)
    exact = y.double().requires_grad_()
    expected = core.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    options = (None, None, 0.0, False, "half_glu1")
    zero, none = torch.zeros(64), torch.zeros_like(y)
    _, _, found, _ = triton_end.forward(y, none, torch.eye(64), zero, None, *options, moments=False)
    # Without a weight, of dg = 1/2: the gate is open by half everywhere.
    slope_half, _, _ = triton_end.backward(torch.ones_like(y), y, none, torch.zeros(64, 64), zero, *options)
    assert_close(found.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    assert_close(2 * slope_half.double(), slope, rtol=1e-6, atol=2e-6)


def test_nothing_is_read_beyond_the_last_row():
    each = model("half_glu2", 64)
    y, x, weight, bias = draws(0, (1, 17, 64), (1, 17, 64), (64, 64), (64,))
    room_y, room_x = (torch.cat([v, torch.full((1, 31, 64), float("nan"))], dim=1) for v in (y, x))
    training = Training(Dropout(torch.tensor(1)))
    out, found = fused_end(each, training, [room_y[:, :17], room_x[:, :17], weight, bias], None)
    expected, moments = plain_end(each, None, [y, x, weight, bias], None)
    assert_close([out, *found], [expected, *moments], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_operators_pass_torchs_own_checks(turned):
    y, x, weight, bias = (v.requires_grad_() for v in draws(0, (2, 20, 64), (2, 20, 64), (64, 64), (64,)))
    y = y.detach().movedim(-1, 0).contiguous().movedim(0, -1).requires_grad_() if turned else y
    keys, how = (torch.tensor(3), torch.tensor(4)), (0.5, False, "half_glu2")
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(block_end, (y, x, weight, bias, *keys, None, *how, True), test_utils=checks)
    dout, y, g, z, weight, bias = (v.detach() for v in (x, y, x, x, weight, bias))
    torch.library.opcheck(block_end_adjoint, (dout, y, g, z, weight, bias, *keys, *how), test_utils=checks[:2])


def test_no_rows_have_no_moments_to_speak_of_and_no_gradients():
    y, weight, bias = (v.requires_grad_() for v in (torch.zeros(0, 5, 64), torch.ones(64, 64), torch.zeros(64)))
    out, moments, _, _ = block_end(y, y.detach(), weight, bias, None, None, None, 0.0, False, "half_glu2", True)
    assert out.shape == y.shape
    assert torch.equal(moments, torch.zeros(2, 64))
    for grad, leaf in zip(torch.autograd.grad(out.sum(), (y, weight, bias)), (y, weight, bias), strict=True):
        assert torch.equal(grad, torch.zeros_like(leaf))
