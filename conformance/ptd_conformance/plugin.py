"""The pytest plugin: ``pytest --pyargs ptd_conformance --ptd-backend NAME`` makes every trial one test."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's own options."""
    group = parser.getgroup("ptd conformance")
    group.addoption("--ptd-backend", help="backend to hold to the reference: a name, or module:object")
    group.addoption("--ptd-json", help="write the record of the run to this file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per trial of the backend that was asked for."""
    if "ptd_trial" not in metafunc.fixturenames:
        return
    import ptd

    from .runner import trials

    name = metafunc.config.getoption("--ptd-backend")
    if name is None:
        raise pytest.UsageError("--ptd-backend: expected a backend's name or module:object, got none")
    found = list(trials(ptd.backend(name)))
    metafunc.parametrize("ptd_trial", found, ids=[trial.name for trial in found])


@pytest.fixture(scope="session")
def ptd_benches(request: pytest.FixtureRequest) -> Any:
    """A bench per dtype for the whole run, and the record at its end."""
    import ptd

    from . import record
    from .bench import Bench

    backend = ptd.backend(request.config.getoption("--ptd-backend"))
    benches = {dtype: Bench(backend, dtype) for dtype in backend.dtypes}
    results: list[Any] = []
    start = time.perf_counter()
    yield benches, results
    if path := request.config.getoption("--ptd-json"):
        record.write(Path(path), record.of(backend, results, time.perf_counter() - start))
