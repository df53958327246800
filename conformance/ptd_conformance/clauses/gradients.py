"""Gradients against derivatives of the reference, along random directions of every real argument."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from .. import cases, oracle, tolerance
from ..bench import Bench
from ..cases import SUBJECTS, ZOH, Case, case
from ..clause import clause
from ..outcome import Measurement, compare


def agree(bench: Bench, case: Case, names: Iterable[str]) -> Iterator[Measurement]:
    """Each gradient within its derived tolerance, along one random direction."""
    gradients, (w, w_state) = bench.gradients(case), oracle.weights(case)
    for name in names:
        along = oracle.direction(case, name)
        allowed = tolerance.gradient(case, name, along, w, w_state, bench.dtype, bench.products.eps)
        allowed += oracle.difference_error(tolerance.loss_size(case, w, w_state))
        yield compare(f"d/d {name}", np.sum(gradients[name] * along), oracle.derivative(case, name), allowed)


@functools.cache
def whole(subject: str, form: str = "scan") -> Case:
    """A sequence with an initial state."""
    c = case(subject, 9)
    return c.with_call(state=c.state, form=form)


@clause("G1", SUBJECTS, needs="gradients", every_dtype=True)
def gradient_of_every_parameter(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The gradient by every real leaf, the step size among them."""
    yield from agree(bench, whole(subject), whole(subject).params)


@clause("G2", SUBJECTS, needs="gradients", every_dtype=True)
def gradient_of_the_input(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The gradient by the input."""
    yield from agree(bench, whole(subject), ["u"])


@clause("G3", SUBJECTS, needs="gradients", every_dtype=True)
def gradient_of_the_initial_state(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The gradient by the initial state, through outputs and final state."""
    yield from agree(bench, whole(subject), ["state"])


@clause("G4", SUBJECTS, needs="gradients")
def gradient_of_the_convolution_form(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Every gradient of the convolution form."""
    c = whole(subject, "convolution")
    yield from agree(bench, c, oracle.arguments(c))


@clause("G5", SUBJECTS, needs="gradients")
def gradient_with_everything_at_once(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Every gradient through both directions, lengths, resets and a step per sample."""
    c = case(subject, 9, bidirectional=True)
    call = {"resets": cases.flags((2, 9)), "step_scale": cases.steps((2, 9)), "lengths": np.array([9, 5])}
    c = c.with_call(state=c.state, **call)
    yield from agree(bench, c, oracle.arguments(c))


@clause("G6", ZOH, needs="gradients")
def gradient_survives_small_steps(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Every gradient stays accurate as step Lambda -> 0, where differentiated formulas cancel."""
    c = case(subject, 5, dt=(1e-6, 1e-4))
    c = c.with_call(state=c.state, form="scan")
    yield from agree(bench, c, oracle.arguments(c))


@clause("G7", SUBJECTS, needs="gradients")
def gradient_of_the_chunked_form(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Every gradient of the chunked form, over several chunks: with a state, and both ways."""
    c = case(subject, 70, ())
    c = c.with_call(state=c.state, form="chunked")
    yield from agree(bench, c, oracle.arguments(c))
    both = case(subject, 70, (), bidirectional=True).with_call(form="chunked")
    yield from agree(bench, both, oracle.arguments(both))
