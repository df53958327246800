"""Bad input over the whole public surface: one line that names the argument, what was expected and what came.

The options of perturb_then_diagonalize have their own table in test_perturbation.py, files theirs in
test_parameters.py, names of backends theirs in test_registry.py.
"""

from __future__ import annotations

import dense
import numpy as np
import pytest

import ptd
from ptd import DSS, S4, S4D, S5, Optimizer, SequenceModel, hippo, modes

LAYER = S4D(2, 4)
PARAMS = dense.parameters(LAYER)
U = np.ones((5, 2))
STATE = np.zeros((2, 2, 2))
MODEL = SequenceModel(S5(4, 4), n_layers=2, d_input=3, d_output=2, pooling="last")
MODEL_PARAMS = MODEL.initialize(np.random.default_rng(0), init="legs")
TOKENS = SequenceModel(S5(4, 4), n_layers=1, d_input=3, d_output=2, encoder="embedding")
TOKEN_PARAMS = TOKENS.initialize(np.random.default_rng(0), init="legs")
UNSTABLE = modes.Modes(np.array([-1 + 1j, 1j]), np.eye(4, 2), np.eye(2, 4), np.ones(2))


def initialize(layer=LAYER, **options):
    return ptd.initialize(layer, np.random.default_rng(0), **options)


def apply(u=U, params=PARAMS, **call):
    return LAYER.apply(params, u, **call)


def padded(lengths):
    return LAYER.apply(PARAMS, U[None], lengths=lengths)


def step(u_k=U[0], state=STATE, **call):
    return LAYER.step(PARAMS, u_k, state, **call)


def model(**options):
    return SequenceModel(**{"layer": S5(4, 4), "n_layers": 1, "d_input": 1, "d_output": 1} | options)


def run_model(u, **call):
    return MODEL.apply(MODEL_PARAMS, u, **call)


def tokens(u):
    return TOKENS.apply(TOKEN_PARAMS, u)


def optimizer(**options):
    return Optimizer(**{"lr": 1e-3, "total_steps": 10} | options)


TWO_WAY = S4D(2, 4, bidirectional=True)
BAD = {
    # HiPPO and modes
    "N: expected a positive integer, got 0; pass N >= 1": lambda: hippo.legs(0),
    "N: expected a positive integer, got 2.0; pass N >= 1": lambda: hippo.legt(2.0),
    "N: expected a positive integer, got True; pass N >= 1": lambda: hippo.fout(True),
    "N: expected a positive integer, got '4'; pass N >= 1": lambda: hippo.normal_plus_low_rank("legs", "4"),
    "measure: expected one of 'fout', 'legs', 'legt', got 'lagt'": lambda: hippo.normal_plus_low_rank("lagt", 4),
    "N: expected a positive integer, got -1; pass N >= 1": lambda: modes.lin(-1),
    # layers
    "d_model: expected a positive integer, got 0; pass d_model >= 1": lambda: S4D(0, 4),
    "d_model: expected a positive integer, got 'a'; pass d_model >= 1": lambda: S5("a", 4),
    "d_state: expected a positive integer, got 1.5; pass d_state >= 1": lambda: S4(2, 1.5),
    "discretization: expected one of 'bilinear', 'zoh', got 'euler'": lambda: S5(2, 4, discretization="euler"),
    "discretization: expected one of 'bilinear', got 'zoh'": lambda: S4(2, 4, discretization="zoh"),
    "conj_sym: expected True or False, got 'no'": lambda: S4D(2, 4, conj_sym="no"),
    "bidirectional: expected True or False, got 1": lambda: S5(2, 4, bidirectional=1),
    "skip: expected True or False, got None": lambda: S5(2, 4, skip=None),
    "shared: expected True or False, got None": lambda: S4(2, 4, shared=None),
    "rank: expected 1 or 2, got 3; HiPPO matrices need no more": lambda: S4(2, 4, rank=3),
    "blocks: expected a positive integer, got 0; pass blocks >= 1": lambda: S5(2, 6, blocks=0),
    "blocks: expected a divisor of d_state=6, got 4": lambda: S5(2, 6, blocks=4),
    "kernel_length: expected 0 (DSS-exp) or a length (DSS-softmax), got -1": lambda: DSS(2, 4, kernel_length=-1),
    "DSS: expected conj_sym=False and shared=True, its definition, got conj_sym=True": lambda: DSS(2, 4, conj_sym=True),
    # initial parameters
    "init: expected one of 'inv', 'legs', 'lin', 'ptd', 'ptd-closed', 'rand', 'real', got 'nope'": lambda: initialize(
        init="nope"
    ),
    "init: expected one of 'fout', 'legs', 'legt', got 'ptd'; S4-PTD is S4D(init='ptd')": lambda: initialize(
        S4(2, 4), init="ptd"
    ),
    "init: expected modes with a low-rank factor of the layer's rank 1, got rank 2; set rank": lambda: initialize(
        S4(2, 4), init="legt"
    ),
    "init: expected modes with a low-rank factor of the layer's rank 1, got none; set rank": lambda: initialize(
        S4(2, 4), init=modes.legs(4)
    ),
    "init: expected 2 modes from d_state and conj_sym, got 4; build Modes": lambda: initialize(init=modes.legs(8)),
    "init: expected 1 modes from d_state and conj_sym, got 2; build Modes": lambda: initialize(
        S5(2, 4, blocks=2), init=modes.legs(4)
    ),
    "init: expected modes with Re Lambda < 0, got max Re Lambda = 0; the system": lambda: initialize(init=UNSTABLE),
    "B_init: expected one of 'hippo', 'lecun', got 'x'": lambda: initialize(S5(2, 4), init="legs", B_init="x"),
    "C_init: expected one of 'complex_normal', 'lecun',": lambda: initialize(S5(2, 4), init="legs", C_init="x"),
    "dt_min: expected finite values > 0, got 0; step sizes are times": lambda: initialize(dt_min=0),
    "dt_min: expected finite values > 0, got nan; step sizes": lambda: initialize(dt_min=np.nan),
    "dt_min: expected finite values > 0, got 'small'; step sizes": lambda: initialize(dt_min="small"),
    "dt_max: expected a finite value >= dt_min=0.001, got 1e-05": lambda: initialize(dt_max=1e-5),
    "dt_max: expected a finite value >= dt_min=0.001, got inf": lambda: initialize(dt_max=np.inf),
    "layer: expected a layer, got 's4d'; pass one of S5, S4D, DSS, S4; a model has model.initialize(rng)": lambda: (
        initialize("s4d")
    ),
    "rng: expected a np.random.Generator, got 0; pass np.random.default_rng": lambda: ptd.initialize(LAYER, 0),
    # running a layer
    "u: expected shape (..., L, H) with L >= 1 and H=2 from d_model, got (5, 3)": lambda: apply(np.ones((5, 3))),
    "u: expected shape (..., L, H) with L >= 1 and H=2 from d_model, got (0, 2)": lambda: apply(U[:0]),
    "u: expected shape (..., L, H) with L >= 1 and H=2 from d_model, got (2,)": lambda: apply(U[0]),
    "u: expected an array, got list; pass backend.asarray(u)": lambda: apply([[1.0, 2.0]]),
    "u: expected a real floating dtype, got int64; cast": lambda: apply(U.astype("int64")),
    "u: expected a real floating dtype, got complex128; cast": lambda: apply(U + 0j),
    "u: expected dtype float64 from the parameters, got float32; cast one of them": lambda: apply(U.astype("float32")),
    "params: expected the leaves of s4d, got none named B_im, B_re,": lambda: apply(params={}),
    "params: expected only the leaves of s4d, got also P_re; see": lambda: apply(params=PARAMS | {"P_re": U}),
    "D: expected shape (2,), a leaf of s4d, got (1,)": lambda: apply(params=PARAMS | {"D": np.ones(1)}),
    "state: expected shape (2, 2, 2), the batch axes of u, then": lambda: apply(state=np.zeros((2, 2))),
    "state: expected dtype float64 from the parameters, got complex128; a state is": lambda: apply(state=STATE + 0j),
    "lengths: expected values in 0..5, the length of u, got 6": lambda: padded([6]),
    "lengths: expected values in 0..5, the length of u, got -1": lambda: padded([-1]),
    "lengths: expected integers, got dtype float64": lambda: padded([2.5]),
    "lengths: expected integers, got dtype bool": lambda: padded([True]),
    "lengths: expected shape (1,), the batch axes of u, got (2,)": lambda: padded([1, 2]),
    "resets: expected boolean flags, got dtype int64; pass one flag": lambda: apply(resets=np.arange(5)),
    "resets: expected boolean flags, got dtype <U3; pass one flag": lambda: apply(resets="yes"),
    "resets: expected a shape that broadcasts to (5,), the batch": lambda: apply(resets=np.ones(4, bool)),
    "step_scale: expected finite values > 0, got 0.0; it multiplies": lambda: apply(step_scale=0.0),
    "step_scale: expected finite values > 0, got -1.0; it multiplies": lambda: apply(step_scale=-np.ones(5)),
    "step_scale: expected finite values > 0, got nan; it multiplies": lambda: apply(step_scale=np.nan),
    "step_scale: expected finite values > 0, got 'fast'; it": lambda: apply(step_scale="fast"),
    "step_scale: expected finite values > 0, got 1j; it multiplies": lambda: apply(step_scale=1j),
    "step_scale: expected a shape that broadcasts to (5,), the": lambda: apply(step_scale=np.ones(4)),
    "form: expected one of 'chunked', 'convolution', 'scan', got 'fft'": lambda: apply(form="fft"),
    "form: expected 'scan' with resets or per-sample steps, got": lambda: apply(form="convolution", resets=[False] * 5),
    "form: expected 'scan' with resets or per-sample steps, got 'c": lambda: apply(
        form="convolution", step_scale=np.ones(5)
    ),
    # one step
    "u: expected shape (..., L, H) with L >= 1 and H=2 from d_model, got (1, 3)": lambda: step(np.ones(3)),
    "u_k: expected shape (..., H) with H=2 from d_model, got ()": lambda: step(np.float64(1)),
    "u_k: expected an array, got list": lambda: step([1.0, 2.0]),
    "state: expected an array, got list": lambda: step(state=[0.0]),
    "state: expected an array, the state before u_k, got None; begin with module.initial_state(batch), zeros": lambda: (
        step(state=None)
    ),
    "u_k: expected one sample, shape (2,) from state, got (5, 2); step u[..., k, :]; apply runs": lambda: step(U),
    "u_k: expected one sample, shape (3, 2) from state, got (3, 5, 2); step u[..., k, :]": lambda: step(
        np.ones((3, 5, 2)), np.zeros((3, 2, 2, 2))
    ),
    "state: expected the state before u_k, got None; begin with module.initial_state(batch)": lambda: (
        ptd.backend("numpy").module(MODEL, MODEL_PARAMS).step(np.ones(3), None)
    ),
    "batch: expected a tuple of sizes, as (8,), or (), got 3; pass the leading axes": lambda: (
        ptd.backend("numpy").module(LAYER, PARAMS).initial_state(3)
    ),
    "state: expected shape (2, 2, 2), the batch axes of u, then layer": lambda: step(state=STATE[0]),
    "step_scale: expected finite values > 0, got 0; it multiplies": lambda: step(step_scale=0),
    "step_scale: expected a shape that broadcasts to (), the batch": lambda: step(step_scale=np.ones(4)),
    "bidirectional: expected False for step mode, got True; a right-to-left": lambda: TWO_WAY.step(
        dense.parameters(TWO_WAY), U[0], np.zeros(TWO_WAY.state_shape())
    ),
    # models
    "layer: expected a layer, as S5(d_model=64, d_state=64), got 's5'": lambda: model(layer="s5"),
    "n_layers: expected a positive integer, got 0": lambda: model(n_layers=0),
    "d_input: expected a positive integer, got -1": lambda: model(d_input=-1),
    "d_output: expected a positive integer, got None": lambda: model(d_output=None),
    "encoder: expected one of 'embedding', 'linear', got 'x'": lambda: model(encoder="x"),
    "norm: expected one of 'batch', 'layer', 'none', got 'rms'": lambda: model(norm="rms"),
    "activation: expected one of 'full_glu', 'gelu', 'half_glu1', 'half_glu2', got": lambda: model(activation="relu"),
    "pooling: expected one of 'last', 'mean', 'none', got 'max'": lambda: model(pooling="max"),
    "prenorm: expected True or False, got 'yes'": lambda: model(prenorm="yes"),
    "final_norm: expected False for norm='none', got True; choose": lambda: model(norm="none", final_norm=True),
    "gelu: expected one of 'erf', 'tanh', got 'sigmoid'": lambda: model(gelu="sigmoid"),
    "norm_epsilon: expected finite values > 0, got 0": lambda: model(norm_epsilon=0),
    "dropout: expected a rate in [0, 1), got 1.0": lambda: model(dropout=1.0),
    "dropout: expected a rate in [0, 1), got -0.1": lambda: model(dropout=-0.1),
    "dropout: expected a rate in [0, 1), got nan": lambda: model(dropout=float("nan")),
    "dropout: expected a rate in [0, 1), got '0'": lambda: model(dropout="0"),
    "u: expected shape (..., L, 3) from d_input, got (5, 4)": lambda: run_model(np.ones((5, 4))),
    "u: expected dtype float64 from the parameters, got int64": lambda: run_model(np.ones((5, 3), "int64")),
    "lengths: expected values in 0..5, the length of u, got 9": lambda: run_model(np.ones((5, 3)), lengths=9),
    "layer_noise: expected 2 arrays, one per block, got 1": lambda: run_model(np.ones((5, 3)), layer_noise=[0.0]),
    "layer_noise: expected a shape that broadcasts to (5, 4), the input of each layer, got (2, 5, 4)": lambda: (
        run_model(np.ones((5, 3)), layer_noise=[0.0, np.ones((2, 5, 4))])
    ),
    "params: expected the leaves of the model, got none named": lambda: MODEL.apply({}, np.ones((5, 3))),
    "u: expected integer tokens, got dtype float64; use encoder='linear'": lambda: tokens(np.zeros(3)),
    "u: expected tokens in 0..2 from d_input, got 3": lambda: tokens(np.array([0, 3])),
    "u: expected tokens in 0..2 from d_input, got -1": lambda: tokens(np.array([0, -1])),
    "states: expected 2, one per block, got 1; see": lambda: MODEL.step(MODEL_PARAMS, np.ones(3), [np.zeros((2, 2))]),
    "u: expected shape (..., L, 3) from d_input, got (1, 4)": lambda: MODEL.step(MODEL_PARAMS, np.ones(4), [0, 0]),
    "params: expected the leaves of the model, got none": lambda: MODEL.step({}, np.ones(3), [0, 0]),
    # training
    "lr: expected one number > 0, got [0.1, 0.2]": lambda: optimizer(lr=[0.1, 0.2]),
    "dt_min: expected one number > 0, got [0.001]; step sizes are times": lambda: initialize(dt_min=[1e-3]),
    "seed: expected an integer >= 0, got -1; pass seed=0": lambda: modes.rand(4, seed=-1),
    "sequences: expected an array, got list; pass backend.asarray(sequences)": lambda: ptd.pack([[[1.0], [2.0]]]),
    "lr: expected finite values > 0, got 0": lambda: optimizer(lr=0),
    "lr: expected finite values > 0, got 'fast'": lambda: optimizer(lr="fast"),
    "ssm_lr: expected finite values > 0, got -1": lambda: optimizer(ssm_lr=-1),
    "total_steps: expected a positive integer, got 0": lambda: optimizer(total_steps=0),
    "warmup_steps: expected an integer, 0 <= warmup_steps < total_steps=10, got 10": lambda: optimizer(warmup_steps=10),
    "warmup_steps: expected an integer, 0 <= warmup_steps < total_steps=10, got 1.5": lambda: optimizer(
        warmup_steps=1.5
    ),
    "weight_decay: expected a finite number >= 0, got -1": lambda: optimizer(weight_decay=-1),
    "weight_decay: expected a finite number >= 0, got inf": lambda: optimizer(weight_decay=np.inf),
    "rule: expected one of 'BandCdecay', 'BfastandCdecay', 'standard', got 'x'": lambda: optimizer(rule="x"),
    "frozen: expected a tuple of leaf names, got 'Lambda'; pass ('Lambda',)": lambda: optimizer(frozen="Lambda"),
    # sequences
    "sequences: expected at least one array (L_i, H), got none": lambda: ptd.pack([]),
    "sequences: expected arrays (L_i, H) of one width H, got shapes [(1, 2), (1, 3)]": lambda: ptd.pack(
        [np.ones((1, 2)), np.ones((1, 3))]
    ),
    "sequences: expected arrays (L_i, H) of one width H, got shapes [(3,)]": lambda: ptd.pack([np.ones(3)]),
    "lengths: expected a sum of 3, the packed length, got 2": lambda: ptd.unpack(np.ones((3, 1)), [1, 1]),
    "lengths: expected integers >= 0, got [4, -1]; pass": lambda: ptd.unpack(np.ones((3, 1)), [4, -1]),
    "lengths: expected integers >= 0, got [1.5, 1.5]; pass": lambda: ptd.unpack(np.ones((3, 1)), [1.5, 1.5]),
    "lengths: expected integers >= 0, got [True, True, True]; pass": lambda: ptd.unpack(np.ones((3, 1)), [True] * 3),
    "scale: expected finite numbers, got -inf": lambda: ptd.Input((-np.inf,)),
    "scale: expected one number, or one per input feature, got none": lambda: ptd.Input((), ()),
    # backends and files
    "name: expected the name of a backend, got None": lambda: ptd.backend(None),
    "dtype: expected one of 'float32', 'float64', got 'float16'": lambda: ptd.backend("numpy").asarray(U, "float16"),
    "dtype: expected one of 'float32', 'float64', got 'half'": lambda: ptd.backend("numpy").S5(
        2, 4, init="legs", dtype="half"
    ),
    "description: expected a layer or a SequenceModel, got 's4d'": lambda: ptd.save("never-written", "s4d", PARAMS),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named_in_one_line(message):
    with pytest.raises(ValueError, match=r"^[^\n]+: expected [^\n]+, got [^\n]+$") as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", ["nonsense", "float32", "float64", 16])
@pytest.mark.parametrize(
    ("name", "expected"),
    [("torch", "None, or one of 'bfloat16', 'float16'"), ("jax", "None, or one of 'bfloat16'"), ("mlx", "None")],
)
def test_activations_that_a_backend_has_not_are_refused_by_name(name, expected, value):
    backend = ptd.backend(name)
    message = f"activations: expected {expected}, got {value!r}; None keeps the parameters' dtype"
    with pytest.raises(ValueError, match=f"^{message}$"):
        backend.learner(MODEL, MODEL_PARAMS, optimizer(), 0, activations=value)
    leaves = {leaf: backend.asarray(array, "float32") for leaf, array in MODEL_PARAMS.items()}
    with pytest.raises(ValueError, match=f"^{message}$"):
        backend.apply_model(MODEL, leaves, backend.asarray(np.ones((5, 3)), "float32"), activations=value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(5, np.float32), "real values of shape (5, 2) for outputs of shape (5, 2), got (5,)"),
        (np.zeros((5, 1), np.int32), "class numbers of shape (5,) for outputs of shape (5, 2), got (5, 1)"),
    ],
    ids=["real", "classes"],
)
@pytest.mark.parametrize("name", ["jax", "torch", "mlx"])
def test_targets_that_would_be_broadcast_are_refused(name, targets, message):
    learner = ptd.backend(name).learner(MODEL, MODEL_PARAMS, optimizer(), 0)
    with pytest.raises(ValueError, match=r"^targets") as error:
        learner.step(np.ones((5, 6, 3), np.float32), targets)
    assert str(error.value) == f"targets: expected {message}; reshape them"


FOREIGN = [(own, other) for own in ("numpy", "jax", "torch", "mlx") for other in ("numpy", "torch", "mlx")]


@pytest.mark.parametrize(("own", "other"), [(a, b) for a, b in FOREIGN if a != b and (a, b) != ("jax", "numpy")])
def test_arrays_of_another_framework_are_named_with_what_converts_them(own, other):
    be, foreign = ptd.backend(own), ptd.backend(other).asarray(U, "float32")
    params = {name: be.asarray(value, "float32") for name, value in PARAMS.items()}
    theirs = {name: ptd.backend(other).asarray(value, "float32") for name, value in PARAMS.items()}
    u, state = be.asarray(U, "float32"), be.asarray(STATE, "float32")
    with pytest.raises(ValueError, match=r"^u: .*backend.asarray\("):
        be.apply(LAYER, params, foreign)
    message = rf"^u: expected an array of {other}, as the parameters are, got one of {own}; .*backend.asarray\("
    with pytest.raises(ValueError, match=message):
        be.apply(LAYER, theirs, u)
    with pytest.raises(ValueError, match=r"^u(_k)?: .*backend.asarray\("):
        be.step(LAYER, params, foreign[0], state)
    with pytest.raises(
        ValueError, match=rf"^state: expected an array of {own}, as the parameters are, got one of {other}"
    ):
        be.step(LAYER, params, u[0], ptd.backend(other).asarray(STATE, "float32"))
    assert be.apply(LAYER, params, be.asarray(foreign, "float32")).shape == U.shape


@pytest.mark.parametrize("name", ["jax", "torch", "mlx"])
def test_learner_of_a_module_names_what_it_takes(name):
    be = ptd.backend(name)
    module = be.module(MODEL, MODEL_PARAMS)
    message = (
        r"^model: expected a SequenceModel, got a Module; of a module pass module.description and module.leaves\(\)$"
    )
    with pytest.raises(ValueError, match=message):
        be.learner(module, module.leaves(), optimizer(), 0)


@pytest.mark.parametrize("name", ["gradients", "compiled", "learner"])
def test_reference_refuses_what_it_cannot_do_with_the_reason(name):
    with pytest.raises(NotImplementedError, match=r"^numpy: no [a-z]+; NumPy has no [a-z ]+$"):
        getattr(ptd.backend("numpy"), name)(*[None] * {"gradients": 2, "compiled": 1, "learner": 4}[name])


def test_learners_of_one_device_refuse_several():
    message = "^devices: expected 1, what mlx trains on, got 2; the jax and torch backends take several$"
    with pytest.raises(ValueError, match=message):
        ptd.backend("mlx").learner(None, {}, None, 0, devices=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: initialize(colour="red"),
            "S4D: expected only the options B_init, dt_max, dt_min, init, got also colour",
        ),
        (
            lambda: initialize(S4(2, 4), B_init="hippo"),
            "S4: expected only the options dt_max, dt_min, init, got also B",
        ),
        (
            lambda: ptd.backend("numpy").S5(8, 8, dropout=0.1, device="cuda"),
            "S5: expected only the options B_init, C_init, bidirectional, blocks, conj_sym, discretization, dt_max, "
            "dt_min, dtype, init, seed, skip, got also device, dropout",
        ),
    ],
    ids=["initialize", "of another layer", "constructor"],
)
def test_unknown_option_is_named_beside_those_there_are(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


def test_narrow_lengths_of_a_packed_array_do_not_wrap():
    pieces = ptd.unpack(np.arange(300)[:, None], np.array([200, 100], np.uint8))
    assert [len(piece) for piece in pieces] == [200, 100]
    assert pieces[1][0, 0] == 200


def test_leaves_are_frozen_by_name_by_part_and_by_dotted_name():
    rule = Optimizer(1e-2, 9, frozen=("B", "Lambda_im", "blocks.1.layer.D"))
    names = ("blocks.0.layer.B_re", "Lambda_im", "Lambda_re", "blocks.1.layer.D", "blocks.0.layer.D")
    assert [rule.group(name).lr == 0 for name in names] == [True, True, False, True, False]


@pytest.mark.parametrize(
    "options",
    [{"frozen": ("Lambda", "B", "log_step")}, {"C_lr": 4e-3, "frozen": ("C",)}, {"C_lr": 4e-3, "frozen": ("weight",)}],
)
def test_groups_of_a_rule_are_those_of_every_leaf(options):
    """The one name that stood for a group may be frozen, and others of the group not."""
    rule = Optimizer(1e-2, 9, **options)
    model = SequenceModel(S4(4, 8, bidirectional=True), n_layers=1, d_input=1, d_output=2, norm="batch")
    assert {rule.group(name) for name in model.shapes()} <= {*rule.groups()}


def test_numbers_of_an_input_may_be_an_array():
    assert ptd.Input(np.array([1.0, 2.0]), np.zeros(2)) == ptd.Input((1.0, 2.0), (0.0, 0.0))
