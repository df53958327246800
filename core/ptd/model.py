"""SequenceModel: layers stacked into a classifier or regressor, described once for every backend.

    encoder -> n_layers x [norm -> layer -> gated activation -> dropout, + residual] [-> norm] -> pooling [-> pair]
    -> decoder

The description and its forward pass are array code like the layers'; a backend builds its framework's module from the
description and may run its own layers inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from . import checks, sequences
from .arrays import Array, arange, astype, erf, linear, namespace
from .initialization import Leaves, initialize
from .inputs import Input
from .layers import Layer

Parameters = Mapping[str, Array]

ACTIVATIONS = ("gelu", "full_glu", "half_glu1", "half_glu2")
NORM_EPSILON = 1e-5
#: Vocabularies up to here are embedded by a product with one-hot rows: the gradient of a gather adds up in whatever
#: order a GPU happens to, and training would not repeat itself.
SMALL_VOCABULARY = 512


@dataclass(frozen=True)
class Training:
    """What a training pass adds: dropout(x, rate, over_time).

    over_time=True asks for one mask per sequence and feature, tied over time.
    """

    dropout: Callable[[Array, float, bool], Array]


@dataclass(frozen=True)
class SequenceModel:
    """A stack of one kind of layer with encoder, norms, gates, dropout, pooling and decoder.

    Attributes:
        layer: the state-space layer of every block; its d_model is the width H.
        n_layers: number of blocks.
        d_input: input features, or the vocabulary size for encoder="embedding".
        d_output: classes or regression targets.
        encoder: "linear" for real (..., L, d_input), "embedding" for integer tokens (..., L).
        norm: "layer", "batch" (statistics over batch and valid time) or "none".
        prenorm: norm before the layer, else after the residual sum.
        final_norm: one more norm after all blocks, of the same kind, as stacks with prenorm often have.
        residual: add the block's input to its output.
        activation: "gelu"; "full_glu": V g * sigmoid(W g); "half_glu1": g * sigmoid(W g); "half_glu2":
            y * sigmoid(W g), with y the layer's output and g = dropout(gelu(y)).
        gelu: "tanh", or "erf", which is at most 5e-4 away; torch's kernels for the end of a block have the first.
        dropout: rate in [0, 1).
        tie_dropout: one dropout mask over all time steps.
        pooling: "mean" or "last" over valid time, or "none" for an output at every step.
        norm_momentum: share of the old batch-norm statistics that a training step keeps, in [0, 1).
        norm_epsilon: what norms add to variances, > 0; torch's kernels have 1e-5, others run as array code.
        input: how integers (..., L) (d_input 1) or (..., L, d_input) become the real input of encoder="linear";
            None to take real input only.
        pair: inputs come as (..., 2, L): both run through the one stack, and the decoder reads
            gelu(W [x1, x2, x1 - x2, x1 * x2] + b), as the Retrieval task has it.

    >>> from ptd.layers import S5
    >>> SequenceModel(S5(8, 4), n_layers=1, d_input=1, d_output=10).shapes()["decoder.weight"]
    (10, 8)
    """

    layer: Layer
    n_layers: int
    d_input: int
    d_output: int
    encoder: str = "linear"
    norm: str = "layer"
    prenorm: bool = True
    residual: bool = True
    activation: str = "half_glu1"
    dropout: float = 0.0
    tie_dropout: bool = False
    pooling: str = "mean"
    norm_momentum: float = 0.9
    input: Input | None = None
    pair: bool = False
    final_norm: bool = False
    gelu: str = "tanh"
    norm_epsilon: float = NORM_EPSILON

    def __post_init__(self) -> None:
        checks.plain_fields(self)
        for name in ("n_layers", "d_input", "d_output"):
            checks.positive_integer(name, getattr(self, name))
        checks.instance("layer", self.layer, Layer, "a layer, as S5(d_model=64, d_state=64)")
        for name in ("prenorm", "residual", "tie_dropout", "pair", "final_norm"):
            checks.boolean(name, getattr(self, name))
        checks.choice("encoder", self.encoder, ("linear", "embedding"))
        checks.choice("norm", self.norm, ("layer", "batch", "none"))
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("pooling", self.pooling, ("mean", "last", "none"))
        checks.number("dropout", self.dropout, 0, 1, "a rate in [0, 1)")
        checks.number("norm_momentum", self.norm_momentum, 0, 1, "a share in [0, 1)")
        checks.choice("gelu", self.gelu, GELUS)
        checks.positive_number("norm_epsilon", self.norm_epsilon)
        if self.pair and self.pooling == "none":
            raise checks.fail("pooling", "'mean' or 'last' for pairs", "'none'", "a pair has one output")
        if self.final_norm and self.norm == "none":
            raise checks.fail("final_norm", "False for norm='none'", True, "choose norm='layer' or 'batch'")
        if self.input is not None:
            checks.instance("input", self.input, Input, "an Input or None", "pass ptd.Input(scale, shift)")
            self.input.check(self.d_input)

    # --- parameters --------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every leaf, batch-norm statistics included."""
        H = self.layer.d_model
        shapes: dict[str, tuple[int, ...]] = {}
        linear = {"encoder": (H, self.d_input), "decoder": (self.d_output, H)}
        if self.pair:
            linear["pair"] = (H, 4 * H)
        for i in range(self.n_layers):
            block = f"blocks.{i}."
            shapes |= {f"{block}layer.{name}": shape for name, shape in self.layer.shapes().items()}
            shapes |= self._norm_shapes(block)
            if self.activation != "gelu":
                linear[f"{block}gate"] = (H, H)
            if self.activation == "full_glu":
                linear[f"{block}value"] = (H, H)
        if self.final_norm:
            shapes |= self._norm_shapes("")
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        return shapes

    def _norm_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        names = {"none": (), "layer": ("scale", "bias"), "batch": ("scale", "bias", *STATISTICS)}[self.norm]
        return {f"{prefix}norm.{name}": (self.layer.d_model,) for name in names}

    def state_shapes(self, batch: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        """Shape of each block's state."""
        return [self.layer.state_shape(batch)] * self.n_layers

    def check(self, params: Parameters) -> None:
        """Raise ValueError unless params has exactly this model's leaves, real, finite and of the right shapes."""
        checks.leaves("the model", params, self.shapes())

    def initialize(self, rng: Generator, *, weights: str = "normal", **options: Any) -> Leaves:
        """Initial leaves, float64: layers by ptd.initialize with options, linear maps by weights.

        Args:
            rng: of every draw.
            weights: "normal", with variance 1/fan-in and biases of 0; "uniform", as torch.nn begins: weights and biases
                below 1/sqrt(fan-in), an embedding of standard normal rows without a bias.
            options: of the layers' initialisation.
        """
        checks.choice("weights", weights, ("normal", "uniform"))
        leaves: Leaves = {}
        for i in range(self.n_layers):
            layer = initialize(self.layer, rng, **options)
            leaves |= {f"blocks.{i}.layer.{name}": value for name, value in layer.items()}
        shapes = self.shapes()
        for name, shape in shapes.items():
            if name in leaves:
                continue
            map_ = name.rpartition(".")[0]
            if weights == "uniform" and f"{map_}.weight" in shapes:
                leaves[name] = self._uniform(rng, name, shape, shapes[f"{map_}.weight"][1])
            elif name.endswith(".weight"):
                leaves[name] = rng.standard_normal(shape) / math.sqrt(shape[1])
            else:
                leaves[name] = np.ones(shape) if name.endswith((".scale", ".var")) else np.zeros(shape)
        return leaves

    def _uniform(self, rng: Generator, name: str, shape: tuple[int, ...], fan_in: int) -> NDArray[np.float64]:
        if name.startswith("encoder.") and self.encoder == "embedding":
            return rng.standard_normal(shape) if name == "encoder.weight" else np.zeros(shape)
        return rng.uniform(-1, 1, shape) / math.sqrt(fan_in)

    # --- running -----------------------------------------------------------------------------------------------

    def apply(
        self,
        params: Parameters,
        u: Array,
        *,
        lengths: Array | None = None,
        training: Training | None = None,
        layer_noise: Sequence[Array] | None = None,
        activations: str | None = None,
        run: Callable[..., Array] = lambda layer, params, u, **call: layer.apply(params, u, **call),
        run_block: Callable[..., tuple] = lambda model, i, leaves, x, **call: model.block(i, leaves, x, **call),
        run_encoder: Callable[..., Array] = lambda model, params, u, activations: model.encode(params, u, activations),
        run_decoder: Callable[..., tuple] = lambda model, params, x, **call: model.decode(params, x, **call),
    ) -> Any:
        """Outputs of the model on whole sequences.

        Args:
            params: leaves named and shaped as in shapes().
            u: real (..., L, d_input), or integer tokens (..., L), or integers for `input`; with pair (..., 2, L, ...).
            lengths: integer (...), valid lengths, one per sequence.
            training: None to evaluate; else dropout and batch statistics are on. A module makes one, by its mode.
            layer_noise: one array per block, broadcastable to (..., L, H), added to the input of its layer (the
                Fourier-mode robustness test of Yu et al. 2024 sec. 5.2).
            activations: a narrower dtype, by name, for all between encoder and pooling ("bfloat16"); parameters,
                states, statistics and outputs keep theirs. Needs a backend whose kernels accept it.
            run: runs one layer; a backend passes its own.
            run_block: runs one block, as block does.
            run_encoder, run_decoder: run what stands before and after all blocks, as encode and decode do.

        Returns:
            (..., d_output), or (..., L, d_output) without pooling; when training, that and a dict of the updated
            batch-norm statistics (empty for other norms).

        Raises:
            ValueError: a shape or value does not fit; values of tokens and lengths are looked at where Layer.apply
                looks at them. A token that names no row is elsewhere embedded as none, as the framework has it.
        """
        if training is not None:
            remedy = "of a module call train(), then module(u)"
            checks.instance("training", training, Training, "None or a ptd.model.Training", remedy)
        checks.shapes("the model", params, self.shapes())
        u = self._read(params, u)
        lengths = self._lengths(u, lengths)
        self._check_noise(u, layer_noise)
        statistics: dict[str, Array] = {}
        x = run_encoder(self, params, u, activations)
        for i in range(self.n_layers):
            leaves = _Scope(params, f"blocks.{i}.").leaves("")
            noise = None if layer_noise is None else layer_noise[i]
            x, updated = run_block(self, i, leaves, x, lengths=lengths, training=training, noise=noise, run=run)
            statistics |= {f"blocks.{i}.{name}": value for name, value in updated.items()}
        y, updated = run_decoder(self, params, x, lengths=lengths, training=training)
        statistics |= updated
        return (y, statistics) if training is not None else y

    def encode(self, params: Parameters, u: Array, activations: str | None = None) -> Array:
        """The first block's input (..., L, H) from u as its encoder takes it; see apply."""
        x = self._encode(params, u)
        return x if activations is None else namespace(x).astype(x, getattr(namespace(x), activations))

    def decode(
        self,
        params: Parameters,
        x: Array,
        lengths: Array | None,
        training: Training | None = None,
        batch_norm: Callable[..., tuple[Array, Array, Array]] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """The model's outputs from the last block's (..., L, H), and updated statistics of final_norm.

        Normed, pooled, pairs compared, through the decoder. batch_norm as in block.
        """
        statistics: dict[str, Array] = {}
        if self.final_norm:
            x = self._norm(_Scope(params, ""), x, lengths, training, statistics, batch_norm)
        pooled = self._pool(astype(x, params["decoder.weight"]), lengths)
        return _linear(_Scope(params, ""), "decoder", self._join(params, pooled)), statistics

    def block(
        self,
        i: int,
        leaves: Parameters,
        x: Array,
        *,
        lengths: Array | None,
        training: Training | None,
        noise: Array | None,
        run: Callable[..., Array],
        batch_norm: Callable[..., tuple[Array, Array, Array]] | None = None,
        layer_norm: Callable[..., Array] | None = None,
        gated_sum: Callable[..., Array] | None = None,
        own_gelu: Callable[[Array], Array] | None = None,
        end: Callable[..., Array] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Block i on x (..., L, H), its leaves named within the block: its output and updated statistics.

        All blocks are one function of their leaves, which a compiler need see only once.

        Args:
            i: number of the block.
            leaves: its leaves.
            x: its input.
            lengths, training, noise, run: as in apply; noise that of this block.
            batch_norm, own_gelu: in place of the functions batch_norm and gelu; the latter where it is the model's.
            layer_norm: from x, scale and bias, in place of array code.
            gated_sum: in place of array code, from keep, z = W g, its bias and x: x + drop(keep sigmoid(z + bias)). For
                full_glu, whose keep is a product as well, keep is None and comes before the gate in z (..., 2 H) and
                bias (2 H,).
            end: in place of finish, from the layer's output y, x, and the gate's weight (H, H) and bias (H,), for
                full_glu (2 H, H) and (2 H,) as in gated_sum.
        """
        block = _Scope(leaves, "")
        statistics: dict[str, Array] = {}
        norm = functools.partial(
            self._norm, block, lengths=lengths, training=training, statistics=statistics, own=batch_norm
        )
        if layer_norm is not None and self.norm == "layer":
            norm = functools.partial(layer_norm, scale=block["norm.scale"], bias=block["norm.bias"])
        z = norm(x) if self.prenorm else x
        if noise is not None:
            z = z + noise
        z = run(self.layer, block.leaves("layer."), z, lengths=lengths)
        x = self.finish(leaves, z, x, training, gated_sum, own_gelu) if end is None else end(z, x, *self._gate(block))
        return x if self.prenorm else norm(x), statistics

    def finish(
        self,
        leaves: Parameters,
        y: Array,
        x: Array,
        training: Training | None,
        gated_sum: Callable[..., Array] | None = None,
        own_gelu: Callable[[Array], Array] | None = None,
    ) -> Array:
        """The end of a block: from its layer's output y, gate and dropout, and the sum with its input x; see block."""

        def drop(x: Array) -> Array:
            return training.dropout(x, self.dropout, self.tie_dropout) if training and self.dropout else x

        block = _Scope(leaves, "")
        g = drop(own_gelu(y) if own_gelu and self.gelu == "tanh" else GELUS[self.gelu](y))
        if self.activation == "gelu":
            return x + g if self.residual else g
        own = gated_sum if self.residual else None
        if own is not None and self.activation == "full_glu":
            weight, bias = self._gate(block)
            return own(None, linear(g, astype(weight, g)), bias, x)
        kept = {
            "full_glu": lambda: _linear(block, "value", g),
            "half_glu1": lambda: g,
            "half_glu2": lambda: y,
        }
        keep = kept[self.activation]()
        z = linear(g, astype(block["gate.weight"], g))
        if own is not None:
            return own(keep, z, block["gate.bias"], x)
        g = drop(keep * sigmoid(z + astype(block["gate.bias"], z)))
        return x + g if self.residual else g

    def _gate(self, block: _Scope) -> tuple[Array, Array]:
        """Weight and bias of what ends a block, full_glu's value before its gate."""
        if self.activation != "full_glu":
            return block["gate.weight"], block["gate.bias"]
        weight, bias = (
            namespace(block["gate.bias"]).concat([block[f"value.{name}"], block[f"gate.{name}"]], axis=0)
            for name in ("weight", "bias")
        )
        return weight, bias

    def step(self, params: Parameters, u_k: Array, states: Sequence[Array]) -> tuple[Array, list[Array]]:
        """One sample through every block: the output at k and the states after it.

        Args:
            params: leaves named and shaped as in shapes().
            u_k: real (..., d_input), or integer tokens (...).
            states: one state per block, layer.state_shape(batch) each.

        Returns:
            (..., d_output) and the new states.

        Raises:
            ValueError: the model pools over time, is bidirectional or compares pairs.
        """
        if self.pair:
            raise checks.fail("pair", "False for step mode", True, "step each of the two by a model without pair")
        if self.pooling == "mean":
            raise checks.fail("pooling", "'last' or 'none' for step mode", "'mean'", "average the outputs yourself")
        checks.shapes("the model", params, self.shapes())
        checks.array("u_k", u_k)
        if len(states) != self.n_layers:
            raise checks.fail("states", f"{self.n_layers}, one per block", len(states), "see model.state_shapes()")
        one_number = self.encoder == "embedding" or (self.d_input == 1 and self._is_raw(u_k))
        u_k = self._read(params, u_k[..., None] if one_number else u_k[..., None, :])
        x = self._encode(params, u_k)
        new = []
        for i in range(self.n_layers):
            block = _Scope(params, f"blocks.{i}.")
            z = self._norm(block, x, None, None, {}) if self.prenorm else x
            y, state = self.layer.step(block.leaves("layer."), z[..., 0, :], states[i])
            new.append(state)
            x = self.finish(block.leaves(""), y[..., None, :], x, None)
            x = x if self.prenorm else self._norm(block, x, None, None, {})
        y, _ = self.decode(params, x, None)  # of one sample: its mean or last is itself
        return (y[..., 0, :] if self.pooling == "none" else y), new

    def check_samples(self, inputs: Array, targets: Array | None = None, lengths: Any = None) -> None:
        """Raise ValueError where samples are none of this model's: shapes, tokens, class numbers, valid lengths.

        Args:
            inputs: samples (N, ...) as a learner's place takes them.
            targets: class numbers or real targets, or None.
            lengths: valid lengths, or None.
        """
        pixels = self.encoder == "linear" and self.d_input == 1 and checks.is_integral(inputs)
        shape = (*np.shape(inputs), 1) if pixels else np.shape(inputs)
        self._check_shape("inputs", shape)
        if self.encoder == "embedding":
            checks.numbers_below("inputs", inputs, self.d_input, "tokens", "d_input")
        if targets is not None and checks.is_integral(targets):
            checks.numbers_below("targets", targets, self.d_output, "class numbers", "d_output")
        if lengths is not None:
            checks.lengths(lengths, shape[-self._input_axes])

    # --- parts -------------------------------------------------------------------------------------------------

    @property
    def _input_axes(self) -> int:
        """Axes of one input sequence."""
        return 1 if self.encoder == "embedding" else 2

    def _is_raw(self, u: Array) -> bool:
        """Whether u holds integers for `input`."""
        return self.input is not None and self.encoder == "linear" and namespace(u).isdtype(u.dtype, "integral")

    def _read(self, params: Parameters, u: Array) -> Array:
        """u as the encoder takes it, checked."""
        checks.array("u", u)
        if self.input is not None and self._is_raw(u):
            u = self.input(u, params["encoder.weight"].dtype, self.d_input)
        self._check_shape("u", tuple(u.shape))
        self._check_dtype(params, u)
        return u

    def _check_shape(self, argument: str, shape: tuple[int, ...]) -> None:
        axes = self._input_axes
        if len(shape) < axes or (axes == 2 and shape[-1] != self.d_input):
            wanted = "(..., L) of tokens" if axes == 1 else f"(..., L, {self.d_input}) from d_input"
            raise checks.fail(argument, f"shape {wanted}", shape)
        if self.pair and (len(shape) <= axes or shape[-1 - axes] != 2):
            raise checks.fail(argument, "shape (..., 2, L) or (..., 2, L, d_input): pairs", shape)

    def _check_dtype(self, params: Parameters, u: Array) -> None:
        weight = params["encoder.weight"]
        if self.encoder == "embedding":
            if not namespace(weight).isdtype(u.dtype, "integral"):
                raise checks.fail("u", "integer tokens", f"dtype {u.dtype}", "use encoder='linear' for real inputs")
            checks.numbers_below("u", u, self.d_input, "tokens", "d_input")
        else:
            checks.same_dtype("u", u, weight, "cast one of them")

    def _check_noise(self, u: Array, layer_noise: Sequence[Array] | None) -> None:
        if layer_noise is None:
            return
        if len(layer_noise) != self.n_layers:
            raise checks.fail("layer_noise", f"{self.n_layers} arrays, one per block", len(layer_noise))
        inner = (*(u.shape if self._input_axes == 1 else u.shape[:-1]), self.layer.d_model)
        for noise in layer_noise:
            checks.broadcasts("layer_noise", noise, inner, "the input of each layer")

    def _lengths(self, u: Array, lengths: Any) -> Array | None:
        axes = self._input_axes
        if lengths is None:
            return None
        checks.lengths(lengths, u.shape[-axes])
        lengths = namespace(u).asarray(lengths)
        checks.shape("lengths", lengths, tuple(u.shape[:-axes]), "the batch axes of u")
        return sequences.within(lengths, u.shape[-axes])

    def _encode(self, params: Parameters, u: Array) -> Array:
        scope = _Scope(params, "")
        if self.encoder == "linear":
            return _linear(scope, "encoder", u)
        xp = namespace(params["encoder.weight"])
        if str(u.dtype).endswith(("int8", "int16")):  # frameworks do not agree on which small integers are indices
            u = xp.astype(u, xp.int32)
        if self.d_input <= SMALL_VOCABULARY:
            codes = arange(self.d_input, like=u)
            return _linear(scope, "encoder", astype(u[..., None] == codes, params["encoder.weight"]))
        rows = xp.take(params["encoder.weight"].T, xp.reshape(u, (-1,)), axis=0)
        return xp.reshape(rows, (*u.shape, self.layer.d_model)) + params["encoder.bias"]

    def _norm(
        self,
        block: _Scope,
        x: Array,
        lengths: Array | None,
        training: Training | None,
        statistics: dict[str, Array],
        own: Callable[..., tuple[Array, Array, Array]] | None = None,
    ) -> Array:
        if self.norm == "none":
            return x
        xp, wide = namespace(x), astype(x, block["norm.scale"])
        scale, bias = block["norm.scale"], block["norm.bias"]
        if self.norm == "layer":
            mean, var = xp.mean(wide, axis=-1, keepdims=True), xp.var(wide, axis=-1, keepdims=True)
        elif training is None:
            mean, var = block["norm.mean"], block["norm.var"]
        else:
            run = batch_norm if own is None else own
            y, mean, var = run(x, lengths, scale, bias, block["norm.mean"], self.norm_epsilon)
            momentum = self.norm_momentum
            for name, value in zip(STATISTICS, (mean, var), strict=True):
                old = block[f"norm.{name}"]
                statistics[f"{block.prefix}norm.{name}"] = momentum * old + (1 - momentum) * value
            return y
        return astype(normalized(wide, mean, var, scale, bias, self.norm_epsilon), x)

    def _pool(self, x: Array, lengths: Array | None) -> Array:
        if self.pooling == "none":
            return x
        xp = namespace(x)
        if self.pooling == "last":
            return sequences.last(x, lengths, xp.zeros_like(x[..., 0, :]))
        if lengths is None:
            return xp.mean(x, axis=-2)
        count = xp.astype(xp.where(lengths > 0, lengths, xp.ones_like(lengths)), x.dtype)
        return xp.sum(sequences.mask(x, lengths), axis=-2) / count[..., None]

    def _join(self, params: Parameters, x: Array) -> Array:
        """Pooled features (..., H); for pairs, of both and what tells them apart."""
        if not self.pair:
            return x
        first, second = x[..., 0, :], x[..., 1, :]
        features = namespace(x).concat([first, second, first - second, first * second], axis=-1)
        return GELUS[self.gelu](_linear(_Scope(params, ""), "pair", features))


#: Leaves that training updates by averaging, not by gradients.
STATISTICS = ("mean", "var")


def is_statistic(name: str) -> bool:
    """Whether a leaf, by its dotted name, is a batch-norm statistic: norm.mean or norm.var, at any depth."""
    *_, owner, last = ("", *name.split("."))
    return owner == "norm" and last in STATISTICS


def gelu(x: Array) -> Array:
    """x Phi(x) in its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + namespace(x).tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_by_erf(x: Array) -> Array:
    """x Phi(x), with Phi the normal law's distribution function (Hendrycks and Gimpel 2016).

    >>> round(float(gelu_by_erf(np.asarray(-1.0))), 6)
    -0.158655
    """
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


#: By the name users pass as ``gelu``.
GELUS = {"tanh": gelu, "erf": gelu_by_erf}


def sigmoid(x: Array) -> Array:
    """1/(1 + e^-x), without overflow at either end."""
    return 0.5 * (1.0 + namespace(x).tanh(0.5 * x))


@dataclass(frozen=True)
class _Scope:
    """The leaves under one prefix."""

    params: Parameters
    prefix: str

    def __getitem__(self, name: str) -> Array:
        return self.params[self.prefix + name]

    def leaves(self, prefix: str) -> dict[str, Array]:
        start = self.prefix + prefix
        return {name.removeprefix(start): value for name, value in self.params.items() if name.startswith(start)}


def _linear(scope: _Scope, name: str, x: Array) -> Array:
    return linear(x, astype(scope[f"{name}.weight"], x)) + astype(scope[f"{name}.bias"], x)


def normalized(x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float = NORM_EPSILON) -> Array:
    """scale (x - mean) / sqrt(var + epsilon) + bias."""
    return (x - mean) / namespace(x).sqrt(var + epsilon) * scale + bias


def batch_norm(
    x: Array, lengths: Array | None, scale: Array, bias: Array, near: Array | None = None, epsilon: float = NORM_EPSILON
) -> tuple[Array, Array, Array]:
    """x normalised by its moments, in its dtype, and these, in that of scale; near as in moments."""
    wide = astype(x, scale)
    mean, var = moments(wide, lengths, near)
    return astype(normalized(wide, mean, var, scale, bias, epsilon), x), mean, var


def moments(
    x: Array, lengths: Array | None, near: Array | None = None, total: Callable[[tuple], tuple] = lambda sums: sums
) -> tuple[Array, Array]:
    """Mean and variance per feature over batch and valid time, in one pass over x where near is known.

    mean = near + E d and var = E d^2 - (E d)^2 with d = x - near, for any near; near the mean nothing cancels.

    Args:
        x: (..., L, H).
        lengths: integer (...), valid lengths, or None.
        near: (H,), a guess of the mean, such as that of earlier batches; None to find one first.
        total: adds the sums over rows that lie elsewhere, where near is the same.

    Returns:
        mean and var, each (H,); var >= 0.
    """
    xp = namespace(x)
    axes = tuple(range(x.ndim - 1))
    near = xp.mean(x, axis=axes) if near is None else near
    d = sequences.mask(x - near, lengths)
    count = math.prod(x.shape[:-1]) if lengths is None else xp.astype(xp.sum(lengths), x.dtype)
    along, squares, count = total((xp.sum(d, axis=axes), xp.sum(d * d, axis=axes), count))
    if lengths is not None:  # where all are zero, moments are those of nothing but not nan
        count = xp.where(count > 0, count, xp.ones_like(count))
    mean = along / count
    var = squares / count - mean * mean
    return near + mean, xp.where(var > 0.0, var, xp.zeros_like(var))
