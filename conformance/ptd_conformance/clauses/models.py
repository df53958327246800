"""SequenceModel and training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ptd
from ptd.model import Training, is_statistic

from ..bench import Bench
from ..cases import exact, generic
from ..clause import clause
from ..outcome import Measurement, compare, holds
from ..products import FULL, Products

#: Norms with an epsilon of which an error would show, and what a model of tokens begins and ends with.
BATCH_NORM: dict[str, Any] = {"norm": "batch", "norm_epsilon": 0.1}
LAYER_NORM: dict[str, Any] = {"norm": "layer", "norm_epsilon": 0.1}
TOKENS: dict[str, Any] = {"encoder": "embedding", "pooling": "last"}

MODELS: dict[str, ptd.SequenceModel] = {
    "s5-batch-norm": ptd.SequenceModel(
        ptd.S5(6, 4, bidirectional=True), 2, 3, 4, activation="half_glu2", dropout=0.1, final_norm=True, **BATCH_NORM
    ),
    "s4d-post-norm": ptd.SequenceModel(ptd.S4D(6, 4), 2, 3, 4, prenorm=False, activation="full_glu", residual=False),
    "dss-tokens": ptd.SequenceModel(
        ptd.DSS(6, 4), 1, 9, 4, **TOKENS, activation="gelu", gelu="erf", final_norm=True, **LAYER_NORM
    ),
    "s4-every-step": ptd.SequenceModel(ptd.S4(6, 4), 1, 3, 4, norm="none", pooling="none"),
}
#: Pairs of stored integers, as the Retrieval task's and pixels' are; it has the one clause of its own.
PAIRS = ptd.SequenceModel(
    ptd.S5(6, 4), 1, 2, 4, norm="batch", pair=True, input=ptd.Input((1 / 128, 1 / 64), (-1.0, 0.5)), norm_momentum=0.8
)
STEPPED = [name for name, model in MODELS.items() if model.pooling != "mean"]
CLASSIFIERS = [name for name, model in MODELS.items() if model.pooling != "none"]
L, BATCH = 10, 4


def leaves(subject: str) -> dict[str, NDArray]:
    """Random parameters of a model, batch-norm statistics generic as well."""
    rng = np.random.default_rng(5)
    params = MODELS[subject].initialize(rng, init="legs")
    return {
        name: exact(value * rng.uniform(0.5, 2, value.shape) if is_statistic(name) else value)
        for name, value in params.items()
    }


def inputs(subject: str) -> NDArray:
    """Random inputs or tokens."""
    rng, model = np.random.default_rng(6), MODELS[subject]
    return rng.integers(0, model.d_input, (BATCH, L)) if model.encoder == "embedding" else generic(rng, (BATCH, L, 3))


def reference(subject: str, dtype: Any, *, eps: float = 0.0, seed: int = 0, **call: Any) -> NDArray:
    """The reference's output computed in dtype, from leaves and inputs that are off by eps."""
    values = spoiled(leaves(subject) | {"u": inputs(subject)}, eps, seed)
    u = values.pop("u")
    params = {name: value.astype(dtype) for name, value in values.items()}
    if "layer_noise" in call:
        call["layer_noise"] = [value.astype(dtype) for value in call["layer_noise"]]
    return MODELS[subject].apply(params, u if u.dtype.kind == "i" else u.astype(dtype), **call)


def same_precision(subject: str, dtype: str, products: Products = FULL, **call: Any) -> tuple[NDArray, float]:
    """The output and its allowed error: 16 times the reference's own in the same precision.

    A composition of norms and gates has no useful closed bound. What NumPy loses in the same precision shows its
    condition; 16 leaves room for another order of summation. Where products are narrower, so do random relative errors
    of their eps in leaves and inputs, twice over: the other factors of products, activations, round alike.
    """
    wide = reference(subject, np.longdouble, **call)
    allowed = 16 * float(np.max(np.abs(reference(subject, dtype, **call) - wide)))
    if products.eps:
        drawn = [reference(subject, np.float64, eps=products.eps, seed=seed, **call) for seed in range(4)]
        allowed += 2 * max(float(np.max(np.abs(each - wide))) for each in drawn)
    return wide.astype(np.float64), allowed


#: Leaves that no product with activations has as a factor: those of the recurrence.
EXACT = ("Lambda_re", "Lambda_im", "P_re", "P_im", "log_step")


def spoiled(values: dict[str, NDArray], eps: float, seed: int) -> dict[str, NDArray]:
    """Each value off by eps, up or down at random, but those in EXACT and statistics."""
    rng, kept = np.random.default_rng(seed), {}
    for name, value in values.items():
        signs = rng.choice([-1.0, 1.0], value.shape)
        stays = name.split(".")[-1] in EXACT or is_statistic(name) or value.dtype.kind != "f"
        kept[name] = value if stays else value * (1 + eps * signs).astype(value.dtype)
    return kept


@clause("S1", MODELS, every_dtype=True)
def model_equals_the_reference(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Encoder, norms, gates, pooling and decoder equal the reference's."""
    expected, allowed = same_precision(subject, bench.dtype, bench.products)
    params, u = bench.arrays(leaves(subject)), bench.array(inputs(subject))
    y = bench.backend.apply_model(MODELS[subject], params, u, **bench.products.options())
    yield compare("output", bench.host(y), expected, allowed)


@clause("S2", MODELS)
def model_ignores_padding(bench: Bench, subject: str) -> Iterator[Measurement]:
    """With lengths, pooling and layers ignore the padding."""
    lengths = np.array([L, 1, 7, 4])
    expected, allowed = same_precision(subject, bench.dtype, bench.products, lengths=lengths)
    call = {"lengths": bench.array(lengths), **bench.products.options()}
    params, u = bench.arrays(leaves(subject)), bench.array(inputs(subject))
    y = bench.host(bench.backend.apply_model(MODELS[subject], params, u, **call))
    valid = np.arange(L) < lengths[:, None] if MODELS[subject].pooling == "none" else np.ones(BATCH, bool)
    yield compare("output", y[valid], expected[valid], allowed)


@clause("S3", MODELS)
def noise_is_added_to_every_layers_input(bench: Bench, subject: str) -> Iterator[Measurement]:
    """layer_noise is added to the input of each block's layer."""
    model = MODELS[subject]
    noise = [generic(np.random.default_rng(i), (BATCH, L, model.layer.d_model)) for i in range(model.n_layers)]
    params, u = bench.arrays(leaves(subject)), bench.array(inputs(subject))
    y = bench.backend.apply_model(model, params, u, layer_noise=[bench.array(value) for value in noise])
    expected, allowed = same_precision(subject, bench.dtype, bench.products, layer_noise=noise)
    yield compare("output", bench.host(y), expected, allowed)


@clause("S4", STEPPED, needs="modules")
def model_steps_as_it_runs(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A causal model, stepped sample by sample, gives the outputs of the whole run."""
    model = MODELS[subject]
    module = bench.backend.module(model, leaves(subject), bench.dtype)
    states = module.initial_state((BATCH,))
    u = inputs(subject)
    for k in range(L):
        y, states = module.step(bench.array(u[:, k]), states)
    expected, allowed = same_precision(subject, bench.dtype)
    yield compare("last output", bench.host(y), expected if model.pooling == "last" else expected[:, -1], allowed)


@clause("S5", ["s5-pairs"], every_dtype=True)
def model_compares_pairs_of_stored_integers(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Integers become real input by the model's scale and shift; two sequences of a pair share the stack and a head."""
    rng = np.random.default_rng(7)
    params = {name: exact(value) for name, value in PAIRS.initialize(rng, init="legs").items()}
    u, lengths = rng.integers(0, 256, (BATCH, 2, L, 2), np.uint8), np.array([[L, 1], [7, L], [4, 4], [L, L]])
    wide, own = (
        PAIRS.apply({name: value.astype(dtype) for name, value in params.items()}, u, lengths=lengths)
        for dtype in (np.longdouble, bench.dtype)
    )
    y = bench.backend.apply_model(PAIRS, bench.arrays(params), bench.array(u), lengths=bench.array(lengths))
    yield compare("output", bench.host(y), wide.astype(np.float64), 16 * float(np.max(np.abs(own - wide))) + 1e-30)


def optimizer(**options: Any) -> ptd.Optimizer:
    """The optimiser of the training clauses."""
    return ptd.Optimizer(lr=1e-2, ssm_lr=1e-3, weight_decay=0.05, **{"total_steps": 100, **options})


@clause("T1", [name for name in CLASSIFIERS if MODELS[name].norm != "batch"], needs="training")
def first_loss_is_the_models(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Without dropout and batch statistics, the first loss is the reference's cross entropy."""
    model, targets = MODELS[subject], np.arange(BATCH) % 4
    learner = bench.backend.learner(model, leaves(subject), optimizer(), seed=0, **bench.products.options())
    logits = reference(subject, np.float64)
    expected = np.mean(np.log(np.sum(np.exp(logits), axis=-1)) - logits[np.arange(BATCH), targets])
    loss = float(learner.step(_batch(subject), targets))
    # Cross entropy moves by at most twice what its logits do. Batched, they are summed in another order in float32.
    allowed = 16 * 2 * same_precision(subject, "float32")[1] + 1e-6
    if bench.products.eps:
        allowed += 2 * same_precision(subject, "float32", bench.products)[1]
    yield compare("loss", np.asarray(loss), np.asarray(expected), allowed)


@clause("T2", CLASSIFIERS, needs="training")
def every_leaf_moves_at_its_groups_rate(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The first AdamW step moves each leaf by its group's rate and decay; frozen leaves stay."""
    model, before, rule = MODELS[subject], leaves(subject), optimizer(frozen=("log_step",), rule="BandCdecay")
    learner = bench.backend.learner(model, before, rule, seed=0)
    learner.step(_batch(subject), np.arange(BATCH) % 4)
    for name, value in learner.parameters().items():
        group, move = rule.group(name), np.abs(value - before[name])
        if is_statistic(name):
            yield holds(f"{name} follows the batch", bool(np.any(move > 0)))
            continue
        # Adam's first update is lr sign(g); decay adds lr times decay times the leaf; float32 rounds both.
        most = group.lr * (1 + group.weight_decay * np.abs(before[name])) * 1.001 + 1e-6 * np.abs(before[name])
        yield compare(f"{name} moves at most by its rate", np.maximum(move, most), most, 1e-30)
        yield holds(f"{name} moves", bool(np.max(move) > 0.5 * group.lr) or group.lr == 0)


@clause("T3", CLASSIFIERS, needs="training")
def training_lowers_the_loss(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Sixty steps on one batch halve its loss."""
    options = bench.products.options()
    learner = bench.backend.learner(MODELS[subject], leaves(subject), optimizer(), seed=0, **options)
    losses = [float(learner.step(_batch(subject), np.arange(BATCH) % 4)) for _ in range(60)]
    first, last = losses[0], float(np.mean(losses[-5:]))  # dropout makes a single loss a draw
    yield holds(f"loss from {first:.3f} to {last:.3f}", last < first / 2)


def _batch(subject: str) -> NDArray:
    u = inputs(subject)
    return u if u.dtype.kind == "i" else u.astype(np.float32)


@clause("T4", CLASSIFIERS, needs="training")
def whole_sets_train_as_single_steps_do(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Steps on a placed set give the losses of the same steps one by one, where nothing is drawn."""
    model = dataclasses.replace(MODELS[subject], dropout=0.0)
    data, order = _set(subject), np.array([[0, 1, 2], [3, 0, 1], [2, 3, 0], [1, 2, 3], [0, 3, 2]])
    first, second = (bench.backend.learner(model, leaves(subject), optimizer(), seed=0) for _ in range(2))
    losses = first.train(first.place(*data), order)
    expected = np.array([float(second.step(*(part[rows] for part in data))) for rows in order])
    # Later losses see the earlier steps; Adam makes a full step of a gradient that is all rounding, hence the width.
    yield compare("losses", losses.astype(np.float64), expected, 1e-3 * np.abs(expected))
    yield compare("first loss", losses[:1].astype(np.float64), expected[:1], 1e-5 * np.abs(expected[:1]))


@clause("T5", CLASSIFIERS, needs="training")
def whole_sets_are_evaluated_row_by_row(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Evaluation of rows of a placed set, in batches that do not divide them, gives the outputs of these rows."""
    learner = bench.backend.learner(MODELS[subject], leaves(subject), optimizer(), seed=0)
    inputs, targets, lengths = _set(subject)
    rows = np.array([3, 1, 0])
    found = learner.evaluate(learner.place(inputs, targets, lengths), rows, 2)
    allowed = 2 * same_precision(subject, "float32", lengths=lengths)[1] + 1e-6
    yield compare("outputs", found, learner.outputs(inputs[rows], lengths[rows]), allowed)


@clause("T6", CLASSIFIERS, needs="training")
def restored_learner_goes_on_bit_for_bit(bench: Bench, subject: str) -> Iterator[Measurement]:
    """However a run is split, and across snapshot and restore, losses and state end bit for bit the same."""
    order = np.random.default_rng(8).integers(0, BATCH, (7, 3))
    whole, before, after = (
        bench.backend.learner(MODELS[subject], leaves(subject), optimizer(), seed=5) for _ in range(3)
    )
    expected = whole.train(whole.place(*_set(subject)), order)
    losses = [before.train(before.place(*_set(subject)), order[:3])]
    after.restore(before.snapshot())
    placed = after.place(*_set(subject))
    losses += [after.train(placed, order[3:4]), after.train(placed, order[4:])]
    yield holds("losses", np.array_equal(np.concatenate(losses), expected))
    end, other = whole.snapshot(), after.snapshot()
    yield holds("names", end.keys() == other.keys())
    for name, value in end.items():
        yield holds(name, np.asarray(value).tobytes() == np.asarray(other[name]).tobytes())
    for name, value in whole.parameters().items():
        yield holds(f"leaves.{name} is a leaf", np.array_equal(end[f"leaves.{name}"], value))


@clause("T7", [name for name in CLASSIFIERS if MODELS[name].norm == "batch"], needs="training")
def module_follows_its_mode(bench: Bench, subject: str) -> Iterator[Measurement]:
    """After train() a module norms by its batch and keeps the statistics, and after eval() it does neither."""
    model, given, u = dataclasses.replace(MODELS[subject], dropout=0.0), leaves(subject), inputs(subject)
    module = bench.backend.module(model, given, bench.dtype)
    module.train()
    found, kept = {"output": bench.host(module(bench.array(u)))}, module.leaves()
    found |= {name: value for name, value in kept.items() if is_statistic(name)}
    wide, own = (_trained(model, given, u, dtype) for dtype in (np.longdouble, bench.dtype))
    for name, value in wide.items():
        yield compare(name, found[name], value.astype(np.float64), 16 * float(np.max(np.abs(own[name] - value))))
    module.eval()
    evaluated = {name: value.astype(np.float64) for name, value in kept.items()}
    y, allowed = bench.host(module(bench.array(u))), same_precision(subject, bench.dtype)[1]
    yield compare("output after eval()", y, model.apply(evaluated, u.astype(np.float64)), allowed)
    yield holds("statistics stay", all(np.array_equal(value, kept[name]) for name, value in module.leaves().items()))


def _trained(model: ptd.SequenceModel, params: dict[str, NDArray], u: NDArray, dtype: Any) -> dict[str, NDArray]:
    """The reference's output and updated statistics of a training pass in dtype, dropout aside."""
    params = {name: value.astype(dtype) for name, value in params.items()}
    y, statistics = model.apply(params, u.astype(dtype), training=Training(lambda x, *_: x))
    return {"output": y, **statistics}


def _set(subject: str) -> tuple[NDArray, NDArray, NDArray]:
    """Inputs, targets and lengths of a data set."""
    return _batch(subject), np.arange(BATCH, dtype=np.int32) % 4, np.array([L, 3, 7, L], np.int32)
