"""Classifiers of the S5 family in flax: dense encoder, blocks of layer, gate and norm, pooling, dense decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .. import checks
from ..initialization import Leaves
from ..layers import Layer
from ..model import ACTIVATIONS, STATISTICS, SequenceModel
from .arrays import joined, take, under

#: The dense maps that end a block, by activation, and their names in ptd's models.
GATES = {"gelu": {}, "half_glu1": {"out2": "gate"}, "half_glu2": {"out2": "gate"}}
GATES["full_glu"] = {"out1": "value", "out2": "gate"}
DENSE = {"kernel": "I O", "bias": "O"}

LayerAt = Callable[[str], tuple[Layer, Leaves]]


@dataclass(frozen=True)
class FlaxStack:
    """What the arrays of such a model do not tell.

    Attributes:
        norm_name: how blocks call their norm.
        activation, prenorm, dropout, pooling, norm_momentum: as in SequenceModel.
        batchnorm: batch norm, with statistics under "batch_stats", else layer norm.
        tokens: inputs were one-hot rows; the model takes their numbers.
    """

    norm_name: str
    activation: str
    prenorm: bool
    batchnorm: bool
    dropout: float
    pooling: str
    norm_momentum: float
    tokens: bool

    def __post_init__(self) -> None:
        checks.choice("activation", self.activation, ACTIVATIONS)
        for name in ("prenorm", "batchnorm", "tokens"):
            checks.boolean(name, getattr(self, name))

    def read(self, arrays: Mapping[str, Any], prefix: str, layer_at: LayerAt) -> tuple[SequenceModel, Leaves]:
        """The model below a prefix, its layers read by layer_at at theirs, and its leaves."""
        pair = bool(under(arrays, joined(prefix, "decoder/layer1")))
        ends = {"encoder": "encoder/encoder", "decoder": "decoder"}
        if pair:
            ends |= {"pair": "decoder/layer1", "decoder": "decoder/layer2"}
        leaves = {
            f"{ours}.{name}": value
            for ours, theirs in ends.items()
            for name, value in _dense(arrays, joined(prefix, theirs)).items()
        }
        layers, encoder = [], joined(prefix, "encoder")
        for i in range(self._n_layers(arrays, encoder)):
            layer, own = layer_at(f"{encoder}/layers_{i}/seq")
            layers.append(layer)
            leaves |= {f"blocks.{i}.layer.{name}": value for name, value in own.items()}
            block = self._block(arrays, f"{encoder}/layers_{i}")
            leaves |= {f"blocks.{i}.{name}": value for name, value in block.items()}
        model = self._model(layers, leaves, pair)
        model.check(leaves)
        return model, leaves

    def _model(self, layers: list[Layer], leaves: Leaves, pair: bool) -> SequenceModel:
        if other := next((layer for layer in layers if layer != layers[0]), None):
            raise checks.fail("prefix", f"layers alike, {layers[0]}", other, "import them one by one")
        return SequenceModel(
            layers[0],
            n_layers=len(layers),
            d_input=leaves["encoder.weight"].shape[1],
            d_output=leaves["decoder.weight"].shape[0],
            encoder="embedding" if self.tokens else "linear",
            norm="batch" if self.batchnorm else "layer",
            prenorm=self.prenorm,
            activation=self.activation,
            dropout=self.dropout,
            tie_dropout=True,  # the originals broadcast masks over time
            pooling=self.pooling,
            norm_momentum=self.norm_momentum,
            norm_epsilon=1e-5 if self.batchnorm else 1e-6,  # flax's own
            pair=pair,
        )

    def _n_layers(self, arrays: Mapping[str, Any], encoder: str) -> int:
        names = {name.partition("/")[0] for name in under(arrays, encoder)} - {"encoder"}
        expected = {f"layers_{i}" for i in range(max(1, len(names)))}
        if names != expected:
            got = ", ".join(sorted(names)) or "none"
            raise checks.fail("prefix", f"{', '.join(sorted(expected))} below {encoder!r}", got, "see ptd import FILE")
        return len(names)

    def _block(self, arrays: Mapping[str, Any], block: str) -> Leaves:
        """The leaves of a block besides its layer's."""
        gates, maps = GATES[self.activation], {name.partition("/")[0] for name in under(arrays, block)}
        if (found := maps - {"seq", self.norm_name}) != gates.keys():
            got = f"{', '.join(sorted(found)) or 'none'} at {block!r}"
            remedy = "gelu has none, half_glu1 and half_glu2 out2, full_glu out1 and out2"
            raise checks.fail("activation", f"{', '.join(gates) or 'no map'} for {self.activation!r}", got, remedy)
        norm = f"{block}/{self.norm_name}"
        leaves = {f"norm.{name}": value for name, value in take(arrays, norm, {"scale": "H", "bias": "H"}).items()}
        statistics = under(arrays, f"batch_stats/{norm}")
        if bool(statistics) != self.batchnorm:
            got = f"{'some' if statistics else 'none'} at 'batch_stats/{norm}'"
            wanted = "batch_stats with batch norm, none with layer norm"
            raise checks.fail("norm", wanted, got, "pass params and batch_stats, or choose the other norm")
        if self.batchnorm:
            moments = take(arrays, f"batch_stats/{norm}", dict.fromkeys(STATISTICS, "H"))
            leaves |= {f"norm.{name}": value for name, value in moments.items()}
        for theirs, ours in gates.items():
            leaves |= {f"{ours}.{name}": value for name, value in _dense(arrays, f"{block}/{theirs}").items()}
        return leaves


def _dense(arrays: Mapping[str, Any], prefix: str) -> dict[str, NDArray]:
    """A flax Dense map, whose kernel is (in, out)."""
    found = take(arrays, prefix, DENSE)
    return {"weight": found["kernel"].T.copy(), "bias": found["bias"]}
