"""Checkpoints of other programs: how they are read, what is refused, and that the S5 family computes what it did."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import serialization
from originals import Original, layer_error, model_error, original
from safetensors.numpy import save_file
from typer.testing import CliRunner

import ptd
from ptd import S5, importers
from ptd.importers import IMPORTERS, SIGNS
from ptd.importers.arrays import flatten, take, unit_of_time
from ptd.importers.command import command

LAYERS = {
    "s5_zoh": (importers.s5, "", {}),
    "s5_bidirectional_bilinear": (importers.s5, "", {"discretization": "bilinear"}),
    "s5_all_modes_joint_C": (importers.s5, "", {"conj_sym": False, "step_rescale": 2.0}),
    "s5_slow": (importers.s5, "", {}),
    "s5_clipped": (importers.s5, "", {"clip_eigs": True}),
    "s5_pytorch": (importers.s5_pytorch, "seq", {}),
    "s5_pytorch_bidirectional": (importers.s5_pytorch, "seq", {}),
    "lru": (importers.lru, "", {}),
}
BATCH_NORM = {"batchnorm": True, "prenorm": True}
MODELS = {
    "s5_classifier_half_glu1": (importers.s5_classifier, {"activation": "half_glu1", "padded": False} | BATCH_NORM),
    "s5_classifier_half_glu2": (importers.s5_classifier, {"activation": "half_glu2", "batchnorm": True}),
    "s5_classifier_full_glu": (importers.s5_classifier, {"activation": "full_glu", "mode": "last"} | BATCH_NORM),
    "s5_retrieval": (importers.s5_classifier, {"activation": "half_glu1", "tokens": True} | BATCH_NORM),
    "lru_classifier": (importers.lru_classifier, {"prenorm": True}),
}


def imported(name: str, **changed: object) -> tuple[S5, dict, Original]:
    importer, prefix, options = LAYERS[name]
    run = original(name)
    return *importer(run.arrays, prefix, **options | changed), run


def imported_model(name: str) -> tuple[ptd.SequenceModel, dict, Original, np.ndarray, dict]:
    """The model, its leaves, the run, and the run's input and lengths as ours takes them."""
    importer, options = MODELS[name]
    run = original(name)
    model, leaves = importer(run.arrays, **options)
    call = {} if run.lengths is None else {"lengths": run.lengths}
    inputs = run.u
    if model.pair:  # the original's second half of the batch are the partners of the first
        inputs, call = np.stack(np.split(inputs, 2), axis=1), {"lengths": np.stack(np.split(run.lengths, 2), axis=1)}
    return model, leaves, run, inputs, call


# --- equality with the originals


@pytest.mark.parametrize("name", LAYERS)
def test_imported_layer_computes_what_the_original_did(name: str) -> None:
    layer, leaves, run = imported(name)
    assert layer_error(layer, leaves, run) < 1


@pytest.mark.parametrize("name", MODELS)
def test_imported_model_computes_what_the_original_did(name: str) -> None:
    model, leaves, run, inputs, call = imported_model(name)
    assert model_error(model, leaves, run, inputs, **call) < 1


def test_layer_norm_has_the_epsilon_of_the_original() -> None:
    run = original("s5_classifier_gelu_layer_norm")
    model, leaves = importers.s5_classifier(run.arrays)
    assert model_error(model, leaves, run, run.u) < 1
    assert model_error(replace(model, norm_epsilon=1e-5), leaves, run, run.u) > 1


WRONG: dict[str, Callable[[dict], dict]] = {
    "C not conjugated": lambda p: p | {"C_im": -p["C_im"]},
    "B not conjugated": lambda p: p | {"B_im": -p["B_im"]},
    "factor 2": lambda p: p | {"C_re": 2 * p["C_re"], "C_im": 2 * p["C_im"]},
    "step off by 1e-4": lambda p: p | {"log_step": p["log_step"] + 1e-4},
    "no skip": lambda p: p | {"D": 0 * p["D"]},
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_import_of_a_layer_is_no_rounding(name: str, wrong: str) -> None:
    layer, leaves, run = imported(name)
    assert layer_error(layer, WRONG[wrong](leaves), run) > 2


@pytest.mark.parametrize("name", ["s5_bidirectional_bilinear", "s5_all_modes_joint_C", "s5_pytorch_bidirectional"])
def test_exchanged_readouts_of_the_two_directions_are_no_rounding(name: str) -> None:
    layer, leaves, run = imported(name)
    forth, back = [[f"{name}_{part}" for part in ("re", "im")] for name in ("C", "C_reverse")]
    exchanged = {a: leaves[b] for a, b in zip(forth + back, back + forth, strict=True)}
    assert layer_error(layer, leaves | exchanged, run) > 100


@pytest.mark.parametrize("name", ["s5_slow", "lru"])
def test_without_its_unit_of_time_a_slow_mode_would_be_cut_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported(name)[1]["Lambda_re"].max() <= -1e-4
    monkeypatch.setattr("ptd.importers.s5_flax.unit_of_time", lambda name, Lambda: 1.0)
    assert layer_error(*imported(name)) > 2


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("s5_zoh", {"discretization": "bilinear"}),
        ("s5_all_modes_joint_C", {"conj_sym": True}),
        ("s5_all_modes_joint_C", {"step_rescale": 1.0}),
    ],
)
def test_options_that_the_original_had_otherwise_are_no_rounding(name: str, changed: dict) -> None:
    assert layer_error(*imported(name, **changed)) > 100


@pytest.mark.parametrize("name", ["s5_zoh", "s5_slow"])
def test_of_each_pair_the_mode_of_positive_frequency_is_kept(name: str) -> None:
    assert (imported(name)[1]["Lambda_im"] >= 0).all()


@pytest.mark.parametrize("name", ["s5_classifier_half_glu1", "lru_classifier"])
def test_statistics_of_batch_norm_come_along(name: str) -> None:
    model, leaves, run, *_ = imported_model(name)
    theirs = "norm" if "s5" in name else "normalization"
    assert (leaves["blocks.1.norm.var"] == run.arrays[f"batch_stats/encoder/layers_1/{theirs}/var"]).all()
    assert model.norm_momentum == (0.9 if "s5" in name else 0.99)


# --- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"D": None}, "prefix: expected .* below it, got no D at 'seq'"),
        ({"extra/kernel": np.ones(2)}, "prefix: expected only .*, got also extra/kernel; they would be left behind"),
        ({"B": np.ones((3, 5, 2))}, r"B: expected shape \(P, H, 2\) with P=3 from Lambda_re|D: expected shape"),
        ({"D": np.ones(4) * 1j}, "D: expected real numbers, got complex128"),
        ({"D": np.full(4, np.nan)}, r"D: expected finite values, got nan at index \(0,\)"),
        ({"D": np.array(["a"] * 4)}, "D: expected an array of numbers, got dtype <U1"),
        ({"Lambda_re": np.array([-1.0, 0.0, -1.0])}, "Lambda: expected Re Lambda < 0, got 0"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused_by_name(change: dict, message: str) -> None:
    arrays = {name.removeprefix("params/"): value for name, value in original("s5_zoh").arrays.items()} | change
    arrays = {f"seq/{name}": value for name, value in arrays.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        importers.s5(arrays, "seq")


def test_a_wrong_prefix_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="at ''; pass prefix='encoder/layers_0/seq' or 'encoder/layers_1/seq'"):
        importers.s5(original("s5_classifier_half_glu2").arrays)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "activation: expected no map for 'gelu', got out2"),
        ({"activation": "half_glu1"}, "norm: expected batch_stats with batch norm, .*, got some at"),
        ({"batchnorm": True, "activation": "half_glu1"}, "padded: expected False: .* begins in the padding, got True"),
    ],
)
def test_options_that_cannot_be_those_of_a_classifier_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importers.s5_classifier(original("s5_classifier_half_glu1").arrays, **options)


def test_batch_norm_without_its_statistics_is_refused() -> None:
    arrays = {name: value for name, value in original("lru_classifier").arrays.items() if "batch_stats" not in name}
    with pytest.raises(ValueError, match="got none at 'batch_stats/encoder/layers_0/normalization'; pass params and"):
        importers.lru_classifier(arrays)


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({"liquid": True}, {}, "liquid: expected False"),
        ({"degree": 2}, {}, "degree: expected 1"),
        ({}, dict.fromkeys(("seq.BH", "seq.BP", "seq.CH", "seq.CP"), 0), "got their factors BH, BP, CH, CP at 'seq'"),
    ],
)
def test_systems_of_s5_pytorch_that_ours_has_not_are_refused(options: dict, names: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importers.s5_pytorch(original("s5_pytorch").arrays | names, "seq", **options)


# --- arrays and files


def test_nesting_separators_and_wrappers_of_a_checkpoint_do_not_matter() -> None:
    flat = original("s5_classifier_half_glu2").arrays
    options = {"activation": "half_glu2", "batchnorm": True}
    expected = importers.s5_classifier(flat, **options)[1]
    nested: dict = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    dotted = {name.replace("/", "."): value for name, value in flat.items()}
    for arrays in (nested, dotted, {"step": 3, **nested}):
        found = importers.s5_classifier(arrays, **options)[1]
        assert all((found[name] == value).all() for name, value in expected.items())


def test_tensors_of_torch_are_read_with_and_without_gradients_and_in_bfloat16() -> None:
    tensor = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    assert take({"D": tensor}, "", {"D": "H"})["D"].tolist() == [1.0, 1.0, 1.0]


def test_a_unit_of_time_is_a_power_of_two_and_no_larger_than_needed() -> None:
    assert [unit_of_time("Lambda", np.array([-x + 0j])) for x in (1.0, 1e-4, 9e-5, 1e-9)] == [1, 1, 2, 2.0**17]


def test_a_pytorch_state_is_read_and_python_objects_in_it_are_not(tmp_path: Path) -> None:
    state = {name: torch.as_tensor(value) for name, value in original("s5_pytorch").arrays.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.ckpt")
    torch.save({"model": Original({}, np.ones(1), np.ones(1), None)}, tmp_path / "objects.pt")
    read = importers.read(tmp_path / "lightning.ckpt")
    assert sorted(read) == sorted(flatten(state))
    assert importers.s5_pytorch(read, "seq")[0] == imported("s5_pytorch")[0]
    with pytest.raises(ValueError, match=r"expected tensors alone, got objects\.pt with Python objects; torch"):
        importers.read(tmp_path / "objects.pt")


def test_safetensors_npz_and_msgpack_hold_the_same_arrays(tmp_path: Path) -> None:
    arrays = original("s5_zoh").arrays
    save_file(arrays, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **arrays)
    tree = {"params": {name.removeprefix("params/"): value for name, value in arrays.items()}}
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    expected = imported("s5_zoh")[1]
    for name in ("a.safetensors", "a.npz", "a.msgpack"):
        found = importers.s5(importers.read(tmp_path / name))[1]
        assert all((found[leaf] == value).all() for leaf, value in expected.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".msgpack"])
def test_a_damaged_file_is_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80neither of them")
    with pytest.raises(ValueError, match=rf"^path: expected a complete {suffix} file, got model{suffix}: .*") as caught:
        importers.read(path)
    assert "\n" not in str(caught.value)


def test_files_of_no_known_kind_folders_and_bare_tensors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({}))
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    for path, message in [
        (tmp_path / "model.pkl", "expected a file .safetensors, .*, got model.pkl"),
        (tmp_path, "expected a file, got a folder"),
        (tmp_path / "tensor.pt", "expected named arrays, got tensor.pt with a Tensor"),
    ]:
        with pytest.raises(ValueError, match=f"^path: {message}"):
            importers.read(path)
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, got no file"):
        importers.read(tmp_path / "none.npz")


@pytest.mark.parametrize(("suffix", "framework"), [(".pt", "torch"), (".msgpack", "flax")])
def test_a_missing_framework_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, framework: str
) -> None:
    monkeypatch.setitem(sys.modules, framework, None)
    (tmp_path / f"a{suffix}").write_bytes(b"")
    with pytest.raises(ImportError, match=rf"expected {framework}, which reads {suffix}, got none; pip install"):
        importers.read(tmp_path / f"a{suffix}")


def test_importing_the_importers_imports_no_framework() -> None:
    code = "import sys, ptd.importers; print({'torch', 'jax', 'flax', 'mlx'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- the command


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    np.savez("trained.npz", **original("s5_classifier_half_glu2").arrays)
    return "trained.npz"


def run(*arguments: str) -> tuple[str, str]:
    """What ptd import prints, and the error it ends with."""
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    done = CliRunner().invoke(app, arguments)
    return done.output, "" if done.exception is None else str(done.exception)


def test_the_command_is_registered() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["ptd.commands"]["import"] == "ptd.importers.command:command"


def test_the_command_writes_what_every_backend_reads(checkpoint: str) -> None:
    options = ["--option", "activation=half_glu2", "--option", "batchnorm=true", "--option", "dropout=0.1"]
    output, error = run(checkpoint, "--source", "s5_classifier", "--out", "ours.safetensors", *options)
    assert (error, output.startswith("wrote ours.safetensors: SequenceModel(")) == ("", True)
    model, leaves = ptd.load("ours.safetensors")
    source = original("s5_classifier_half_glu2")
    assert model_error(model, leaves, source, source.u, lengths=source.lengths) < 1
    assert model.dropout == 0.1


def test_without_a_source_the_command_lists_arrays_and_what_they_might_be(checkpoint: str) -> None:
    lines = run(checkpoint)[0].splitlines()
    assert "encoder/layers_1/seq/B  (3, 4, 2)" in lines
    assert lines[-3:] == [
        "--source s5 --prefix 'encoder/layers_0/seq'",
        "--source s5 --prefix 'encoder/layers_1/seq'",
        "--source s5_classifier --prefix ''",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "s6"], "source: expected one of .*'lru', .*'s5', .* got 's6'"),
        (["--source", "s5", "--option", "blocks=2"], "option: .* conj_sym, discretization, .* got 'blocks=2'"),
        (["--source", "s5", "--option", "conj_sym=0"], "option conj_sym: expected true or false, got '0'"),
        (["--source", "s5", "--option", "step_rescale=x"], "option step_rescale: expected a value of type float"),
        (["--option", "conj_sym=true"], "source: expected one of .*; pass --source"),
        (["--out", "ours.safetensors"], "source: expected one of .*; pass --source"),
        (["--source", "s5"], "out: expected a file to write, got none"),
        (["--source", "s5", "--out", "./trained.npz"], "out: expected a file to write, got the checkpoint itself"),
    ],
)
def test_the_command_names_what_is_wrong_with_its_options(checkpoint: str, arguments: list[str], message: str) -> None:
    assert re.match(message, run(checkpoint, *arguments)[1])


def test_every_source_has_names_to_find_it_by() -> None:
    assert IMPORTERS.keys() == SIGNS.keys()
