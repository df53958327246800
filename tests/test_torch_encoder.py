"""Embedding and tied masks of the torch backend, against array code; as kernels through Triton's interpreter."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ptd
from ptd.model import SequenceModel
from ptd_torch.dropout import Dropout, tied_mask
from ptd_torch.encoder import bucket_sums, embedded, encode

kernels = interpreter.needed


def model(H: int = 64, **options: object) -> SequenceModel:
    return SequenceModel(ptd.S5(H, 4), **({"n_layers": 1, "d_input": 2, "d_output": 3} | options))


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


# --- masks ----------------------------------------------------------------------------------------------------


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
