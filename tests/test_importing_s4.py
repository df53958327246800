"""Checkpoints of the S4 family: imports compute what the originals did, and what ours has not is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from originals import Original, layer_error, log_softmax, model_error, original

import ptd
from ptd import importers
from ptd.importers import SIGNS, places
from ptd.importers.command import options

L = 17
SOFTPLUS = {"dt_transform": "softplus", "real_transform": "relu", "imag_transform": "softplus", "dt_fast": True}
LAYERS: dict[str, tuple[Callable, dict]] = {
    "s4d_minimal": (importers.s4d, {}),
    "s4_diagonal_zoh": (importers.s4, {}),
    "s4_diagonal_bilinear_softplus": (importers.s4, SOFTPLUS | {"disc": "bilinear"}),
    "s4_diagonal_untied": (importers.s4, {"bandlimit": 0.4}),
    "s4_diagonal_bidirectional": (importers.s4, {}),
    "s4_diagonal_real": (importers.s4, {}),
    "s4_diagonal_slow": (importers.s4, {}),
    "s4_diagonal_dss": (importers.s4, {"disc": "dss", "kernel_length": L}),
    "s4_low_rank": (importers.s4, {}),
    "s4_low_rank_two": (importers.s4, {"dt_transform": "softplus"}),
    "s4_low_rank_doubled": (importers.s4, {}),
    "s4_low_rank_bidirectional": (importers.s4, {}),
    "s4_low_rank_slow": (importers.s4, {}),
    "s4_v3_diagonal": (importers.s4_v3, {}),
    "s4_v3_low_rank": (importers.s4_v3, {"real_type": "relu"}),
    "dss_softmax": (importers.dss, {"kernel_length": L}),
    "dss_softmax_one_step": (importers.dss, {"kernel_length": L}),
    "dss_exp": (importers.dss, {"version": "exp"}),
    "dss_exp_re_im_bidirectional": (importers.dss, {"version": "exp-re-im"}),
    "dss_exp_no_scale": (importers.dss, {"version": "exp-no-scale"}),
    "dss_clip": (importers.dss, {"version": "clip", "max_real_Lambda": -1.4}),
}
LOW_RANK = [name for name in LAYERS if "low_rank" in name]
BIDIRECTIONAL = [name for name in LAYERS if "bidirectional" in name]


def imported(name: str, **changed: object) -> tuple[ptd.Layer, dict, Original]:
    importer, given = LAYERS[name]
    run = original(name)
    return *importer(run.arrays, **given | changed), run


def error(layer: ptd.Layer, leaves: dict, run: Original) -> float:
    """The worst error as a ratio of the allowed one: of diagonal layers the suite's, which follows every mode.

    The suite's for S4 allows for powers of A_bar. The originals take none but in a Fourier transform of 2 L samples:
    6 log2(2 L) = 32 roundings of the largest output.
    """
    if layer.kind != "s4":
        return layer_error(layer, leaves, run)
    errors = np.abs(layer.apply(leaves, run.u.astype(np.float64)) - run.y)
    return float(errors.max() / (32 * np.finfo(np.float32).eps * np.abs(run.y).max()))


# --- equality with the originals


@pytest.mark.parametrize("name", LAYERS)
def test_imported_layer_computes_what_the_original_did(name: str) -> None:
    assert error(*imported(name)) < 1


@pytest.mark.parametrize("name", ["s4_low_rank", "s4_diagonal_zoh", "dss_softmax_one_step"])
def test_imported_layer_steps_to_the_same_outputs(name: str) -> None:
    layer, leaves, run = imported(name)
    state, y = np.zeros(layer.state_shape((2,))), []
    for k in range(L):
        y_k, state = layer.step(leaves, run.u[:, k].astype(np.float64), state)
        y.append(y_k)
    assert np.abs(np.stack(y, axis=1) - layer.apply(leaves, run.u.astype(np.float64))).max() < 1e-12


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_reversed_run_one_sample_later_is_exact_on_padded_sequences_as_well(name: str) -> None:
    layer, leaves, run = imported(name)
    u = run.u.astype(np.float64)
    cut = layer.apply(leaves, u[:, :9])
    assert np.abs(layer.apply(leaves, u, lengths=np.array([9, 9]))[:, :9] - cut).max() < 1e-12


def test_kinds_of_layers_follow_the_arrays() -> None:
    kinds = {name: imported(name)[0] for name in LAYERS}
    assert {name for name, layer in kinds.items() if layer.kind == "s4"} == set(LOW_RANK)
    assert {name for name, layer in kinds.items() if layer.bidirectional} == set(BIDIRECTIONAL)
    assert kinds["s4_low_rank_two"].rank == 2
    assert [kinds[name].shared for name in ("s4_diagonal_zoh", "s4_diagonal_bidirectional")] == [False, True]
    assert kinds["dss_softmax_one_step"].kernel_length == L


@pytest.mark.parametrize("name", [*LAYERS, "s4d_classifier"])
def test_a_checkpoint_fits_the_source_that_wrote_it(name: str) -> None:
    importer = importers.s4d_classifier if name == "s4d_classifier" else LAYERS[name][0]
    arrays = {f"model/{key}": value for key, value in original(name).arrays.items()}
    fitting = {source for source, names in SIGNS.items() if "model" in places(arrays, names)}
    assert fitting == {importer.__name__}


# --- wrong imports


def changed(leaves: dict, factor: float, *names: str) -> dict:
    return leaves | {name: factor * value for name, value in leaves.items() if name in names}


WRONG: dict[str, Callable[[dict], dict]] = {
    "C not conjugated": lambda p: changed(p, -1, "C_im"),
    "factor 2": lambda p: changed(p, 2, "C_re", "C_im"),
    "step off by 1e-3": lambda p: p | {"log_step": p["log_step"] + 1e-3},
    "no skip": lambda p: changed(p, 0, "D"),
    "features in another order": lambda p: p | {name: p[name][::-1] for name in ("C_re", "C_im")},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_import_of_a_layer_is_no_rounding(name: str, wrong: str) -> None:
    layer, leaves, run = imported(name)
    if wrong == "C not conjugated" and name == "s4_diagonal_real":
        wrong = "factor 2"
    assert error(layer, WRONG[wrong](leaves), run) > 2


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("s4_") and name != "s4_diagonal_real"])
def test_a_B_that_is_not_conjugated_is_no_rounding(name: str) -> None:
    layer, leaves, run = imported(name)
    assert error(layer, changed(leaves, -1, "B_im"), run) > 100


@pytest.mark.parametrize("name", [name for name in LOW_RANK if "v3" not in name])
def test_a_low_rank_term_that_is_not_conjugated_is_no_rounding(name: str) -> None:
    layer, leaves, run = imported(name)
    assert error(layer, changed(leaves, -1, "P_im"), run) > 100


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_reversed_run_from_the_same_sample_on_is_no_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("per_feature", "dss_kernel"):
        monkeypatch.setattr(f"ptd.importers.{module}.one_later", lambda C, lead, B_bar, D, weight, lag: (C, D))
    assert error(*imported(name)) > 100


@pytest.mark.parametrize("name", ["s4_low_rank", "s4_diagonal_zoh"])
def test_copies_of_a_system_side_by_side_are_no_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = lambda values, H: np.repeat(values, H // len(values), axis=0)  # noqa: E731
    monkeypatch.setattr("ptd.importers.s4_kernel.per_copy", repeated)
    assert error(*imported(name)) > 100


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_C_that_stays_tuned_to_a_length_is_no_rounding(name: str) -> None:
    importer, given = LAYERS[name]
    run = original(name)
    length = "kernel.kernel.L" if "v3" in name else "kernel.l_kernel"
    assert run.arrays[length] >= L
    assert error(*importer(run.arrays | {length: np.array(0)}, **given), run) > 100


@pytest.mark.parametrize("name", ["s4_diagonal_slow", "s4_low_rank_slow"])
def test_without_its_unit_of_time_a_slow_mode_would_be_cut_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported(name)[1]["Lambda_re"].max() <= -1e-4
    monkeypatch.setattr("ptd.importers.per_feature.unit_of_time", lambda name, Lambda: 1.0)
    assert error(*imported(name)) > 2


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("s4_diagonal_zoh", {"disc": "bilinear"}),
        ("s4_diagonal_zoh", {"dt_transform": "softplus"}),
        ("s4_diagonal_zoh", {"real_transform": "softplus"}),
        ("s4_diagonal_zoh", {"imag_transform": "softplus"}),
        ("s4_diagonal_untied", {"bandlimit": None}),
        ("s4_diagonal_bilinear_softplus", {"dt_fast": False}),
        ("s4_diagonal_dss", {"kernel_length": L + 1}),
        ("s4_v3_diagonal", {"disc": "zoh"}),
        ("s4_v3_low_rank", {"real_type": "softplus"}),
        ("dss_softmax", {"kernel_length": L + 1}),
        ("dss_exp", {"version": "exp-no-scale"}),
        ("dss_clip", {"max_real_Lambda": 0.0}),
    ],
)
def test_options_that_the_original_had_otherwise_are_no_rounding(name: str, other: dict) -> None:
    assert error(*imported(name, **other)) > 100


# --- the classifier of example.py


def classified(name: str) -> tuple[ptd.SequenceModel, dict, Original]:
    run = original(name)
    prenorm = name.endswith("prenorm")
    model, leaves = importers.s4d_classifier(run.arrays, prenorm=prenorm)
    return model, leaves, replace(run, y=log_softmax(run.y))


@pytest.mark.parametrize("name", ["s4d_classifier", "s4d_classifier_prenorm"])
def test_classifier_computes_what_the_original_did_its_gelu_included(name: str) -> None:
    model, leaves, run = classified(name)
    assert model_error(model, leaves, run, run.u) < 1
    assert model_error(replace(model, gelu="tanh"), leaves, run, run.u) > 1


@pytest.mark.parametrize("name", ["s4d_classifier", "s4d_classifier_prenorm"])
def test_exchanged_halves_of_the_gated_map_are_further_away_than_a_gelu(name: str) -> None:
    model, leaves, run = classified(name)
    to = {"value": "gate", "gate": "value"}
    parts = {name: name.split(".") for name in leaves}
    exchanged = {
        name: leaves[".".join([*path[:-2], to.get(path[-2], path[-2]), path[-1]])] for name, path in parts.items()
    }
    assert np.abs(log_softmax(model.apply(exchanged, run.u.astype(np.float64))) - run.y).max() > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": np.ones(2)}, "got also head/weight at ''"),
        ({"norms.1.weight": None, "norms.1.bias": None}, "got no norms/1 at ''"),
        ({"s4_layers.1.output_linear.0.bias": np.ones(7)}, "bias: expected shape"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_by_name(change: dict, message: str) -> None:
    arrays = {name: value for name, value in (original("s4d_classifier").arrays | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        importers.s4d_classifier(arrays)


# --- refusals


@pytest.mark.parametrize(
    ("name", "change", "other", "message"),
    [
        ("s4_diagonal_zoh", {"D": np.ones((2, 4))}, {}, "prefix: expected one channel, .*, got D with 2 rows"),
        ("s4_diagonal_zoh", {"kernel.A_imag": None}, {}, "got no kernel/A_imag at ''"),
        ("s4_diagonal_zoh", {"kernel.other": np.ones(1)}, {}, "got also kernel/other"),
        ("s4_diagonal_zoh", {"D": np.ones((1, 3))}, {}, "expected shape"),
        ("s4_diagonal_zoh", {}, {"disc": "dss"}, "kernel_length: expected .*, got None"),
        ("s4_diagonal_zoh", {}, {"dt_transform": "none"}, "inv_dt: expected positive steps, got -.*; another dt_tr"),
        ("s4_diagonal_zoh", {}, {"dt_transform": "log"}, "dt_transform: expected one of 'exp'"),
        ("s4_diagonal_zoh", {}, {"real_transform": "none"}, "Lambda: expected Re Lambda < 0"),
        (
            "s4_diagonal_bidirectional",
            {"kernel.A_real": np.full((1, 3), 6.0)},
            {},
            "in 4 of 4 features; .*approximate_lag=True",
        ),
        ("s4_low_rank", {"kernel.P": np.ones((3, 2, 3, 2))}, {}, "P: expected rank 1 or 2, got 3"),
        (
            "s4_low_rank",
            {"kernel.inv_dt": np.ones((4, 3))},
            {},
            r"inv_dt: expected one step .*, got 3 \(dt_tie=False\)",
        ),
        ("dss_softmax", {}, {"kernel_length": None}, "kernel_length: expected .*, got None"),
        ("dss_softmax", {"kernel.Lambda": np.ones((6, 2))}, {}, "Lambda: expected Re Lambda < 0, got 1"),
        ("dss_exp", {"kernel.W": np.ones((3, 4, 6, 2))}, {}, "W: expected one channel, .*, got 3 channels"),
        ("dss_exp", {}, {"version": "softmax", "kernel_length": L}, "got no kernel/Lambda at ''"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, change: dict, other: dict, message: str) -> None:
    importer, given = LAYERS[name]
    arrays = {key: value for key, value in (original(name).arrays | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        importer(arrays, **given | other)


@pytest.mark.parametrize("name", BIDIRECTIONAL[:2])
def test_a_reversed_direction_of_a_singular_transition_is_refused(name: str) -> None:
    arrays = dict(original(name).arrays)
    arrays["kernel.inv_dt"] = np.zeros((4, 1))
    arrays["kernel.A_imag"] = np.zeros((1, 3))
    arrays["kernel.A_real"] = np.full((1, 3), np.log(2.0))  # bilinear with Lambda step = -2: A_bar = 0
    arrays = {key: np.zeros_like(value) if key == "kernel.P" else value for key, value in arrays.items()}
    arrays |= {"kernel.l_kernel": np.array(0)} if "kernel.P" in arrays else {}
    with pytest.raises(
        ValueError, match=r"C: expected a transition with an inverse .*, got one nearly singular in 4 of 4"
    ):
        importers.s4(arrays, disc="bilinear")
    leaves = importers.s4(arrays, disc="bilinear", approximate_lag=True)[1]
    assert (leaves["D"] == arrays["D"][0]).all()
    assert np.abs(leaves["C_reverse_re"] - arrays["kernel.C"][1, ..., 0]).max() < 1e-12


def test_of_features_that_can_the_reversed_run_still_begins_one_sample_later() -> None:
    name = "s4_diagonal_bidirectional"
    _, leaves, run = imported(name)
    steps = run.arrays["kernel.inv_dt"] + np.array([[0.0], [0.0], [0.0], [6.0]], np.float32)
    found = importers.s4(run.arrays | {"kernel.inv_dt": steps}, approximate_lag=True)[1]
    assert (found["C_reverse_re"][:3] == leaves["C_reverse_re"][:3]).all()
    assert (found["C_reverse_re"][3] == run.arrays["kernel.C"][1, 3, :, 0]).all()
    assert found["D"][3] == run.arrays["D"][0, 3]


def test_options_of_the_command_are_read_by_their_types() -> None:
    given = options(importers.s4, ["kernel_length=17", "bandlimit=none", "dt_fast=true", "disc=dss"])
    assert given == {"kernel_length": 17, "bandlimit": None, "dt_fast": True, "disc": "dss"}


def test_copies_that_do_not_divide_the_features_are_refused() -> None:
    arrays = original("s4_diagonal_zoh").arrays
    copies = {"kernel.A_real": (3, 3), "kernel.A_imag": (3, 3), "kernel.B": (1, 3, 3, 2)}
    three = {name: np.ones(shape) for name, shape in copies.items()}
    with pytest.raises(ValueError, match="A_real: expected a number of systems that divides H=4 from D, got 3"):
        importers.s4(arrays | three)


def test_the_map_after_the_system_is_left_behind_wherever_it_lies() -> None:
    arrays = original("s4_diagonal_zoh").arrays
    nested = {f"model.layer.{name}": value for name, value in arrays.items()}
    nested |= {"model.layer.output_linear.0.weight": np.ones((8, 4)), "model.norm.weight": np.ones(4)}
    expected = importers.s4(arrays)[1]
    found = importers.s4(nested, "model.layer")[1]
    assert all((found[name] == value).all() for name, value in expected.items())
