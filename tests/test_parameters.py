"""Parameter files: what save wrote is what load gives; anything else is refused in one line; nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dense
import numpy as np
import pytest
from safetensors.numpy import save as encode

import ptd
from ptd import DSS, S4, S4D, S5, SequenceModel, parameters

MODEL = SequenceModel(S5(4, 4), n_layers=2, d_input=3, d_output=2, norm="batch", dropout=0.1)
DESCRIPTIONS = {
    "s4": S4(2, 6, rank=2),
    "s4d": S4D(2, 5, shared=True, discretization="bilinear"),
    "dss": DSS(2, 3, kernel_length=9),
    "s5": S5(3, 6, blocks=2, bidirectional=True, skip=False),
    "model": MODEL,
}


@pytest.fixture(params=DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def description(request):
    return request.param


@pytest.fixture
def params(description):
    model = isinstance(description, SequenceModel)
    return description.initialize(np.random.default_rng(0), init="legs") if model else dense.parameters(description)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "params.safetensors"


LAYER = S4D(2, 4)


@pytest.fixture
def saved(path) -> Path:
    ptd.save(path, LAYER, dense.parameters(LAYER))
    return path


def refusal(path: Path) -> str:
    """The one line with which load refuses a file."""
    with pytest.raises(ValueError, match=r"^[^\n]+: expected [^\n]+, got [^\n]+$") as caught:
        ptd.load(path)
    return str(caught.value)


# --- round trip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_load_gives_what_save_was_given(path, description, params, dtype):
    params = {name: value.astype(dtype) for name, value in params.items()}
    ptd.save(path, description, params)
    loaded, leaves = ptd.load(path)
    assert loaded == description
    assert leaves.keys() == params.keys()
    assert all(np.array_equal(leaves[name], value) for name, value in params.items())
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(dtype)}


def test_strided_leaves_are_saved_by_value(path):
    params = dense.parameters(LAYER)
    params["C_re"] = np.asfortranarray(params["C_re"])
    ptd.save(path, LAYER, params)
    assert np.array_equal(ptd.load(path)[1]["C_re"], params["C_re"])


def test_metadata_says_version_and_description(saved):
    data = saved.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert metadata["ptd_spec"] == ptd.SPEC_VERSION
    assert json.loads(metadata["description"])["kind"] == "s4d"


def test_save_replaces_a_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "new" / "params.safetensors"
    for seed in (0, 1):
        ptd.save(path, LAYER, dense.parameters(LAYER, seed))
    assert np.array_equal(ptd.load(path)[1]["C_re"], dense.parameters(LAYER, 1)["C_re"])
    assert list(path.parent.iterdir()) == [path]


# --- refused files


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 300, -1])
def test_truncated_file_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    message = refusal(saved)
    assert message.startswith("path: expected a complete safetensors file, got params.safetensors: ")
    assert message.endswith("it is truncated or not ours: use another copy")


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"\x93NUMPY" + bytes(100), b"no file of numbers" * 9])
def test_file_of_another_format_is_refused(path, data):
    path.write_bytes(data)
    assert refusal(path).startswith("path: expected a complete safetensors file, got params.safetensors: ")


def test_safetensors_file_of_another_program_is_refused(path):
    path.write_bytes(encode({"weight": np.zeros(3)}))
    assert refusal(path).startswith("path: expected a file written by ptd.save, got params.safetensors without")


def write(path: Path, leaves: dict, description: str, version: str = ptd.SPEC_VERSION) -> None:
    path.write_bytes(encode(leaves, {"ptd_spec": version, "description": description}))


AS_JSON = {"kind": "s4d", "d_model": 2, "d_state": 4}


def test_file_of_another_version_is_refused(path):
    write(path, dense.parameters(LAYER), json.dumps(AS_JSON), version="999")
    assert refusal(path) == (
        f"path: expected specification version {ptd.SPEC_VERSION}, got version 999; use the ptd that wrote it"
    )


@pytest.mark.parametrize(
    ("description", "start"),
    [
        (json.dumps(AS_JSON | {"kind": "s6"}), "kind: expected one of 'dss', 's4'"),
        (json.dumps(AS_JSON | {"colour": 1}), "description: expected the fields of s4d, got "),
        (json.dumps({"kind": "s4d"}), "description: expected the fields of s4d, got "),
        (json.dumps(AS_JSON | {"d_state": 0}), "d_state: expected a positive integer, got 0"),
        ("{", "path: expected a description in JSON, got "),
        ("[1]", "path: expected a description in JSON, got "),
    ],
)
def test_description_of_nothing_we_know_is_refused(path, description, start):
    write(path, dense.parameters(LAYER), description)
    assert refusal(path).startswith(start)


def test_file_without_a_description_is_refused(path):
    path.write_bytes(encode(dense.parameters(LAYER), {"ptd_spec": ptd.SPEC_VERSION}))
    assert refusal(path).startswith("path: expected a description in JSON, got ")


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({"extra": np.zeros(1)}, "params: expected only the leaves of s4d, got also extra"),
        ({"C_re": np.zeros((2, 3))}, "C_re: expected shape (2, 2), a leaf of s4d, got (2, 3)"),
        ({"D": np.array([0, np.nan])}, "D: expected finite values, got nan at index (1,)"),
        ({"D": np.array([np.inf, 0])}, "D: expected finite values, got inf at index (0,)"),
        ({"D": np.zeros(2, int)}, "D: expected a real floating dtype, got int64"),
    ],
)
def test_leaves_that_do_not_fit_are_refused_on_both_sides(path, change, start):
    params = dense.parameters(LAYER) | change
    write(path, params, json.dumps(AS_JSON))
    assert refusal(path).startswith(start)
    path.unlink()
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        ptd.save(path, LAYER, params)
    assert str(caught.value).startswith(start)
    assert not path.exists()


def test_missing_leaf_is_refused(path):
    params = dense.parameters(LAYER)
    del params["C_im"]
    write(path, params, json.dumps(AS_JSON))
    assert refusal(path) == "params: expected the leaves of s4d, got none named C_im; see layer.shapes()"


def test_complex_leaves_are_refused_with_the_remedy(path):
    params = dense.parameters(LAYER) | {"D": np.zeros(2, complex)}
    with pytest.raises(ValueError, match=r"^D: expected a real floating dtype, got complex128; store complex"):
        ptd.save(path, LAYER, params)


def test_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"params\.safetensors"):
        ptd.load(path)


# --- interrupted saves


def interrupt(*_):
    raise KeyboardInterrupt


def no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("owner_and_name", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
@pytest.mark.parametrize(("failure", "kind"), [(interrupt, KeyboardInterrupt), (no_space, OSError)])
def test_interrupted_save_leaves_the_old_file_and_nothing_else(saved, monkeypatch, owner_and_name, failure, kind):
    before = saved.read_bytes()
    monkeypatch.setattr(*owner_and_name, failure)
    with pytest.raises(kind):
        ptd.save(saved, LAYER, dense.parameters(LAYER, 1))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_symbolic_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    links = [tmp_path / "link", tmp_path / "dangling"]
    for link in links:
        link.symlink_to(tmp_path / "real" / link.name)
    (tmp_path / "real" / "link").write_bytes(b"old")
    for link in links:
        parameters.replace_file(link, b"new")
    assert [link.is_symlink() and (tmp_path / "real" / link.name).read_bytes() for link in links] == [b"new", b"new"]


def test_what_is_no_file_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, got in {"pipe": "a device or pipe", "link": "a device or pipe", "": "a folder"}.items():
        with pytest.raises(ValueError, match=f"^path: expected a file to write or replace, got {got}, [^\n]*; pass"):
            parameters.replace_file(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


def test_refused_save_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(ValueError, match=r"^D: expected finite values"):
        ptd.save(saved, LAYER, dense.parameters(LAYER) | {"D": np.full(2, np.nan)})
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    "description",
    [
        ptd.S4D(np.int64(3), np.int32(4), bidirectional=np.bool_(True)),
        ptd.S5(4, 4, blocks=np.int64(2)),
        ptd.S4(2, 4, rank=np.int64(1)),
        ptd.DSS(2, 4, kernel_length=np.int64(2)),
        ptd.SequenceModel(ptd.S5(4, 4), np.int64(1), 2, 3, dropout=np.float32(0.5)),
    ],
    ids=str,
)
def test_descriptions_of_numpy_numbers_are_saved(path, description):
    leaves = {name: np.zeros(shape) for name, shape in description.shapes().items()}
    ptd.save(path, description, leaves)
    assert ptd.load(path)[0] == description
