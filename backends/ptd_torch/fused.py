"""Which parts of a training block run as kernels on a GPU rather than as array code, and how a block takes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ptd import checks
from ptd.layers import S4D, S5
from ptd.model import NORM_EPSILON, SequenceModel

from .dropout import Dropout
from .end import MOST_FIRST, block_end
from .gate import gated_sum
from .layer_norm import layer_normalized
from .norm import Normed, batch_normalized, column_moments
from .scan import kernel_path

#: What may run as kernels: S5's chunked form as one operator, its chunks of one sample as another in place of that, the
#: recurrence of either tile by tile, the batch norm's sums and moments, layer norm, the gated sum, in place of that all
#: from the layer's output on, of half_glu or of full_glu; before the blocks, the embedding of tokens.
PARTS = ("chunks", "states", "tiles", "norm", "layer_norm", "gate", "end", "full_end", "embedding")

#: The widest H up to which each part is faster than the array code as compiled, by the dtype of activations. This is
#: the one place that decides; 0 turns a part off. Measured on an H200, tiles and embedding only together with the rest,
#: norm by itself only for ListOps, layer_norm and full_end together and in bfloat16 only for Image's S4-PTD.
WIDEST = {
    torch.float32: dict.fromkeys(PARTS, 512) | {"end": 256, "full_end": 0, "layer_norm": 0},
    torch.bfloat16: dict.fromkeys(PARTS, 512) | {"end": 256, "full_end": 128, "layer_norm": 128},
}

#: Widths are a multiple of this: tiles are not masked over features.
TILE = 64


def _is_normed_by(norm: str, model: SequenceModel) -> bool:
    """Whether a model has a norm, and the epsilon that kernels are written for."""
    return model.norm == norm and model.norm_epsilon == NORM_EPSILON


#: What each part needs of a model.
NEEDS: dict[str, tuple[str, Callable[[SequenceModel], bool]]] = {
    **dict.fromkeys(("chunks", "states", "tiles"), ("an S5 layer", lambda model: isinstance(model.layer, S5))),
    "norm": (f"a batch norm with norm_epsilon={NORM_EPSILON}", lambda model: _is_normed_by("batch", model)),
    "layer_norm": (f"a layer norm with norm_epsilon={NORM_EPSILON}", lambda model: _is_normed_by("layer", model)),
    "gate": ("residual blocks that end in a gate", lambda model: model.residual and model.activation != "gelu"),
    "end": (
        "residual blocks that end in half_glu1 or half_glu2 after gelu='tanh'",
        lambda model: model.residual and model.gelu == "tanh" and model.activation in ("half_glu1", "half_glu2"),
    ),
    "full_end": (
        "residual blocks that end in full_glu after gelu='tanh'",
        lambda model: model.residual and model.gelu == "tanh" and model.activation == "full_glu",
    ),
    "embedding": ("encoder='embedding'", lambda model: model.encoder == "embedding"),
}


def parts(model: SequenceModel, x: Tensor, wanted: Collection[str] | None = None) -> frozenset[str]:
    """The parts that run as kernels in model.

    Args:
        model: the model.
        x: a tensor on the device and of the dtype of activations.
        wanted: of PARTS, those to run; None for those that can run and that WIDEST says are faster.

    Raises:
        ValueError: a name is not in PARTS, or its part cannot run here.
    """
    if wanted is None:
        widest = WIDEST.get(x.dtype, {})
        faster = (name for name in widest if model.layer.d_model <= widest[name])
        return frozenset(name for name in faster if lacking(name, model, x) is None)
    for name in wanted:
        checks.choice("fused", name, PARTS)
        need = lacking(name, model, x)
        if name == "tiles" and not {"chunks", "states"} & {*wanted}:
            need = need or "'chunks' or 'states' beside it"
        if need is not None:
            remedy = "leave it out, or pass None for the parts that run faster as kernels"
            raise checks.fail("fused", "parts that can run here", f"{name!r}, which needs {need}", remedy)
    return frozenset(wanted)


def lacking(name: str, model: SequenceModel, x: Tensor) -> str | None:
    """What keeps a part from running as a kernel: the first of its needs that is not met, or None."""
    if kernel_path(x.device) == "torch":
        return f"a GPU with Triton, not {x.device.type}"
    if x.dtype not in WIDEST:
        return f"float32 or bfloat16 activations, not {checks.name_of(x.dtype)}"
    if model.layer.d_model % TILE:
        return f"d_model a multiple of {TILE}, not {model.layer.d_model}"
    need, met = NEEDS[name]
    return None if met(model) else need


def gelu(y: Tensor) -> Tensor:
    """ptd.model.gelu, with 0.5 (1 + tanh(v)) as sigmoid(2 v): a pass is bound by the instructions of a tanh."""
    return y * torch.sigmoid(math.sqrt(8.0 / math.pi) * (y + 0.044715 * y * y * y))


def reads_features_first(model: SequenceModel, x: Tensor, lengths: Tensor | None) -> bool:
    """Whether a block's layer reads its input x itself, and runs over chunks, which read features first."""
    over_chunks = isinstance(model.layer, S4D) and lengths is None
    return over_chunks and not model.prenorm and x.numel() < MOST_FIRST


def ahead_of(model: SequenceModel, x: Tensor, lengths: Tensor | None, fused: Collection[str]) -> Tensor | None:
    """What a block on x begins with, as Passes.ahead, where no block before has found it."""
    if model.prenorm:
        return column_moments(x.detach(), lengths) if "norm" in fused else None
    turned = "layer_norm" in fused and reads_features_first(model, x, lengths)
    return x.movedim(-1, 0).contiguous() if turned else None


class Passes:
    """What SequenceModel.block takes for one block: norms, gated_sum and end, as kernels; gelu by tanh in any case.

    Args:
        model: the model.
        dropout: of this pass.
        known: what the block before has found, its ahead.
        lengths: valid lengths or None.

    After a run, normed is what the batch norm was last taken of, and found the moments of the residual sum where the
    norm and what ends in that sum run as kernels, else None: without prenorm this block's norm takes them.
    """

    def __init__(self, model: SequenceModel, dropout: Dropout, known: Tensor | None, lengths: Tensor | None):
        self.found: Tensor | None = None
        self.normed: Normed | None = None
        self._turned: Tensor | None = None
        self._model, self._dropout, self._known, self._lengths = model, dropout, known, lengths

    @property
    def ahead(self) -> Tensor | None:
        """What the next block begins with, None if nothing: the moments of its input, where its norm comes first and
        runs as kernels; else that input with features first in memory, where a layer norm has written it so."""
        return self.found if self._model.prenorm else self._turned

    def layer_input(self, u: Tensor) -> Tensor:
        """The layer's input, a block's own where no norm stands before it, from where the block before has put it."""
        return u if self._model.prenorm or self._known is None else self._known.movedim(0, -1)

    def of(self, fused: Collection[str]) -> dict[str, Callable]:
        """The named arguments of block for these parts."""
        named: dict[str, Callable] = {"own_gelu": gelu}
        if "norm" in fused:
            named["batch_norm"] = self.batch_norm
        if "layer_norm" in fused:
            named["layer_norm"] = self.layer_norm
        if "gate" in fused:
            named["gated_sum"] = functools.partial(self.gated_sum, moments="norm" in fused)
        if not {"end", "full_end"}.isdisjoint(fused):
            named["end"] = functools.partial(self.end, moments="norm" in fused)
        return named

    def batch_norm(
        self, x: Tensor, lengths: Tensor | None, scale: Tensor, bias: Tensor, near: Tensor, epsilon: float
    ) -> tuple[Tensor, ...]:
        """ptd.model.batch_norm from the moments that x came with, else from those of a pass over x; none needs near.

        NEEDS has seen to it that epsilon is that of the kernels.
        """
        known = self._known if self._model.prenorm else self.found
        known = column_moments(x.detach(), lengths) if known is None else known
        self.normed = Normed(x, scale, bias, known, lengths)
        return batch_normalized(*self.normed), known[0], known[1]

    def layer_norm(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """See SequenceModel.block; for the next block's layer with features first as well, if it runs over chunks."""
        wanted = reads_features_first(self._model, x, self._lengths)
        y, turned, _ = layer_normalized(x, scale, bias, wanted)
        self._turned = turned if wanted else None
        return y

    def gated_sum(self, keep: Tensor | None, z: Tensor, bias: Tensor, x: Tensor, *, moments: bool) -> Tensor:
        """See SequenceModel.block; moments as in ptd_torch.gate.gated_sum."""
        model = self._model
        key = self._dropout.key(x.shape, model.tie_dropout) if model.dropout else None
        out, found = gated_sum(keep, z, bias, x, key, self._lengths, model.dropout, model.tie_dropout, moments)
        if moments:
            self.found = found.detach()
        return out

    def end(self, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, moments: bool) -> Tensor:
        """See SequenceModel.block; moments as in ptd_torch.end.block_end."""
        model = self._model
        key = functools.partial(self._dropout.key, y.shape, model.tie_dropout)
        keys = [key() if model.dropout else None for _ in ("gelu", "gate")]
        how = (self._lengths, model.dropout, model.tie_dropout, model.activation, moments)
        out, found, _, _ = block_end(y, x, weight.to(y.dtype), bias, *keys, *how)
        if moments:
            self.found = found.detach()
        return out
