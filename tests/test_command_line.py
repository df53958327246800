"""The commands users type."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def ptd(*arguments: str) -> subprocess.CompletedProcess:
    return run("-c", "from ptd.cli import main; main()", *arguments)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "numpy-cpu.json"
    done = ptd("conformance", "--backend", "numpy", "--only", "L1", "--only", "G1", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return path


def test_backends_lists_the_reference() -> None:
    done = ptd("backends")
    assert (done.returncode, "numpy" in done.stdout) == (0, True)


def test_conformance_writes_a_record_of_every_trial(record: Path) -> None:
    results = json.loads(record.read_text())["results"]
    assert {(row["clause"], row["outcome"]) for row in results} == {("L1", "pass"), ("G1", "unsupported")}


def test_report_is_one_page_with_nothing_to_fetch(record: Path, tmp_path: Path) -> None:
    done = ptd("report", str(record), "--html", str(tmp_path / "index.html"))
    page = (tmp_path / "index.html").read_text()
    assert (done.returncode, "src=" in page, "href=" in page) == (0, False, False)


def test_report_refuses_a_damaged_record(record: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text(record.read_text()[:200])
    done = ptd("report", str(tmp_path / "cut.json"), "--html", str(tmp_path / "index.html"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cut.json" in done.stderr


def test_report_refuses_an_unknown_outcome(record: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(record.read_text().replace('"pass"', '"skipped"'))
    done = ptd("report", str(tmp_path / "odd.json"), "--html", str(tmp_path / "index.html"))
    assert (done.returncode, "skipped" in done.stderr) == (1, True)


def test_failing_backend_exits_with_status_1() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from ptd.cli import main; main()"
    done = run("-c", code, "conformance", "--backend", "failing:backend", "--only", "L1")
    assert (done.returncode, "FAIL" in done.stdout) == (1, True)


def test_unknown_backend_is_one_line_with_the_remedy() -> None:
    done = ptd("conformance", "--backend", "nope")
    assert (done.returncode, done.stderr.count("\n"), "pip install" in done.stderr) == (1, 1, True)


def test_pytest_plugin_runs_the_suite() -> None:
    arguments = (
        "--pyargs",
        "ptd_conformance",
        "--ptd-backend",
        "numpy",
        "-k",
        "L1- or E1-",
        "-p",
        "no:cacheprovider",
    )
    done = run("-m", "pytest", *arguments)
    assert (done.returncode, "passed" in done.stdout) == (0, True), done.stdout
