"""The torch backend as torch users meet it: modules, autocast, transformations, export, processes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ptd
from ptd.arrays import as_complex
from ptd_torch import backend
from ptd_torch.scan import scan

be = backend.on("cpu")
LAYER = ptd.S5(4, 8)
U = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32))
MODEL = ptd.SequenceModel(ptd.S4D(8, 4), 2, 4, 3, norm="batch")
OPTIMIZER = ptd.Optimizer(lr=1e-2, total_steps=9, ssm_lr=1e-3, weight_decay=0.1, frozen=("log_step",))


@pytest.fixture(scope="module")
def params():
    drawn = ptd.initialize(LAYER, np.random.default_rng(0), init="legs")
    return {name: be.asarray(value, "float32") for name, value in drawn.items()}


@pytest.fixture(scope="module")
def y(params):
    return be.apply(LAYER, params, U)


@pytest.fixture
def layer():
    return be.S5(4, 8, init="legs")


@pytest.fixture(scope="module")
def leaves():
    return MODEL.initialize(np.random.default_rng(0), init="legs")


@pytest.fixture
def model(leaves):
    return be.module(MODEL, leaves).eval()


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def squares(params, u):
    return be.apply(LAYER, params, u).square().mean()


# --- modules ---------------------------------------------------------------------------------------------------


def test_state_dict_holds_real_tensors_under_the_names_of_core(model, leaves):
    state = model.state_dict()
    assert state.keys() == leaves.keys()
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_state_dict_loads_into_another_module(model, leaves):
    other = be.module(MODEL, {name: np.zeros_like(value) for name, value in leaves.items()}).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(U), model(U))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_of_a_module_has_its_outputs_and_leaves_of_its_own(copied, model):
    other, before = copied(model), model(U)
    assert torch.equal(other(U), before)
    with torch.no_grad():
        other.decoder.weight.zero_()
    assert torch.equal(model(U), before)


def test_module_in_float64_keeps_its_outputs(layer):
    expected = layer(U)
    assert layer.to(torch.float64)(U.double()).dtype == torch.float64
    close(layer(U.double()).float(), expected)


@pytest.mark.parametrize("narrowed", ["half", "bfloat16"])
def test_narrower_parameters_are_refused_in_one_line(narrowed, layer):
    message = r"^dtype: expected float32 or float64 parameters, got torch\.\w+16; [^\n]*torch\.autocast[^\n]*$"
    with pytest.raises(ValueError, match=message):
        getattr(layer, narrowed)()
    assert layer.Lambda_re.dtype == torch.float32


def test_print_shows_the_description(layer):
    assert repr(layer.description) in repr(layer)


def test_device_is_the_one_named():
    assert be.device() == "cpu"
    assert be.S5(4, 8, init="legs").Lambda_re.device == torch.device("cpu")


def test_kernel_path_on_a_cpu_is_tensors(layer, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert (be.kernel_path(), layer.kernel_path) == ("torch", "torch")


def test_module_stepped_sample_by_sample_equals_its_forward(layer):
    state, outputs = layer.initial_state((3,)), []
    for u_k in U.unbind(1):
        y_k, state = layer.step(u_k, state)
        outputs.append(y_k)
    expected, final = layer(U, return_state=True)
    close(torch.stack(outputs, 1), expected)
    close(state, final)


def test_parameter_groups_put_leaves_at_the_rates_of_the_optimizer(layer):
    wrapped = torch.nn.Sequential(torch.nn.Linear(4, 4), layer)
    names = {parameter: name.rpartition(".")[2] for name, parameter in wrapped.named_parameters()}
    groups = be.parameter_groups(wrapped, OPTIMIZER)
    found = {(g["lr"], g["weight_decay"]): {names[parameter] for parameter in g["params"]} for g in groups}
    state_space = {"Lambda_re", "Lambda_im", "B_re", "B_im"}
    assert found == {(1e-3, 0.0): state_space, (1e-2, 0.1): {"C_re", "C_im", "D", "weight", "bias"}}


def test_frozen_leaf_stays_while_the_others_train(layer):
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimizer = torch.optim.AdamW(be.parameter_groups(layer, OPTIMIZER))
    layer(U).square().mean().backward()
    optimizer.step()
    assert {name for name, value in layer.named_parameters() if torch.equal(value, before[name])} == {"log_step"}


# --- beside a compiler in another thread -----------------------------------------------------------------------


@pytest.fixture
def compiling_elsewhere(monkeypatch):
    """torch.compiler.is_compiling() is true in every thread while one compiles (torch 2.13)."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    assert torch.compiler.is_compiling()


def losses(described):
    leaves = described.initialize(np.random.default_rng(0), init="legs")
    learner = be.learner(described, leaves, OPTIMIZER, 0)
    u, order = np.random.default_rng(1).standard_normal((8, 90, 3)), np.arange(8).reshape(4, 2)
    return learner.train(learner.place(u.astype(np.float32), np.arange(8) % 2), order)


FEW_FEATURES = {layer.kind: ptd.SequenceModel(layer, 1, 3, 2, norm="batch") for layer in (LAYER, ptd.S4D(4, 256))}


@pytest.fixture(scope="module", params=FEW_FEATURES.values(), ids=FEW_FEATURES)
def trained_alone(request):
    return request.param, losses(request.param)


def test_training_is_bit_for_bit_the_same_while_another_thread_compiles(trained_alone, compiling_elsewhere):
    described, expected = trained_alone
    assert (losses(described) == expected).all()


def test_values_are_looked_at_while_another_thread_compiles(params, compiling_elsewhere):
    with pytest.raises(ValueError, match=r"^lengths: expected values in 0\.\.9, the length of u, got 99"):
        be.apply(LAYER, params, U, lengths=torch.tensor([99, 1, 1]))


# --- mixed precision -------------------------------------------------------------------------------------------


def test_autocast_runs_activations_in_bfloat16_beside_float32_parameters(layer):
    expected = layer(U)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(U)
    assert (found.dtype, layer.Lambda_re.dtype) == (torch.bfloat16, torch.float32)
    close(found.float(), expected, 0.02 * expected.abs().max().item())


def test_training_under_autocast_lowers_the_loss(model):
    optimizer, targets, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.tensor([0, 1, 2]), []
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(U).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_float16_activations_run_beside_float32_parameters(params, y):
    found = be.apply(LAYER, params, U.half())
    assert found.dtype == torch.float16
    close(found.float(), y, 0.004 * y.abs().max().item())


# --- transformations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [{}, {"form": "scan"}, {"step_scale": [0.5, 2.0] * 4 + [1.0]}])
def test_vmap_over_the_batch_equals_the_batch(call, params):
    found = torch.func.vmap(lambda u: be.apply(LAYER, params, u, **call))(U)
    close(found, be.apply(LAYER, params, U, **call))


def test_functional_gradient_equals_that_of_backward(params):
    expected = be.gradients(lambda **params: squares(params, U), params)
    found = torch.func.grad(squares)(params, U)
    assert found.keys() == expected.keys()
    close(found, expected)


@pytest.mark.parametrize("form", ["scan", "chunked"])
def test_gradients_per_sample_equal_gradients_of_samples(form, params):
    def loss(params, u):
        return be.apply(LAYER, params, u, form=form).square().mean()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, U)
    samples = [torch.func.grad(loss)(params, u) for u in U]
    close(found, {name: torch.stack([sample[name] for sample in samples]) for name in found})


@pytest.mark.parametrize("kind", [ptd.S4, ptd.S4D, ptd.DSS, ptd.S5])
def test_vmap_runs_every_kind_of_layer(kind):
    layer = be.new(kind, 4, 8, init="legs")
    close(torch.func.vmap(layer)(U), layer(U))


@pytest.mark.parametrize("call", [{}, {"form": "scan"}, {"form": "scan", "step_scale": [0.5, 2.0] * 4 + [1.0]}])
@pytest.mark.parametrize("kind", [ptd.S4D, ptd.S5])
def test_vmap_over_an_ensemble_of_layers_equals_each_gradient_included(kind, call):
    def loss(params):
        y = be.apply(kind(4, 8), params, U, **call)
        return y.square().mean(), y

    ensemble = [dict(be.new(kind, 4, 8, init="legs", seed=seed).state_dict()) for seed in (0, 1)]
    stacked = {name: torch.stack([params[name] for params in ensemble]) for name in ensemble[0]}
    found = torch.func.vmap(torch.func.grad(loss, has_aux=True))(stacked)
    for i, params in enumerate(ensemble):
        expected = torch.func.grad(loss, has_aux=True)(params)
        close(({name: value[i] for name, value in found[0].items()}, found[1][i]), expected)


@pytest.mark.parametrize("kind", [ptd.S4, ptd.S4D])
def test_convolution_form_of_an_empty_batch_of_states_is_empty(kind):
    layer = be.module(kind(4, 8), ptd.initialize(kind(4, 8), np.random.default_rng(0), init="legs"))
    state = torch.zeros(layer.description.state_shape((0,)))
    assert layer(torch.zeros(0, 5, 4), state=state, form="convolution").shape == (0, 5, 4)


def test_checkpointed_activations_give_the_same_gradient(params):
    expected = be.gradients(lambda **params: squares(params, U), params)
    found = be.gradients(lambda **params: checkpoint(squares, params, U, use_reentrant=False), params)
    close(found, expected, 0)


# --- the operator ----------------------------------------------------------------------------------------------


def planes(*shape):
    """Random planes of modulus about 1/2 in float64, to be differentiated."""
    return torch.from_numpy(np.random.default_rng(len(shape)).uniform(-0.5, 0.5, shape)).requires_grad_()


SHARED, PER_GROUP, PER_STEP = planes(2, 2), planes(2, 2, 2), planes(4, 5, 2, 2)
BOTH_WAYS, ONE_WAY = planes(4, 5, 2, 2, 2), planes(4, 5, 1, 2, 2)
CALLS = [
    (SHARED, ONE_WAY, False),
    (PER_GROUP, ONE_WAY, False),
    (PER_STEP, ONE_WAY, False),
    (SHARED, BOTH_WAYS, True),
    (PER_GROUP, BOTH_WAYS, True),
]


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize(("a", "drive", "exclusive"), CALLS)
def test_scan_has_the_gradient_of_its_values(a, drive, exclusive, starts):
    x0 = planes(4, drive.shape[2], 2, 2) if starts else None
    results = 2 if exclusive else 1
    assert torch.autograd.gradcheck(lambda *tensors: scan(*tensors, exclusive)[:results], (a, drive, x0))


@pytest.mark.parametrize(("a", "drive", "exclusive"), CALLS)
def test_scan_is_a_well_formed_operator(a, drive, exclusive):
    torch.library.opcheck(torch.ops.ptd.scan.default, (a, drive, planes(4, drive.shape[2], 2, 2), exclusive))


@pytest.mark.parametrize(
    ("a", "drive", "exclusive", "message"),
    [
        (PER_STEP, ONE_WAY, True, r"^exclusive: expected False with coefficients per step, got True"),
        (SHARED, BOTH_WAYS, False, r"^drive: expected one direction unless exclusive, got \(4, 5, 2, 2, 2\)"),
    ],
)
def test_scan_refuses_what_has_no_gradient(a, drive, exclusive, message):
    with pytest.raises(ValueError, match=message):
        scan(a, drive, None, exclusive)


def test_second_derivative_is_refused(params):
    slope = torch.func.grad(lambda scale: squares(params, scale * U))
    with pytest.raises(RuntimeError, match=r"^gradients: .*of the scan under torch.func.grad, got a second"):
        torch.func.grad(slope)(torch.tensor(1.0))


# --- graphs ----------------------------------------------------------------------------------------------------


class Step(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, u_k, state):
        return self.layer.step(u_k, state)


def test_forward_is_one_graph_under_torch_compile(layer):
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    close(compiled(U), layer(U))


def test_exported_forward_equals_the_module(layer):
    exported = torch.export.export(layer, (U,))
    close(exported.module()(2 * U), layer(2 * U))


def test_exported_step_equals_step(layer):
    state = torch.ones(layer.description.state_shape((3,)))
    exported = torch.export.export(Step(layer), (U[:, 0], layer.initial_state((3,))))
    close(exported.module()(U[:, 1], state), layer.step(U[:, 1], state))


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch 2.13's exporter calls what it deprecates
def test_step_as_onnx_equals_step(layer, tmp_path):
    torch.onnx.export(Step(layer).eval(), (U[:, 0], layer.initial_state((3,))), tmp_path / "step.onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    u_k, state = U[:, 1], torch.ones(layer.description.state_shape((3,)))
    named = zip((given.name for given in session.get_inputs()), (u_k.numpy(), state.numpy()), strict=True)
    y_k, state_k = (torch.from_numpy(found) for found in session.run(None, dict(named)))
    close((y_k, state_k), layer.step(u_k, state))


# --- processes -------------------------------------------------------------------------------------------------


def test_two_processes_equal_one(tmp_path):
    """A step under DDP and one under FSDP2; see torch_processes.py.

    Four seconds, nearly all imports of one interpreter; more where others leave it a few percent of a core.
    """
    script = Path(__file__).with_name("torch_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, tmp_path / "meeting-point"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


def test_kernels_of_the_convolution_form_keep_their_digits_under_autocast():
    w, a = (as_complex(torch.randn(2, 3), torch.randn(2, 3) / 3) for _ in range(2))
    expected = backend.kernels.vandermonde(w, a, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = backend.kernels.vandermonde(w, a, 20)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


# --- second derivatives, training mode, host values ------------------------------------------------------------


@pytest.mark.parametrize("form", [None, "scan", "chunked", "convolution"])
@pytest.mark.parametrize("described", [ptd.S5(3, 4), ptd.S4D(3, 4, bidirectional=True), ptd.S4(2, 4)], ids=str)
def test_second_derivatives_of_every_form(described, form):
    module = be.new(type(described), dtype="float64", init="legs", **dataclasses.asdict(described))
    u = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 5, described.d_model))).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda u: module(u, form=form), (u,))


@pytest.mark.parametrize(("name", "bound"), [("Lambda_re", 1e-2), ("Lambda_im", 1e-2), ("P_im", 1e-4), ("C_re", 1e-4)])
def test_gradients_of_s4s_convolution_keep_their_digits_over_many_windows(name, bound):
    """On the unit circle, 400 windows of LegT had gradients by Lambda of no correct digit."""
    layer, rng = ptd.S4(2, 16, rank=2), np.random.default_rng(1)
    drawn = ptd.initialize(layer, np.random.default_rng(0), init="legt", dt_min=0.1, dt_max=0.1)
    u, weights = (torch.from_numpy(rng.standard_normal((4096, 2)).astype(np.float32)) for _ in range(2))

    def gradient(dtype, form):
        leaves = {key: torch.from_numpy(value.astype(np.float32)).to(dtype) for key, value in drawn.items()}
        leaf = leaves[name].requires_grad_()
        return torch.autograd.grad((be.apply(layer, leaves, u.to(dtype), form=form) * weights).sum(), leaf)[0]

    exact = gradient(torch.float64, "chunked")
    close(gradient(torch.float32, "convolution").double(), exact, bound * exact.abs().max())


def test_training_mode_drops_out_and_norms_by_the_batch():
    described = ptd.SequenceModel(ptd.S5(8, 4), 1, 4, 3, norm="batch", norm_momentum=0.5, dropout=0.5)
    module = be.module(described, described.initialize(np.random.default_rng(0), init="legs"))
    assert module.training
    before = module.get_buffer("blocks.0.norm.mean").clone()
    expected = module.eval()(U)
    module.train()
    torch.manual_seed(0)
    first, second = module(U), module(U)
    assert (first - second).abs().max() > 1e-3  # other masks
    first.sum().backward()
    assert module.get_parameter("encoder.weight").grad.abs().max() > 0
    encoded = U @ module.get_parameter("encoder.weight").T + module.get_parameter("encoder.bias")
    moved = before + (1 - 0.5**2) * (encoded.mean((0, 1)) - before)
    close(module.get_buffer("blocks.0.norm.mean"), moved.detach(), 1e-5)
    module.eval()
    module.get_buffer("blocks.0.norm.mean").copy_(before)
    module.get_buffer("blocks.0.norm.var").copy_(torch.ones_like(before))
    close(module(U), expected)


def test_host_steps_are_checked_and_keep_their_digits():
    module = be.S5(4, 8, init="legs", dtype="float64")
    u, state = U.double(), module.initial_state((3,))
    for bad in ([-1.0, 2.0, 1.0], np.array([1.0, np.nan, 1.0]), -2.0):
        with pytest.raises(ValueError, match=r"^step_scale: expected finite values > 0"):
            module.step(u[:, 0], state, step_scale=bad)
    scales = [0.1, 0.7, 1.3]
    found, expected = (
        module.step(u[:, 0], state, step_scale=s)[0] for s in (scales, torch.tensor(scales, dtype=torch.float64))
    )
    close(found, expected, 0.0)


def test_input_on_another_device_than_the_parameters_is_refused():
    """A module that was never materialised returned memory as it found it."""
    module = be.S5(4, 8, init="legs").to("meta")
    model = be.module(MODEL, MODEL.initialize(np.random.default_rng(0))).to("meta")
    message = "^u(_k)?: expected a tensor on meta, as the parameters, got one on cpu; move either$"
    for call in (lambda: module(U), lambda: module.step(U[:, 0], module.initial_state((3,))), lambda: model(U)):
        with pytest.raises(ValueError, match=message):
            call()


def test_numbers_and_lists_of_a_call_compile():
    module = be.S5(4, 8, init="legs")
    for call in ({"step_scale": 0.5}, {"lengths": [9, 3, 0]}):
        compiled = torch.compile(lambda u, call=call: module(u, **call), backend="aot_eager", fullgraph=True)
        close(compiled(U), module(U, **call))
    step = torch.compile(lambda u, s: module.step(u, s, step_scale=0.5)[0], backend="aot_eager", fullgraph=True)
    state = module.initial_state((3,))
    close(step(U[:, 0], state), module.step(U[:, 0], state, step_scale=0.5)[0])


def test_modules_own_their_leaves(layer):
    other = be.module(LAYER, layer.leaves())
    twin = be.module(LAYER, {name: value.detach() for name, value in layer.named_parameters()})
    with torch.no_grad():
        twin.get_parameter("D").zero_()
    torch.testing.assert_close(layer.D, other.D)


def test_foreign_arrays_are_named(layer):
    with pytest.raises(ValueError, match=r"^u: expected a torch tensor, got ndarray; pass backend.asarray\(u\)"):
        layer(U.numpy())
    with pytest.raises(ValueError, match=r"^u_k: expected a torch tensor, got ndarray"):
        layer.step(U[0].numpy(), layer.initial_state())
    with pytest.raises(ValueError, match=r"^params: expected leaves of one dtype.*torch.float64 for C_re"):
        be.apply(LAYER, layer.arrays() | {"C_re": layer.C_re.double()}, U)


@pytest.mark.parametrize("name", ["meta", "mps", "cuda:99", "gpu", "cpu:x"])
def test_device_that_torch_does_not_find_is_refused_where_it_is_named(name):
    count = torch.cuda.device_count()
    message = (
        rf"^device: expected 'cpu', or a GPU as 'cuda:0', got '{name}'; torch {torch.__version__} finds {count} GPUs"
    )
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        backend.on(name)


def test_gpu_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"^device: .* got 'cuda'; torch .* finds 0 GPUs here$"):
        backend.on("cuda")


@pytest.mark.parametrize("batch", [2, "2", (2.0,), (-1,), None], ids=repr)
def test_batch_of_a_state_is_a_tuple_of_sizes(layer, batch):
    message = r"^batch: expected a tuple of sizes, as \(8,\), or \(\), got "
    for call in (layer.initial_state, lambda batch: backend.stepper(layer, batch)):
        with pytest.raises(ValueError, match=message):
            call(batch)


def test_leaves_that_are_recorded_are_refused_with_what_the_host_takes(layer, tmp_path):
    recorded, message = dict(layer.named_parameters()), "^params: expected leaves as host arrays, got a Parameter for "
    with pytest.raises(ValueError, match=message + r"[A-Z]\w+, of which NumPy makes none; pass module.leaves\(\)$"):
        ptd.save(tmp_path / "never-written", layer.description, recorded)
    model = ptd.SequenceModel(LAYER, n_layers=1, d_input=1, d_output=2)
    with pytest.raises(ValueError, match=message):
        be.learner(model, recorded, ptd.Optimizer(1e-3, 9), 0)
    assert list(tmp_path.iterdir()) == []


def test_narrow_leaves_are_refused(layer):
    narrow = {name: value.bfloat16() for name, value in layer.arrays().items()}
    with pytest.raises(ValueError, match=r"^params: expected leaves of float32 or wider, got torch.bfloat16"):
        be.apply(LAYER, narrow, U.bfloat16())
