"""Backends by name: what is found, what is said when one is missing, and that nothing is imported unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import ptd
from ptd import registry

FRAMEWORKS = ("jax", "torch", "mlx", "flax", "optax", "matplotlib", "sklearn", "typer", "rich", "jinja2")


@pytest.fixture
def registered(monkeypatch):
    """Entry points under our control: the reference, and two whose framework is missing."""

    def points(group: str) -> list[EntryPoint]:
        assert group == "ptd.backends"
        found = {"numpy": "ptd.reference:backend", "jax": "no_such_framework:backend", "mine": "no_such_module:x"}
        return [EntryPoint(name, value, group) for name, value in found.items()]

    monkeypatch.setattr(registry, "entry_points", points)


def test_backends_lists_the_reference_and_jax():
    assert {"numpy", "jax"} <= ptd.backends().keys()
    assert ptd.backends()["numpy"] == ptd.Availability("numpy", True, "")


def test_numpy_is_the_reference_itself():
    assert ptd.backend("numpy") is ptd.backend("ptd.reference:backend")


def test_unknown_name_is_told_what_exists_and_what_would_add_it():
    with pytest.raises(ValueError, match=r"^name: expected one of [a-z, ]*numpy[a-z, ]*, got 'nope'; .*$") as caught:
        ptd.backend("nope")
    assert "pip install the package that registers 'nope'" in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_missing_framework_is_told_what_works_and_the_exact_pip_command():
    with pytest.raises(ptd.BackendUnavailable) as caught:
        ptd.backend("jax")
    assert str(caught.value) == (
        "backend 'jax': No module named 'no_such_framework'; available: numpy; to add it: pip install \"ptd[jax]\""
    )


@pytest.mark.usefixtures("registered")
def test_missing_framework_of_a_backend_that_is_no_extra_names_its_distribution():
    with pytest.raises(ptd.BackendUnavailable, match=r"to add it: pip install --force-reinstall ptd$"):
        ptd.backend("mine")


@pytest.mark.usefixtures("registered")
def test_listing_says_why_a_backend_cannot_be_loaded():
    listed = ptd.backends()
    assert list(listed) == ["jax", "mine", "numpy"]
    assert [entry.loadable for entry in listed.values()] == [False, False, True]
    assert "No module named 'no_such_framework'" in listed["jax"].reason


def test_stranger_is_found_by_module_and_object(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("from ptd.reference import ReferenceBackend\nmine = ReferenceBackend()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ptd.backend("stranger:mine").name == "numpy"


def test_stranger_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("from ptd.reference import ReferenceBackend\nmine = ReferenceBackend()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert ptd.backend("neighbour:mine").name == "numpy"


@pytest.mark.parametrize(("name", "got"), [("ptd.reference:ReferenceBackend", "a class"), ("os:path", "a module")])
def test_what_is_no_instance_of_a_backend_is_refused_in_one_line(name, got):
    with pytest.raises(ValueError, match=f"^name: expected module:object of a backend, got '{name}', {got}; name an"):
        ptd.backend(name)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Entry points whose framework is there and broken, whose object is missing, and whose object is a class."""
    (tmp_path / "broken_framework.py").write_text(
        'raise OSError("libcudart.so.12: cannot open\\nshared object file")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = {"numpy": "ptd.reference:backend", "jax": "no_such_framework:backend", "torch": "broken_framework:backend"}
    found |= {"renamed": "math:backend", "class": "ptd.reference:ReferenceBackend"}
    points = [EntryPoint(name, value, "ptd.backends") for name, value in found.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


@pytest.mark.usefixtures("broken")
def test_listing_says_why_a_broken_framework_cannot_be_loaded():
    listed = ptd.backends()
    assert [name for name, entry in listed.items() if entry.loadable] == ["numpy"]
    assert "OSError: libcudart.so.12: cannot open shared object file" in listed["torch"].reason
    assert "module 'math' has no attribute 'backend'" in listed["renamed"].reason
    assert "got 'ptd.reference:ReferenceBackend', a class" in listed["class"].reason


@pytest.mark.usefixtures("broken")
def test_broken_framework_of_another_backend_does_not_hide_what_is_missing():
    with pytest.raises(
        ptd.BackendUnavailable, match=r"^backend 'jax': No module named 'no_such_framework'; available: n"
    ):
        ptd.backend("jax")


def test_missing_module_of_a_stranger_is_named():
    with pytest.raises(ptd.BackendUnavailable, match=r"^backend 'nowhere:x': No module named 'nowhere'; install the"):
        ptd.backend("nowhere:x")


@pytest.mark.parametrize("name", ["math:nothing", ":x"])
def test_missing_object_of_a_stranger_is_named(name):
    with pytest.raises(ValueError, match=r"^name: expected module:object of a backend, got '[^\n]+$"):
        ptd.backend(name)


def test_importing_ptd_imports_no_framework():
    code = f"import sys, ptd; print([name for name in {FRAMEWORKS} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(ptd.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
