"""The conformance suite is itself tested: every mutant is caught by the clause that names its defect."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from mutants import MUTANTS, Honest, changed

import ptd
from ptd_conformance import runner
from ptd_conformance.bench import Bench
from ptd_conformance.clause import CLAUSES
from ptd_conformance.outcome import Outcome, Result
from ptd_conformance.runner import Trial


def result(backend: object, clause: str, subject: str, dtype: str) -> Result:
    return runner.run(Trial(CLAUSES[clause], subject, dtype), Bench(backend, dtype))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught_by_the_clause_that_names_it(mutant: str) -> None:
    backend, clause, subject, dtype = MUTANTS[mutant]
    found = result(backend, clause, subject, dtype)
    assert (found.outcome, found.worst is not None) == (Outcome.FAIL, True), found.reason


@pytest.mark.parametrize("mutant", MUTANTS)
def test_honest_backend_passes_where_the_mutant_is_caught(mutant: str) -> None:
    _, clause, subject, dtype = MUTANTS[mutant]
    assert result(Honest(), clause, subject, dtype).outcome is Outcome.PASS


class WrongGradients:
    """The jax backend with some gradients spoiled."""

    def __init__(self, factors: Mapping[str, float]):
        self.factors, self.honest = factors, ptd.backend("jax")

    def __getattr__(self, name: str) -> object:
        return getattr(self.honest, name)

    def gradients(self, function: object, arguments: dict) -> dict:
        found = self.honest.gradients(function, arguments)
        return {name: value * self.factors.get(name, 1.0) for name, value in found.items()}


GRADIENT_MUTANTS = {
    "gradient-of-the-step-off-by-one-percent": ({"log_step": 1.01}, "G1"),
    "gradient-of-a-frequency-conjugated": ({"Lambda_im": -1.0}, "G1"),
    "gradient-of-the-input-halved": ({"u": 0.5}, "G2"),
    "gradient-of-the-initial-state-dropped": ({"state": 0.0}, "G3"),
}


@pytest.fixture(scope="module")
def honest_gradients() -> Bench:
    return Bench(ptd.backend("jax"), "float32")


@pytest.mark.parametrize("mutant", GRADIENT_MUTANTS)
def test_wrong_gradient_is_caught_by_the_clause_that_names_it(mutant: str, honest_gradients: Bench) -> None:
    factors, clause = GRADIENT_MUTANTS[mutant]
    trial = Trial(CLAUSES[clause], "s4d-zoh", "float32")
    assert runner.run(trial, honest_gradients).outcome is Outcome.PASS
    assert runner.run(trial, Bench(WrongGradients(factors), "float32")).outcome is Outcome.FAIL


class WrongLearner:
    """The jax backend with one method of its learners spoiled."""

    def __init__(self, method: str, spoiled: object):
        self.method, self.spoiled, self.honest = method, spoiled, ptd.backend("jax")

    def __getattr__(self, name: str) -> object:
        return getattr(self.honest, name)

    def learner(self, *arguments: object, **named: object) -> object:
        learner = self.honest.learner(*arguments, **named)
        honest = getattr(learner, self.method)
        setattr(learner, self.method, lambda *call: self.spoiled(honest, *call))
        return learner


LEARNER_MUTANTS = {
    "batches-in-another-order": ("train", lambda honest, placed, order: honest(placed, order[::-1]), "T4"),
    "losses-after-the-step": ("train", lambda honest, placed, order: honest(placed, order) * 0.98, "T4"),
    "first-rows-evaluated": (
        "evaluate",
        lambda honest, placed, rows, batch: honest(placed, np.arange(len(rows)), batch),
        "T5",
    ),
    "optimiser-state-forgotten": (
        "snapshot",
        lambda honest: {k: np.zeros_like(v) if ".mu." in k else v for k, v in honest().items()},
        "T6",
    ),
}


@pytest.mark.parametrize("mutant", LEARNER_MUTANTS)
def test_wrong_learner_is_caught_by_the_clause_that_names_it(mutant: str, honest_gradients: Bench) -> None:
    method, spoiled, clause = LEARNER_MUTANTS[mutant]
    trial = Trial(CLAUSES[clause], "dss-tokens", "float32")
    assert runner.run(trial, honest_gradients).outcome is Outcome.PASS
    assert runner.run(trial, Bench(WrongLearner(method, spoiled), "float32")).outcome is Outcome.FAIL


class StuckModules:
    """The jax backend with modules that stay in one mode."""

    def __init__(self, mode: str):
        self.mode, self.honest = mode, ptd.backend("jax")

    def __getattr__(self, name: str) -> object:
        return getattr(self.honest, name)

    def module(self, *arguments: object) -> object:
        module = self.honest.module(*arguments)
        getattr(module, self.mode)()
        module.train = module.eval = lambda: None
        return module


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_module_stuck_in_a_mode_is_caught(mode: str, honest_gradients: Bench) -> None:
    trial = Trial(CLAUSES["T7"], "s5-batch-norm", "float32")
    assert runner.run(trial, honest_gradients).outcome is Outcome.PASS
    assert runner.run(trial, Bench(StuckModules(mode), "float32")).outcome is Outcome.FAIL


def test_unexpected_pass_of_an_unsupported_feature_fails() -> None:
    backend = changed(unsupported=MappingProxyType({"modules": "said to be missing"}))
    found = result(backend, "P1", "s5-zoh", "float64")
    assert (found.outcome, "unexpected pass" in found.reason) == (Outcome.FAIL, True)


def test_undeclared_lack_fails() -> None:
    found = result(changed(unsupported=MappingProxyType({})), "G1", "s5-zoh", "float64")
    assert (found.outcome, "declares no such lack" in found.reason) == (Outcome.FAIL, True)


def test_declared_lack_is_unsupported() -> None:
    assert result(Honest(), "G1", "s5-zoh", "float64").outcome is Outcome.UNSUPPORTED


def test_known_failure_is_expected_to_fail() -> None:
    wrong, clause, subject, dtype = MUTANTS["skip-dropped"]
    declared = type("Declared", (type(wrong),), {"known_failures": {f"{clause}-{subject}": "D is dropped"}})()
    assert result(declared, clause, subject, dtype).outcome is Outcome.EXPECTED_FAIL


def test_unexpected_pass_of_a_known_failure_fails() -> None:
    declared = changed(known_failures=MappingProxyType({"L1": "said to be wrong"}))
    assert result(declared, "L1", "s5-zoh", "float64").outcome is Outcome.FAIL


def test_nan_does_not_pass() -> None:
    backend = changed(run=lambda self, layer, params, u, call: (np.full_like(u, np.nan), np.zeros(1)))
    assert result(backend, "L1", "s5-zoh", "float64").outcome is Outcome.FAIL


def test_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="skipped"):
        Outcome("skipped")


@pytest.mark.parametrize("clause", CLAUSES.values(), ids=lambda clause: clause.id)
def test_clause_states_one_sentence_and_has_subjects(clause: object) -> None:
    assert re.fullmatch(r"[^\n]+[.]", clause.text)
    assert clause.subjects
    assert dataclasses.is_dataclass(clause)
