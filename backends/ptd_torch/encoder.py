"""What stands before the blocks, as one pass over their input: a gather of rows for tokens, a sum for few features."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ptd.model import SequenceModel

from .compilation import traced

#: Up to this many input features a sum of columns is compiled into one pass over the output. The library's product
#: with so short rows writes no faster, and bias and dtype are passes of their own.
FEW = 3


def encode(
    model: SequenceModel, params: Mapping[str, Tensor], u: Tensor, activations: str | None, fused: Collection[str]
) -> Tensor:
    """SequenceModel.encode.

    Args:
        model, params, u, activations: as there.
        fused: "embedding" to embed tokens by a kernel, whose gradient adds up in a fixed order.
    """
    weight, bias = params["encoder.weight"], params["encoder.bias"]
    dtype = weight.dtype if activations is None else getattr(torch, activations)
    if "embedding" in fused:
        return embedded(u.reshape(-1), weight.t().contiguous(), bias, dtype).view(*u.shape, len(bias))
    if model.encoder == "linear" and model.d_input <= FEW and traced():
        columns = [u[..., k, None] * weight[:, k] for k in range(model.d_input)]
        return (sum(columns[1:], columns[0]) + bias).to(dtype)
    return model.encode(params, u, activations)


@torch.library.custom_op("ptd::embedded", mutates_args=())
def embedded(tokens: Tensor, rows: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """rows[tokens] + bias, (R, H) of dtype; a token that names no row is embedded as the bias alone.

    Args:
        tokens: (R,), of any integer type.
        rows: (V, H), contiguous.
        bias: (H,).
        dtype: of the result.
    """
    from .triton import embedding as kernels

    return kernels.gathered(tokens.contiguous(), rows, bias, dtype)


@embedded.register_fake
def _(tokens: Tensor, rows: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.new_empty((len(tokens), len(bias)), dtype=dtype)


@torch.library.custom_op("ptd::bucket_sums", mutates_args=())
def bucket_sums(values: Tensor, buckets: Tensor, count: int) -> Tensor:
    """Sums (count, H), float32, of the rows of values (R, H) whose buckets (R,), in 0 ... count - 1, are the same.

    Rows are added in the order of a stable sort by bucket, so that sums repeat bit for bit.
    """
    from .triton import embedding as kernels

    placed, order = torch.sort(buckets, stable=True)
    return kernels.sums(values.contiguous(), placed, order, count)


@bucket_sums.register_fake
def _(values: Tensor, buckets: Tensor, count: int) -> Tensor:
    return values.new_empty((count, values.shape[-1]), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    tokens, rows, _, _ = inputs
    ctx.count = len(rows)
    ctx.save_for_backward(tokens)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
    (tokens,) = ctx.saved_tensors
    V = ctx.count
    # The last bucket is of tokens that name no row. The fewer bits a bucket has, the fewer passes its sort makes.
    narrow = torch.uint8 if V < 256 else torch.int16 if V < 2**15 else torch.int32
    tokens = tokens.to(torch.int64)
    buckets = torch.where((tokens >= 0) & (tokens < V), tokens, V).to(narrow)
    sums = bucket_sums(grad, buckets, V + 1)
    return None, sums[:V], sums.sum(0), None


embedded.register_autograd(_backward, setup_context=_setup_context)
