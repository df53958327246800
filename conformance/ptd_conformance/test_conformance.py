"""Every trial as a pytest test; see plugin.py."""

from __future__ import annotations

from typing import Any

import pytest

from .outcome import Outcome
from .runner import Trial, run


def test_conformance(ptd_trial: Trial, ptd_benches: Any) -> None:
    """The clause holds for the backend."""
    benches, results = ptd_benches
    result = run(ptd_trial, benches[ptd_trial.dtype])
    results.append(result)
    if result.outcome in (Outcome.UNSUPPORTED, Outcome.NOT_RUN):
        pytest.skip(f"{result.outcome.value}: {result.reason}")
    if result.outcome is Outcome.EXPECTED_FAIL:
        pytest.xfail(result.reason)
    if result.outcome is Outcome.FAIL:
        pytest.fail(f"{ptd_trial.clause.text} {result.reason}", pytrace=False)
