"""The forward pass of a SequenceModel in training and evaluation, in parts that are compiled once each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from ptd.contract import Backend
from ptd.layers import Layer
from ptd.model import SequenceModel, Training
from ptd.whole_sets import check_targets

from .dropout import Dropout
from .encoder import encode
from .fused import Passes, ahead_of
from .norm import batch_norm_over_ranks
from .ranks import Part


class Program:
    """Outputs and losses of a model: one block is compiled for all, and what stands before and after them.

    Args:
        backend, model: whose layers run, in which model.
        activations: see ptd_torch.training.TorchLearner.
        fused: the parts that run as kernels; see ptd_torch.fused.parts.
        compiled: compiles a function, or returns it as it is.
    """

    def __init__(
        self,
        backend: Backend,
        model: SequenceModel,
        activations: str | None,
        fused: Collection[str],
        compiled: Callable[[Callable], Callable],
    ):
        self._backend, self._model, self._activations, self._fused = backend, model, activations, fused
        self._encoder, self._block = compiled(self._encoder_of), compiled(self._block_of)
        self._ahead, self._decoder = compiled(self._ahead_of), compiled(self._decoder_of)

    def __call__(
        self,
        leaves: dict[str, Tensor],
        inputs: Tensor,
        keys: Tensor | None,
        targets: Tensor | None,
        part: Part | None,
        **call: Any,
    ) -> Any:
        """Outputs, or with targets their loss; with keys (n_layers, ...), one of each block, those of training.

        Inputs of training are a part of the batch, and the statistics of batch norm come too; call is that of
        SequenceModel.apply. What a block finds goes on to the next, as Passes.ahead.
        """
        known: Tensor | None = None
        outer = {name: leaf for name, leaf in leaves.items() if not name.startswith("blocks.")}

        def run_block(model: SequenceModel, i: int, leaves: dict, x: Tensor, **call: Any) -> Any:
            nonlocal known
            key = None if keys is None or not model.dropout else keys[i, 0]
            if known is None and part is not None:  # not within a block, which would be compiled twice
                known = self._ahead(x, call["lengths"])
            x, statistics, known = self._block(leaves, x, known, call["lengths"], call["noise"], key, part)
            return x, statistics

        def run_decoder(model: SequenceModel, params: dict, x: Tensor, lengths: Any, training: Any) -> Any:
            moments = known if model.final_norm and model.norm == "batch" else None
            return self._decoder(outer, x, moments, lengths, targets, part)

        return self._backend.apply_model(
            self._model,
            leaves,
            inputs,
            activations=self._activations,
            run_block=run_block,
            run_encoder=lambda model, params, u, activations: self._encoder(outer, u),
            run_decoder=run_decoder,
            **call,
        )

    def _encoder_of(self, leaves: dict, u: Tensor) -> Tensor:
        return encode(self._model, _with_gradients_in_order(leaves), u, self._activations, self._fused)

    def _ahead_of(self, x: Tensor, lengths: Tensor | None) -> Tensor | None:
        return ahead_of(self._model, x, lengths, self._fused)

    def _decoder_of(
        self,
        leaves: dict,
        x: Tensor,
        known: Tensor | None,
        lengths: Tensor | None,
        targets: Tensor | None,
        part: Part | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs, or with targets their loss, and updated statistics; known is what the last block has found."""
        training, batch_norm = None, None
        if part is not None and self._model.final_norm:
            dropout = Dropout(None)  # nothing is dropped after the blocks
            own = self._kernels(Passes(self._model, dropout, known, lengths), part)
            training, batch_norm = Training(dropout), own.get("batch_norm")
        y, statistics = self._model.decode(leaves, x, lengths, training, batch_norm)
        if targets is None:
            return y, statistics
        are_classes = not targets.is_floating_point()
        check_targets(targets.shape, are_classes, y.shape)
        if are_classes:
            return functional.cross_entropy(y.reshape(-1, y.shape[-1]), targets.long().reshape(-1)), statistics
        return ((y - targets) ** 2).mean(), statistics

    def _block_of(
        self,
        leaves: dict,
        x: Tensor,
        known: Tensor | None,
        lengths: Tensor | None,
        noise: Tensor | None,
        key: Tensor | None,
        part: Part | None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """A block, from what the block before has found (Passes.ahead) to what this one has; without a part of a batch
        that of evaluation."""
        leaves = _with_gradients_in_order(leaves)
        call: dict[str, Any] = {"lengths": lengths, "noise": noise}
        if part is None:
            return *self._model.block(0, leaves, x, training=None, run=self._backend.apply, **call), None
        dropout = Dropout(key, part.first)
        passes = Passes(self._model, dropout, known, lengths)

        def run(layer: Layer, params: dict, u: Tensor, **call: Any) -> Any:
            own = passes.normed if noise is None else None
            u = passes.layer_input(u) if noise is None else u
            return self._backend.apply(layer, params, u, fused=self._fused, normed=own, **call)

        call["run"] = run
        named = self._kernels(passes, part)
        x, statistics = self._model.block(0, leaves, x, training=Training(dropout), **call, **named)
        return x, statistics, passes.ahead

    def _kernels(self, passes: Passes, part: Part) -> dict[str, Callable]:
        """What a block takes in place of array code."""
        named = passes.of(self._fused)
        if part.length < part.all and "norm" not in self._fused:
            named["batch_norm"] = batch_norm_over_ranks
        return named


def _with_gradients_in_order(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same leaves; a gradient that comes transposed, as B's does, is laid out like its leaf by the compiler."""
    return {name: leaf.reshape(-1).view(leaf.shape) if leaf.ndim > 1 else leaf for name, leaf in leaves.items()}
