"""The worked example of CONTRIBUTING.md is a backend that conforms."""

from __future__ import annotations

import re
import runpy
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

from ptd_conformance import runner
from ptd_conformance.bench import Bench
from ptd_conformance.outcome import Outcome

ROOT = Path(__file__).parent.parent
CODE = re.search(
    r"<!-- worked example.*?```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S
).group(1)


@pytest.fixture(scope="module")
def backend() -> object:
    module = types.ModuleType("worked_example")
    exec(compile(CODE, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module.backend


@pytest.fixture(scope="module")
def results(backend: object) -> list:
    benches = {dtype: Bench(backend, dtype) for dtype in backend.dtypes}
    return [runner.run(trial, benches[trial.dtype]) for trial in runner.trials(backend)]


def test_no_clause_fails(results: list) -> None:
    assert [(r.clause, r.subject, r.reason) for r in results if r.outcome is Outcome.FAIL] == []


@pytest.mark.parametrize("arguments", [["--backend", "torch"], ["--seed", "1", "--backend=torch"]])
def test_quickstart_session_installs_the_framework_of_its_backend(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nox", mock.MagicMock())
    chosen_backend = runpy.run_path(str(ROOT / "noxfile.py"))["chosen_backend"]
    assert (chosen_backend(arguments), chosen_backend([])) == ("torch", "jax")


def test_kernels_layers_modes_models_and_errors_pass(results: list) -> None:
    passed = {result.clause[0] for result in results if result.outcome is Outcome.PASS}
    assert passed >= {"K", "L", "M", "S", "E"}
