"""What surrounds the blocks in a training step of the torch backend: encoder, keys, masks, update, decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel
from ptd_torch import backend, training
from ptd_torch.dropout import Dropout, derived, tied_mask
from ptd_torch.encoder import bucket_sums, embedded, encode
from ptd_torch.scan import kernel_path
from ptd_torch.training import TorchLearner

be = backend.on("cpu")
kernels = pytest.mark.skipif(
    kernel_path(torch.device("cpu")) == "torch", reason="needs TRITON_INTERPRET=1 and Triton: nox -s triton-interpreter"
)
OPTIMIZER = ptd.Optimizer(lr=1e-2, ssm_lr=1e-3, weight_decay=0.1, total_steps=9, warmup_steps=2)


def model(H: int = 64, **options: object) -> SequenceModel:
    base = {"norm": "batch", "activation": "half_glu2", "n_layers": 2, "d_input": 2, "d_output": 3}
    return SequenceModel(ptd.S5(H, 4), **(base | options))


def learner(each: SequenceModel, **options: object) -> TorchLearner:
    return TorchLearner(be, each, each.initialize(np.random.default_rng(0)), OPTIMIZER, 5, **options)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- encoder ---------------------------------------------------------------------------------------------------


def encoded(run, each: SequenceModel, u: torch.Tensor) -> list[torch.Tensor]:
    """The first block's input, and the gradients by weight and bias."""
    H = each.layer.d_model
    leaves = {"encoder.weight": drawn(H, each.d_input), "encoder.bias": drawn(H, seed=1)}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    x = run(leaves, u)
    upstream = drawn(*x.shape, seed=2).to(x.dtype)
    return [x.detach(), *torch.autograd.grad(x, list(leaves.values()), upstream)]


@kernels
@pytest.mark.parametrize(
    ("H", "V", "dtype", "activations"),
    [(64, 5, torch.uint8, None), (64, 5, torch.int64, "bfloat16"), (192, 9, torch.int32, None)],
)
def test_embedding_by_kernels_equals_array_code(H, V, activations, dtype):
    each = model(H, encoder="embedding", d_input=V)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, V, (3, 67))).to(dtype)
    x, dw, db = encoded(lambda leaves, u: encode(each, leaves, u, activations, {"embedding"}), each, tokens)
    expected, *grads = encoded(lambda leaves, u: each.encode(leaves, u, activations), each, tokens)
    # Triton's interpreter cuts bits off where it narrows; a device rounds.
    assert_close(x, expected, rtol=0 if activations is None else 2**-7, atol=0)
    for found, by_product in zip((dw, db), grads, strict=True):
        assert_close(found, by_product, rtol=1e-5, atol=1e-5 * float(by_product.abs().max()))


@kernels
def test_token_that_names_no_row_is_the_bias_alone():
    tokens, rows, bias = torch.tensor([2, -1, 3, 0, 255]), drawn(3, 64).requires_grad_(), drawn(64).requires_grad_()
    x = embedded(tokens, rows, bias, torch.float32)
    assert_close(x, torch.stack([rows[2] + bias, bias, bias, rows[0] + bias, bias]), rtol=0, atol=0)
    drows, dbias = torch.autograd.grad(x, [rows, bias], torch.ones_like(x))
    assert drows[:, 0].tolist() == [1, 0, 1]
    assert dbias[0] == 5


@kernels
@pytest.mark.parametrize(
    "buckets",
    [[3] * 200, [0] * 64 + [9] * 64, list(range(10)), [5] * 63 + [6] + [7] * 70, [9], [1, 0] * 100, []],
    ids=["one", "ends", "each", "across", "single", "mixed", "none"],
)
def test_sums_are_of_the_rows_of_each_bucket(buckets):
    order = torch.randperm(len(buckets), generator=torch.Generator().manual_seed(0))
    buckets = torch.tensor(buckets, dtype=torch.uint8)[order]
    values = torch.arange(len(buckets) * 64, dtype=torch.float32).view(-1, 64)  # whole numbers: sums are exact
    expected = torch.zeros(10, 64).index_add(0, buckets.int(), values)
    assert torch.equal(bucket_sums(values, buckets, 10), expected)


@kernels
def test_embedding_passes_torchs_own_checks():
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    rows = drawn(5, 64).requires_grad_()
    arguments = (torch.tensor([1, 4]), rows, drawn(64), torch.bfloat16)
    torch.library.opcheck(embedded, arguments, test_utils=checks)
    torch.library.opcheck(bucket_sums, (drawn(2, 64), torch.tensor([1, 4]), 5), test_utils=checks)


@pytest.mark.parametrize("d_input", [1, 3])
@pytest.mark.parametrize("activations", [None, "bfloat16"])
def test_few_features_compiled_equal_array_code(d_input, activations, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    each, u = model(d_input=d_input), drawn(3, 67, d_input)
    found = encoded(lambda leaves, u: encode(each, leaves, u, activations, ()), each, u)
    expected = encoded(lambda leaves, u: each.encode(leaves, u, activations), each, u)
    rounding = 1e-6 if activations is None else 2**-8
    for a, b, eps in zip(found, expected, (rounding, 1e-6, 1e-6), strict=True):
        assert_close(a.float(), b.float(), rtol=0, atol=eps * float(b.abs().max()))


# --- keys and masks --------------------------------------------------------------------------------------------


def test_keys_of_blocks_are_those_derived_one_by_one():
    _, keys = learner(model(dropout=0.1, n_layers=3))._clock_of(torch.tensor(7))
    key = derived(derived(torch.tensor(7), 0), 5)
    assert keys[:, 0].tolist() == [int(derived(key, (i + 1) * 0x27D4EB2F)) for i in range(3)]
    assert keys.stride() == (4, 1)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_tied_mask_keeps_where_the_hash_of_its_place_reaches_the_rate(rate):
    key = torch.tensor(-123456789, dtype=torch.int32)
    x = (np.arange(3 * 64) - 123456789).astype(np.uint32)
    for factor in (0x85EBCA6B, 0xC2B2AE35):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(factor)
    expected = (x ^ (x >> np.uint32(16))) >= np.uint32(rate * 2**32)
    assert np.array_equal(tied_mask(key, [3, 1, 64], rate).numpy(), expected.reshape(3, 1, 64))


def test_tied_dropout_is_the_untied_one_of_a_single_sample():
    x, key = drawn(3, 1, 64), torch.tensor(12345)
    assert torch.equal(Dropout(key)(x, 0.3, True), Dropout(key)(x, 0.3, False))


def test_model_without_dropout_asks_for_no_key(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Dropout, "key", refuse)
    u, targets = np.ones((2, 7, 2), np.float32), np.array([0, 2])
    assert np.isfinite(float(learner(model()).step(u, targets)))
    with pytest.raises(AssertionError):
        learner(model(dropout=0.1)).step(u, targets)


# --- update ----------------------------------------------------------------------------------------------------


def test_update_is_adamw_with_a_count_for_each_leaf_bit_for_bit():
    each = learner(model())
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in each._trained().items()}
    groups = [
        {"params": [leaves[name] for name in names], "weight_decay": group.weight_decay, "group": group}
        for group, names in each._groups.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=torch.tensor(0.0), fused=True)
    for step in range(3):
        grads = {name: drawn(*leaf.shape, seed=step) for name, leaf in leaves.items()}
        share, _ = each._clock(each._steps)
        for group in adamw.param_groups:
            group["lr"] = share * group["group"].lr
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        adamw.step()
        with torch.no_grad():
            each._update(grads, share)
    for name, leaf in leaves.items():
        assert torch.equal(each._leaves[name], leaf), name
        assert torch.equal(each._squares[name], adamw.state[leaf]["exp_avg_sq"]), name
    assert each._steps == 3


# --- the whole -------------------------------------------------------------------------------------------------

TOKENS = {"encoder": "embedding", "d_input": 7}


def compiled_but_for_blocks(function):
    """Blocks are compiled in tests of their own, and take longest."""
    if function.__name__ == "_block_of":
        return function
    return torch.compile(function, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch 2.13's compiler of its own
@pytest.mark.parametrize(
    "options", [{"dropout": 0.3, "tie_dropout": True}, TOKENS | {"pair": True}], ids=["features", "pairs of tokens"]
)
def test_learner_with_compiled_ends_trains_and_evaluates_as_the_plain_one(options, monkeypatch):
    monkeypatch.setattr(training, "compile_once", compiled_but_for_blocks)
    each, rng = model(**options), np.random.default_rng(0)
    shape = (4, 2, 9) if each.pair else (4, 9)
    u = rng.integers(0, 7, shape) if each.encoder == "embedding" else rng.random((*shape, each.d_input), np.float32)
    lengths = rng.integers(1, 9, shape[:-1])
    results = []
    for compiled in (False, True):
        one = learner(each, compiled=compiled)
        losses = [float(one.step(u, np.array([0, 1, 2, 0]), lengths)) for _ in range(2)]
        results.append([np.array(losses), one.outputs(u, lengths), *one.parameters().values()])
    for plain, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, plain, rtol=2e-3, atol=1e-4)
