"""The fused norm and end of a block against core's array code, through Triton's interpreter."""

from __future__ import annotations

import dataclasses

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel, Training, batch_norm, moments
from ptd_torch import backend, fused, training
from ptd_torch.dropout import Dropout
from ptd_torch.gate import gated_sum, gated_sum_adjoint
from ptd_torch.kernels import KERNELS
from ptd_torch.norm import batch_normalized, column_moments

pytestmark = interpreter.needed

B, L = 3, 45
# Lengths that do not lie side by side, as a column of a table.
COLUMN = torch.tensor([[45, 1], [0, 1], [17, 1]])[:, 0]
LENGTHS = pytest.mark.parametrize("lengths", [None, COLUMN], ids=["whole", "lengths"])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Each program walks through several tiles, as on a device."""
    from ptd_torch.triton import columns

    monkeypatch.setattr(columns, "PROGRAMS", 3)
    monkeypatch.setattr(columns, "TILE", 1024)


def model(H: int = 64, **options: object) -> SequenceModel:
    base = {"norm": "batch", "activation": "half_glu1", "n_layers": 1, "d_input": 1, "d_output": 2}
    return SequenceModel(**({"layer": ptd.S5(H, 4)} | base | options))


def draws(H: int, seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=rng) for shape in shapes]


def ends(each: SequenceModel, dtype: torch.dtype, lengths: torch.Tensor | None) -> list[list[torch.Tensor]]:
    """Output, moments and gradients of a block's end, by array code and by the operator."""
    H = each.layer.d_model
    shapes = {name: shape for name, shape in each.shapes().items() if "gate" in name or "value" in name}
    y, x, upstream, *weights = draws(H, 0, *[(B, L, H)] * 3, *shapes.values())
    results = []
    for how in (set(), {"gate"}):
        leaves = [v.clone().requires_grad_() for v in (y.to(dtype), x.to(dtype), *(w / H**0.5 for w in weights))]
        named = dict(zip((name.removeprefix("blocks.0.") for name in shapes), leaves[2:], strict=True))
        training = Training(Dropout(torch.tensor(12345)))
        passes = fused.Passes(each, training.dropout, None, lengths)
        out = each.finish(named, *leaves[:2], training, passes.of({"norm", *how}).get("gated_sum"))
        found = passes.found if how else moments(out.detach().float(), lengths)
        results.append([out.detach(), *found, *torch.autograd.grad(out, leaves, upstream.to(dtype))])
    return results


#: In chunks over time, of which the interpreter takes long.
PER_FEATURE = {"layer": ptd.S4D(64, 4), "norm": "layer", "activation": "full_glu", "prenorm": False}
CASES = [
    model(),
    model(activation="half_glu2"),
    model(192, dropout=0.3),
    model(192, dropout=0.3, tie_dropout=True, activation="half_glu2"),
    model(128, dropout=0.1, activation="full_glu"),
    model(512),
]


@pytest.mark.parametrize("each", CASES, ids=lambda m: f"{m.activation}-{m.layer.d_model}-{m.dropout}-{m.tie_dropout}")
@LENGTHS
def test_fused_end_equals_array_code(each, lengths):
    plain, kernels = ends(each, torch.float32, lengths)
    for expected, found in zip(plain, kernels, strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("each", CASES[:3], ids=lambda m: f"{m.activation}-{m.layer.d_model}")
def test_fused_end_in_bfloat16_is_as_near_as_its_rounding(each):
    exact, _ = ends(each, torch.float32, None)
    _, kernels = ends(each, torch.bfloat16, None)
    for expected, found in zip(exact, kernels, strict=True):
        assert_close(found.float(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize("joined", [False, True], ids=["keep apart", "keep in z"])
def test_operators_pass_torchs_own_checks(joined):
    width = 128 if joined else 64
    keep, x, z, bias = (v.requires_grad_() for v in draws(64, 0, *[(2, 20, 64)] * 2, (2, 20, width), (width,)))
    given = (None if joined else keep, z, bias)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        gated_sum,
        (*given, x, torch.tensor(3), None, 0.5, False, True),
        test_utils=(*checks, "test_autograd_registration", "test_aot_dispatch_static"),
    )
    given = (x, *given, torch.tensor(3), 0.5, False)
    torch.library.opcheck(
        gated_sum_adjoint, [v.detach() if torch.is_tensor(v) else v for v in given], test_utils=checks
    )


def test_bias_of_keep_is_not_rounded_before_the_product():
    """In bfloat16 1 + 2^-9 would be 1."""
    one, gate = torch.ones(1, 1, 64).bfloat16(), torch.zeros(1, 1, 64).bfloat16()
    z, bias = torch.cat([one, gate], dim=-1), torch.cat([torch.full((64,), 2.0**-9), torch.zeros(64)])
    out, _ = gated_sum(None, z, bias, -one / 2, None, None, 0.0, False, False)
    assert torch.equal(out.float(), torch.full((1, 1, 64), 2.0**-10))


@LENGTHS
def test_moments_far_from_zero_do_not_cancel(lengths):
    (x,) = draws(64, 0, (B, L, 64))
    found = column_moments(x + 3000.0, lengths)
    exact = moments((x + 3000.0).double(), lengths)
    # A running mean is rounded to its own size: eps |mean| / std. Sums of squares would lose eps (|mean| / std)^2 = 1.
    assert_close(found, torch.stack(exact).float(), rtol=3000 * 1.2e-7, atol=0.0)


@LENGTHS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_of_known_moments_equals_batch_norm(lengths, dtype):
    x, upstream, scale, bias = draws(128, 0, (B, L, 128), (B, L, 128), (128,), (128,))
    x, upstream = (x + 2).to(dtype), upstream.to(dtype)

    def run(norm, widen):
        leaves = [v.clone().to(widen or v.dtype).requires_grad_() for v in (x, scale, bias)]
        y = norm(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]

    known = column_moments(x, lengths)
    kernels = run(lambda x, scale, bias: batch_normalized(x, scale, bias, known, lengths), None)
    exact = run(lambda x, scale, bias: batch_norm(x, lengths, scale, bias)[0], torch.float64)
    rounding = {torch.float32: 3e-6, torch.bfloat16: 2**-8}[dtype]
    for expected, found in zip(exact, kernels, strict=True):
        assert_close(found.double(), expected, rtol=0, atol=rounding * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of a sigmoid that is 0 then
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        pytest.param(None, {}, id="all"),
        *(pytest.param((name,), {}, id=name) for name in ("norm", "gate", "end")),
        pytest.param(("norm", "gate"), {"prenorm": False, "activation": "full_glu"}, id="after"),
        pytest.param(("norm", "full_end"), {"prenorm": False, "activation": "full_glu"}, id="full_end"),
        pytest.param(("layer_norm",), {"norm": "layer", "activation": "full_glu"}, id="layer_norm"),
        pytest.param(("layer_norm", "full_end"), PER_FEATURE, id="layer_norm, full_end"),
    ],
)
def test_learner_trains_as_without_kernels(names, options, compiled, monkeypatch):
    each = model(n_layers=2, dropout=0.2, norm_momentum=0.5, **options)
    params = each.initialize(np.random.default_rng(0))
    L = 16 if "layer" in options else 12
    u = np.random.default_rng(1).standard_normal((3, L, 1)).astype(np.float32)
    lengths = None if "layer" in options else np.array([12, 5, 1])
    optimizer = ptd.optimization.Optimizer(lr=1e-3, ssm_lr=1e-3, weight_decay=0.0, total_steps=10)
    interpreter.matrices_by_array_code(monkeypatch)
    # Without kernels is also without that of the chunks, of which the interpreter takes long.
    without = dataclasses.replace(KERNELS["cpu"], per_feature_chunks=None)
    torch.compiler.reset()  # compilations are counted by code, which all learners of this process share
    monkeypatch.setattr(training, "compile_once", lambda f, **_: torch.compile(f, backend="aot_eager", fullgraph=True))

    def train(names: tuple[str, ...] | None, compiled: bool) -> dict[str, np.ndarray]:
        learner = backend.learner(each, params, optimizer, 0, compiled=compiled, fused=names)
        assert learner.fused == set(
            {*fused.PARTS} - {"embedding", "full_end", "layer_norm"} if names is None else names
        )
        learner.step(u, np.array([0, 1, 1]), lengths)
        return learner.snapshot()

    kernels = train(names, compiled)
    monkeypatch.setitem(KERNELS, "cpu", without)
    plain = train((), False)
    for name, expected in plain.items():
        if name.startswith(("moments.", "leaves.")):
            assert_close(torch.tensor(kernels[name]), torch.tensor(expected), rtol=2e-3, atol=2e-5, msg=name)
