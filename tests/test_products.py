"""Wider rows of the suite: products in few bits pass where they are declared, and nothing coarser does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mutants import Honest

import ptd
from ptd.layers import Layer
from ptd.model import SequenceModel, is_statistic
from ptd_conformance import command, record, report, runner
from ptd_conformance.bench import Bench
from ptd_conformance.clause import CLAUSES
from ptd_conformance.outcome import Outcome
from ptd_conformance.products import PRODUCTS
from ptd_conformance.runner import Trial

RECURRENCE = ("Lambda_re", "Lambda_im", "P_re", "P_im", "log_step")


def rounded(value: Any, bits: int) -> Any:
    """value to so many significant bits."""
    if np.asarray(value).dtype.kind != "f":
        return value
    fraction, exponent = np.frexp(value)
    return np.ldexp(np.round(fraction * 2.0**bits) / 2.0**bits, exponent).astype(value.dtype)


class Rounding(Honest):
    """A backend whose factors of products, leaves and inputs, have few bits."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def factors(self, params: dict[str, Any]) -> dict[str, Any]:
        exact = {name for name in params if name.split(".")[-1] in RECURRENCE or is_statistic(name)}
        return {name: value if name in exact else rounded(value, self.bits) for name, value in params.items()}

    def run(self, layer: Layer, params: dict[str, Any], u: Any, call: dict[str, Any]) -> Any:
        return super().run(layer, self.factors(params), rounded(u, self.bits), call)

    def apply_model(self, model: SequenceModel, params: Any, u: Any, *, activations: Any = None, **call: Any) -> Any:
        return super().apply_model(model, self.factors(dict(params)), rounded(u, self.bits), **call)


def outcome(backend: Any, clause: str, subject: str, products: str) -> Outcome:
    found = runner.run(Trial(CLAUSES[clause], subject, "float32"), Bench(backend, "float32", PRODUCTS[products]))
    assert found.worst is not None, found.reason
    return found.outcome


TRIALS = [
    ("L1", "s5-zoh"),
    ("L2", "s5-zoh"),
    ("L17", "s5-zoh"),
    ("L17", "s4-legs"),
    ("L2", "s4d-zoh"),
    ("S1", "s5-batch-norm"),
]


@pytest.mark.parametrize(("clause", "subject"), TRIALS)
def test_eleven_bits_pass_as_fast_products_and_not_in_full(clause, subject):
    assert outcome(Rounding(11), clause, subject, "fast") is Outcome.PASS
    assert outcome(Rounding(11), clause, subject, "full") is Outcome.FAIL


@pytest.mark.parametrize(("clause", "subject"), [("L1", "s5-zoh"), ("L17", "s4d-zoh"), ("S1", "s4d-post-norm")])
def test_coarser_products_than_fast_ones_are_caught(clause, subject):
    assert outcome(Rounding(5), clause, subject, "fast") is Outcome.FAIL


@pytest.mark.parametrize("subject", ["s5-batch-norm", "dss-tokens"])
def test_eight_bits_pass_as_bfloat16_activations_and_five_do_not(subject):
    assert outcome(Rounding(8), "S1", subject, "bfloat16") is Outcome.PASS
    assert outcome(Rounding(3), "S1", subject, "bfloat16") is Outcome.FAIL


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(("clause", "subject"), [("S1", "s4-every-step"), ("T1", "dss-tokens")])
def test_bfloat16_activations_are_asked_of_models_and_learners(backend, clause, subject):
    asked = []
    honest = ptd.backend(backend)

    class Asked:
        def __getattr__(self, name: str) -> Any:
            value = getattr(honest, name)
            if name not in ("apply_model", "learner"):
                return value
            return lambda *args, **options: asked.append(options.get("activations")) or value(*args, **options)

    assert outcome(Asked(), clause, subject, "bfloat16") is Outcome.PASS
    assert asked == ["bfloat16"]


@pytest.mark.parametrize(("factor", "expected"), [(1 + 2**-11, Outcome.PASS), (1.1, Outcome.FAIL)])
def test_gradients_have_a_wider_row_too(factor, expected):
    class Scaled:
        def __getattr__(self, name: str) -> Any:
            return getattr(ptd.backend("torch"), name)

        def gradients(self, function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
            found = ptd.backend("torch").gradients(function, arguments)
            return {name: value * factor for name, value in found.items()}

    assert outcome(Scaled(), "G1", "s5-zoh", "fast") is expected
    assert outcome(Scaled(), "G1", "s5-zoh", "full") is Outcome.FAIL


def test_clauses_without_a_bound_for_narrower_products_are_not_run():
    found = {trial.clause.id for trial in runner.trials(Honest(), PRODUCTS["bfloat16"])}
    assert found == {"S1", "S2", "T1", "T3"}
    assert {trial.dtype for trial in runner.trials(Honest(), PRODUCTS["fast"])} == {"float32"}


def test_record_and_report_say_how_products_rounded(tmp_path):
    made = record.of(Honest(), [], 0.0, products=PRODUCTS["fast"])
    record.write(tmp_path / "fast.json", made)
    read = record.read(tmp_path / "fast.json")
    assert read["products"] == "fast"
    assert report.name(read) == "honest (cpu, fast products)"


def test_a_record_from_before_products_were_told_apart_is_in_full(tmp_path):
    made = {name: value for name, value in record.of(Honest(), [], 0.0).items() if name != "products"}
    record.write(tmp_path / "old.json", made)
    assert report.name(record.read(tmp_path / "old.json")) == "honest (cpu)"


@pytest.mark.parametrize(
    ("products", "message"),
    [("half", "products: expected one of 'bfloat16', 'fast', 'full', got 'half'"), ("bfloat16", "it has no such")],
)
def test_products_that_are_not_offered_are_refused(products, message):
    with pytest.raises(ValueError, match=message):
        command.conformance(backend="numpy", products=products)
