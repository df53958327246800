"""SequenceModel against a plain NumPy forward pass of its own; the layers inside are tested in test_layers.py."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

import ptd
from ptd import S5, Input, Optimizer, SequenceModel, load, save
from ptd.model import Training, _Scope, moments
from ptd.optimization import Group

H, D_INPUT, D_OUTPUT, L = 4, 3, 2, 6
LENGTHS = np.array([6, 4, 1])


def build(**options) -> SequenceModel:
    return SequenceModel(S5(H, 4), **{"n_layers": 2, "d_input": D_INPUT, "d_output": D_OUTPUT} | options)


def parameters(model: SequenceModel) -> dict[str, np.ndarray]:
    """Initial leaves with every bias, scale and statistic moved off its trivial value."""
    rng = np.random.default_rng(0)
    leaves = model.initialize(rng, init="legs")
    affine = [name for name in leaves if name.endswith((".bias", ".scale", ".mean"))]
    leaves |= {name: leaves[name] + 0.3 * rng.standard_normal(leaves[name].shape) for name in affine}
    return leaves | {name: rng.uniform(0.5, 2, H) for name in leaves if name.endswith(".var")}


def inputs(model: SequenceModel) -> np.ndarray:
    rng = np.random.default_rng(1)
    if model.encoder == "embedding":
        return rng.integers(0, D_INPUT, (3, L))
    return rng.standard_normal((3, L, D_INPUT))


# --- the independent forward pass, one sequence without padding at a time


def linear(p, name, x):
    return np.einsum("oi,...i->...o", p[name + ".weight"], x) + p[name + ".bias"]


def gelu(x, by="tanh"):
    if by == "erf":
        return x * norm.cdf(x)
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalise(model, p, block, x):
    if model.norm == "none":
        return x
    if model.norm == "layer":
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    else:
        mean, var = p[block + "norm.mean"], p[block + "norm.var"]
    return (x - mean) / np.sqrt(var + model.norm_epsilon) * p[block + "norm.scale"] + p[block + "norm.bias"]


def activate(model, p, block, y):
    g = gelu(y, model.gelu)
    gate = None if model.activation == "gelu" else sigmoid(linear(p, block + "gate", g))
    return {
        "gelu": lambda: g,
        "full_glu": lambda: linear(p, block + "value", g) * gate,
        "half_glu1": lambda: g * gate,
        "half_glu2": lambda: y * gate,
    }[model.activation]()


def forward(model, p, u, noise=(0, 0)):
    x = p["encoder.weight"].T[u] + p["encoder.bias"] if model.encoder == "embedding" else linear(p, "encoder", u)
    for i in range(model.n_layers):
        block = f"blocks.{i}."
        inner = {name.removeprefix(block + "layer."): v for name, v in p.items() if name.startswith(block + "layer.")}
        z = normalise(model, p, block, x) if model.prenorm else x
        z = activate(model, p, block, model.layer.apply(inner, z + noise[i]))
        x = x + z if model.residual else z
        x = x if model.prenorm else normalise(model, p, block, x)
    x = normalise(model, p, "", x) if model.final_norm else x
    pooled = {"mean": lambda: x.mean(-2), "last": lambda: x[..., -1, :], "none": lambda: x}[model.pooling]()
    return linear(p, "decoder", pooled)


OPTIONS = [
    *({"norm": norm, "prenorm": prenorm} for norm in ("layer", "batch", "none") for prenorm in (True, False)),
    *({"activation": activation} for activation in ("gelu", "full_glu", "half_glu1", "half_glu2")),
    *({"pooling": pooling} for pooling in ("mean", "last", "none")),
    {"encoder": "embedding"},
    {"norm": "layer", "final_norm": True, "pooling": "none"},
    {"norm": "batch", "final_norm": True, "pooling": "last"},
    {"norm": "layer", "norm_epsilon": 0.1},
    {"norm": "batch", "norm_epsilon": 0.1, "final_norm": True},
    {"gelu": "erf"},
    {"residual": False},
    {"n_layers": 1},
]


@pytest.fixture(scope="module", params=OPTIONS, ids=str)
def model(request):
    return build(**request.param)


@pytest.fixture(scope="module")
def params(model):
    return parameters(model)


def test_output_is_that_of_the_plain_forward_pass(model, params):
    u = inputs(model)
    assert_allclose(model.apply(params, u), forward(model, params, u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_padded_sequence_gives_what_it_gives_alone(model, params, row):
    u, length = inputs(model), LENGTHS[row]
    y = model.apply(params, u, lengths=LENGTHS)[row]
    expected = forward(model, params, u[row, :length])
    assert_allclose(y[:length] if model.pooling == "none" else y, expected, rtol=0, atol=1e-12)


def test_noise_is_added_to_the_input_of_each_layer(model, params):
    u, noise = inputs(model), [0.3, np.linspace(0, 1, L)[:, None]][: model.n_layers]
    assert_allclose(model.apply(params, u, layer_noise=noise), forward(model, params, u, noise), rtol=0, atol=1e-12)


def run_steps(model, params, u):
    """Outputs of one step after the other, from zero states."""
    states, outputs = [np.zeros(shape) for shape in model.state_shapes((3,))], []
    for k in range(L):
        y, states = model.step(params, u[:, k], states)
        outputs.append(y)
    return np.stack(outputs, axis=1)


@pytest.mark.parametrize("options", [option for option in OPTIONS if option.get("pooling") != "mean"], ids=str)
def test_steps_give_what_the_whole_sequence_gives(options):
    model = build(**{"pooling": "none"} | options)
    params, u = parameters(model), inputs(model)
    expected = forward(build(**options | {"pooling": "none"}), params, u)
    assert_allclose(run_steps(model, params, u), expected, rtol=0, atol=1e-12)


def test_mean_pooling_has_no_step():
    model = build()
    with pytest.raises(ValueError, match=r"^pooling: expected 'last' or 'none' for step mode"):
        model.step(parameters(model), np.zeros(D_INPUT), [np.zeros(s) for s in model.state_shapes()])


# --- training


def keep_all(x, rate, over_time):
    return x


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_batch_norm_trains_on_the_statistics_of_batch_and_valid_time(lengths):
    model = build(norm="batch", n_layers=1, pooling="none", norm_momentum=0.8)
    params, u = parameters(model), inputs(model)
    _, updated = model.apply(params, u, lengths=lengths, training=Training(keep_all))
    x = linear(params, "encoder", u)
    valid = x[np.arange(L) < (LENGTHS[:, None] if lengths is not None else np.full((3, 1), L))]
    for name, value in (("mean", valid.mean(0)), ("var", valid.var(0))):
        old = params[f"blocks.0.norm.{name}"]
        assert_allclose(updated[f"blocks.0.norm.{name}"], 0.8 * old + 0.2 * value, rtol=1e-12)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize("off", [None, 0.0, 3.0])
def test_moments_do_not_depend_on_the_guess_of_the_mean(lengths, off):
    x = 5.0 + np.random.default_rng(3).standard_normal((3, L, H))
    valid = x[np.arange(L) < (LENGTHS[:, None] if lengths is not None else np.full((3, 1), L))]
    mean, var = moments(x, lengths, None if off is None else valid.mean(0) + off)
    assert_allclose(mean, valid.mean(0), rtol=1e-13)
    assert_allclose(var, valid.var(0), rtol=1e-12)


def test_moments_far_from_zero_do_not_cancel_beside_a_good_guess():
    """By E x^2 - (E x)^2 in float32 the variance would have an error of about 1e6 eps, 0.1."""
    x = (1000.0 + np.random.default_rng(3).standard_normal((8, 200, H))).astype(np.float32)
    _, var = moments(x, None, np.full(H, 1000.5, np.float32))
    assert_allclose(var, x.astype(np.float64).var((0, 1)), rtol=1e-4)


def test_variance_of_equal_samples_is_never_negative():
    x = np.full((2, L, H), 0.1, np.float32)
    assert (moments(x, None, np.full(H, 0.7, np.float32))[1] >= 0).all()


def test_batch_norm_in_training_normalises_by_the_batch():
    model = build(norm="batch", n_layers=1, pooling="none")
    params, u = parameters(model), inputs(model)
    valid = linear(params, "encoder", u)[np.arange(L) < LENGTHS[:, None]]
    as_statistics = {"blocks.0.norm.mean": valid.mean(0), "blocks.0.norm.var": valid.var(0)}
    trained, _ = model.apply(params, u, lengths=LENGTHS, training=Training(keep_all))
    evaluated = model.apply(params | as_statistics, u, lengths=LENGTHS)
    assert_allclose(trained, evaluated, rtol=0, atol=1e-12)


def test_gelu_by_erf_is_no_pass_of_a_backend_for_gelu_by_tanh():
    passed = {"own_gelu": lambda y: 0 * y, "training": None}
    for by, own in (("tanh", True), ("erf", False)):
        model = build(gelu=by)
        leaves = model.initialize(np.random.default_rng(0), init="legs")
        block = {name.removeprefix("blocks.0."): value for name, value in leaves.items() if "blocks.0." in name}
        y = np.ones((2, H))
        assert (model.finish(block, y, y, **passed) == y).all() == own


def test_moments_that_training_divides_by_have_the_models_epsilon():
    model = build(norm="batch", norm_epsilon=0.1, n_layers=1)
    block = {"norm.scale": np.ones(H), "norm.bias": np.zeros(H), "norm.mean": np.zeros(H), "norm.var": np.ones(H)}
    x = np.random.default_rng(0).standard_normal((3, L, H))
    y = model._norm(_Scope(block, ""), x, None, Training(None), {})
    assert_allclose(y, (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 0.1), rtol=1e-12)


def test_the_final_norm_keeps_statistics_of_valid_samples_of_the_last_block():
    model = build(norm="batch", final_norm=True, norm_momentum=0.0, pooling="none")
    plain = build(norm="batch", norm_momentum=0.0, pooling="none")
    params, u, training = parameters(model), inputs(model), Training(keep_all)
    decoder = {"decoder.weight": np.eye(H), "decoder.bias": np.zeros(H)}  # a model that shows its last block's output
    shown = dataclasses.replace(plain, d_output=H)
    before = {name: params[name] for name in plain.shapes()} | decoder
    x, _ = shown.apply(before, u, lengths=LENGTHS, training=training)
    valid = x[np.arange(L) < LENGTHS[:, None]]
    _, statistics = model.apply(params, u, lengths=LENGTHS, training=training)
    assert_allclose(statistics["norm.mean"], valid.mean(0), rtol=0, atol=1e-12)
    assert_allclose(statistics["norm.var"], valid.var(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_other_norms_update_nothing(norm):
    model = build(norm=norm)
    assert model.apply(parameters(model), inputs(model), training=Training(keep_all))[1] == {}


@pytest.mark.parametrize(("activation", "calls"), [("gelu", 1), ("full_glu", 2), ("half_glu1", 2), ("half_glu2", 2)])
@pytest.mark.parametrize("tie", [True, False])
def test_dropout_is_called_with_its_rate_and_tie_in_every_block(activation, calls, tie):
    seen = []

    def dropout(x, rate, over_time):
        seen.append((x.shape, rate, over_time))
        return x

    model = build(activation=activation, dropout=0.25, tie_dropout=tie, n_layers=3)
    model.apply(parameters(model), inputs(model), training=Training(dropout))
    assert seen == [((3, L, H), 0.25, tie)] * calls * 3


def test_dropout_acts_on_the_block_not_on_the_residual():
    model = build(activation="gelu", dropout=0.5, pooling="none")
    params, u = parameters(model), inputs(model)
    y, _ = model.apply(params, u, training=Training(lambda x, rate, over_time: 0 * x))
    assert_allclose(y, linear(params, "decoder", linear(params, "encoder", u)), rtol=0, atol=1e-12)


def forbidden(x, rate, over_time):
    raise AssertionError("called")


def test_dropout_is_off_in_evaluation_and_at_rate_zero():
    model = build(dropout=0.0)
    params, u = parameters(model), inputs(model)
    y, _ = model.apply(params, u, training=Training(forbidden))
    assert np.array_equal(y, model.apply(params, u))


@pytest.mark.parametrize("activation", ["full_glu", "half_glu1", "half_glu2"])
def test_gated_sum_of_ones_own_is_given_one_product_where_keep_is_one(activation):
    def gated_sum(keep, z, bias, x):
        assert (keep is None) == (activation == "full_glu")
        gate = z + bias
        return x + (gate[..., :H] if keep is None else keep) * sigmoid(gate[..., -H:])

    model = build(activation=activation, n_layers=1)
    leaves = {name.removeprefix("blocks.0."): value for name, value in parameters(model).items()}
    y, x = np.random.default_rng(1).standard_normal((2, 3, L, H))
    expected = model.finish(leaves, y, x, None)
    assert_allclose(model.finish(leaves, y, x, None, gated_sum), expected, rtol=0, atol=1e-14)


# --- leaves


def test_shapes_name_every_leaf():
    model = SequenceModel(S5(4, 4), 1, 3, 2, norm="batch", activation="full_glu")
    layer = {f"blocks.0.layer.{name}": shape for name, shape in model.layer.shapes().items()}
    norm = {f"blocks.0.norm.{name}": (4,) for name in ("scale", "bias", "mean", "var")}
    mix = {"blocks.0.gate.weight": (4, 4), "blocks.0.gate.bias": (4,)}
    mix |= {"blocks.0.value.weight": (4, 4), "blocks.0.value.bias": (4,)}
    ends = {"encoder.weight": (4, 3), "encoder.bias": (4,), "decoder.weight": (2, 4), "decoder.bias": (2,)}
    assert model.shapes() == layer | norm | mix | ends


def test_initial_leaves_have_the_declared_shapes_and_are_checked(model):
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    assert {name: leaf.shape for name, leaf in leaves.items()} == model.shapes()
    model.check(leaves)


def test_equal_seeds_give_equal_models_and_other_seeds_others():
    first, again, other = (build().initialize(np.random.default_rng(seed), init="legs") for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["encoder.weight"], other["encoder.weight"])


def test_weights_have_variance_one_over_fan_in():
    leaves = SequenceModel(S5(64, 2), 1, 200, 2).initialize(np.random.default_rng(0), init="legs")
    weight = leaves["encoder.weight"]
    assert (weight**2).mean() == pytest.approx(1 / 200, rel=5 * math.sqrt(2 / weight.size))


def test_uniform_weights_and_biases_lie_below_one_over_root_fan_in_and_embeddings_are_standard_normal():
    model = SequenceModel(S5(64, 2), 1, 200, 2, encoder="embedding", activation="full_glu")
    leaves = model.initialize(np.random.default_rng(0), init="legs", weights="uniform")
    for name in ("blocks.0.gate", "blocks.0.value", "decoder"):
        for part in ("weight", "bias"):
            leaf = leaves[f"{name}.{part}"]
            assert abs(leaf).max() <= 1 / 8
            assert (leaf**2).mean() == pytest.approx(1 / 3 / 64, rel=5 * math.sqrt(0.8 / leaf.size))
    assert (leaves["encoder.weight"] ** 2).mean() == pytest.approx(1, rel=5 * math.sqrt(2 / 12800))
    assert not leaves["encoder.bias"].any()
    assert not leaves["blocks.0.norm.bias"].any()
    linear = SequenceModel(S5(64, 2), 1, 200, 2).initialize(np.random.default_rng(0), init="legs", weights="uniform")
    assert 0.9 / math.sqrt(200) < abs(linear["encoder.weight"]).max() <= 1 / math.sqrt(200)


def test_weights_are_normal_or_uniform():
    with pytest.raises(ValueError, match=r"^weights: expected one of 'normal', 'uniform', got 'lecun'"):
        build().initialize(np.random.default_rng(0), weights="lecun")


# --- stored integers and pairs


def test_integers_become_input_by_scale_and_shift():
    model = build(input=Input((0.5, 1.0, 2.0), (1.0,)))
    u = np.random.default_rng(3).integers(0, 256, (3, L, D_INPUT), np.uint8)
    params = parameters(model)
    expected = model.apply(params, u * np.array([0.5, 1.0, 2.0]) + 1.0)
    assert_allclose(model.apply(params, u), expected, rtol=0, atol=1e-12)


def test_single_feature_needs_no_axis_of_its_own():
    model = build(d_input=1, input=Input((2.0,), (0.5,)), pooling="none")
    params, u = parameters(model), np.random.default_rng(3).integers(0, 256, (3, L), np.uint8)
    expected = model.apply(params, 2.0 * u[..., None] + 0.5)
    assert_allclose(model.apply(params, u), expected, rtol=0, atol=1e-12)
    assert_allclose(run_steps(model, params, u), expected, rtol=0, atol=1e-12)


def test_small_integers_are_tokens_too():
    model = build(encoder="embedding")
    params, u = parameters(model), inputs(model)
    assert np.array_equal(model.apply(params, u.astype(np.uint8)), model.apply(params, u))


@pytest.mark.parametrize("lengths", [None, np.array([[6, 4], [1, 6], [3, 3]])], ids=["whole", "padded"])
def test_pair_is_compared_by_features_of_both(lengths):
    model = build(pair=True)
    params, u = parameters(model), np.random.default_rng(4).standard_normal((3, 2, L, D_INPUT))
    single = build(d_output=H)
    alone = {name: value for name, value in params.items() if not name.startswith("pair")}
    alone |= {"decoder.weight": np.eye(H), "decoder.bias": np.zeros(H)}
    x1, x2 = (single.apply(alone, u[:, i], lengths=None if lengths is None else lengths[:, i]) for i in (0, 1))
    features = np.concatenate([x1, x2, x1 - x2, x1 * x2], axis=-1)
    expected = linear(params, "decoder", gelu(linear(params, "pair", features)))
    assert_allclose(model.apply(params, u, lengths=lengths), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": True, "pooling": "none"}, "^pooling: expected 'mean' or 'last' for pairs, got 'none'"),
        ({"input": Input((1.0, 2.0))}, "^input.scale: expected 1 number or d_input=3, one per input feature, got 2"),
        ({"input": (1.0, 0.0)}, r"^input: expected an Input or None, got \(1.0, 0.0\)"),
        ({"norm_momentum": 1.0}, r"^norm_momentum: expected a share in \[0, 1\), got 1.0"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_input_that_is_no_pair_is_refused():
    model = build(pair=True)
    with pytest.raises(
        ValueError, match=r"^u: expected shape \(..., 2, L\) or \(..., 2, L, d_input\): pairs, got \(3, 6, 3\)"
    ):
        model.apply(parameters(model), np.zeros((3, L, D_INPUT)))


@pytest.mark.parametrize("value", [1.0, "ab", (np.inf,)])
def test_scale_is_a_tuple_of_finite_numbers(value):
    with pytest.raises(ValueError, match=r"^scale: expected "):
        Input(value)


def test_input_survives_a_file(tmp_path):
    model = build(input=Input((0.5,), (1.0,)), pair=True, norm_momentum=0.8)
    save(tmp_path / "model.safetensors", model, parameters(model))
    assert load(tmp_path / "model.safetensors")[0] == model


# --- the optimiser


def test_C_has_a_rate_of_its_own_where_one_is_given():
    rule = Optimizer(lr=1e-2, total_steps=10, weight_decay=0.05, C_lr=4e-3)
    rates = {name: rule.group(f"blocks.0.layer.{name}").lr for name in ("C_re", "C_reverse_im", "D", "B_re")}
    assert rates == {"C_re": 4e-3, "C_reverse_im": 4e-3, "D": 1e-2, "B_re": 1e-3}
    assert rule.group("C_re").weight_decay == 0.05


def test_step_sizes_have_a_rate_of_their_own_without_decay_where_one_is_given():
    rule = Optimizer(lr=1e-2, total_steps=10, weight_decay=0.05, step_lr=2e-3)
    assert rule.group("blocks.0.layer.log_step") == Group(2e-3, 0.0)
    assert rule.group("blocks.0.layer.Lambda_re") == Group(1e-3, 0.0)
    assert Group(2e-3, 0.0) in rule.groups()
    with pytest.raises(ValueError, match=r"^step_lr: expected None with global_step_size, got 0.002; drop one"):
        Optimizer(lr=1e-2, total_steps=10, step_lr=2e-3, global_step_size=True)


@pytest.mark.parametrize("name", ["C_lr", "step_lr"])
def test_rates_of_single_leaves_are_positive(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected finite values > 0"):
        Optimizer(lr=1e-2, total_steps=10, **{name: 0.0})


@pytest.mark.parametrize("name", ["jax", "torch", "mlx"])
def test_a_batch_of_padding_alone_leaves_finite_leaves(name):
    """Batch norm over no sample: its moments are of nothing."""
    model = ptd.SequenceModel(ptd.S5(4, 4), 2, 3, 2, norm="batch")
    leaves = model.initialize(np.random.default_rng(0), init="legs")
    learner = ptd.backend(name).learner(model, leaves, ptd.Optimizer(lr=1e-2, total_steps=3), 0)
    learner.step(np.ones((2, 5, 3), np.float32), np.array([0, 1]), np.zeros(2, np.int32))
    for leaf, value in learner.parameters().items():
        assert np.all(np.isfinite(value)), leaf
