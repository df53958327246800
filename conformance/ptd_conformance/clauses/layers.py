"""Layers against the reference: output and final state in every way a layer is called."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import cases, oracle, tolerance
from ..bench import Bench
from ..cases import COMMON, LONG, SUBJECTS, VALID, ZOH, Case, case
from ..clause import clause
from ..outcome import Measurement, compare


def agrees(bench: Bench, case: Case, label: str = "") -> Iterator[Measurement]:
    """Output and final state within the derived tolerance of the reference."""
    y, x = bench.apply(case)
    y_reference, x_reference = oracle.outputs(case)
    yield compare(f"{label}output", y, y_reference, tolerance.output(case, bench.dtype, bench.products.eps))
    yield compare(f"{label}final state", x, x_reference, tolerance.state(case, bench.dtype, bench.products.eps))


@clause("L1", SUBJECTS, every_dtype=True)
def scan_form_equals_the_reference(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The scan form equals the reference; y_k contains u_k."""
    yield from agrees(bench, case(subject, 37).with_call(form="scan"))


@clause("L2", SUBJECTS, every_dtype=True)
def convolution_form_equals_the_reference(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The convolution form equals the reference: linear, not circular."""
    yield from agrees(bench, case(subject, 37).with_call(form="convolution"))


@clause("L3", SUBJECTS, every_dtype=True)
def initial_state_enters_before_the_first_sample(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The initial state x_{-1} is carried into the output, in the scan form."""
    c = case(subject, COMMON)
    yield from agrees(bench, c.with_call(state=c.state, form="scan"))


@clause("L4", SUBJECTS)
def initial_state_enters_the_convolution_form(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The initial state x_{-1} is carried into the output, in the convolution form."""
    c = case(subject, COMMON)
    yield from agrees(bench, c.with_call(state=c.state, form="convolution"))


@clause("L5", SUBJECTS)
def one_sample_is_a_sequence(bench: Bench, subject: str) -> Iterator[Measurement]:
    """L = 1 works in both forms."""
    for form in ("scan", "convolution"):
        yield from agrees(bench, case(subject, 1).with_call(form=form), f"{form} ")


@clause("L6", SUBJECTS)
def any_batch_axes_work(bench: Bench, subject: str) -> Iterator[Measurement]:
    """No batch axis, two, and an empty one."""
    for batch in ((), (2, 3)):
        yield from agrees(bench, case(subject, 4, batch), f"batch {batch} ")
    empty, shape = case(subject, 4, (0,)), (0, 4, SUBJECTS[subject][0].d_model)
    yield compare("batch (0,) output", bench.apply(empty)[0], np.zeros(shape), 0.0)


@clause("L7", ZOH, every_dtype=True)
def small_steps_do_not_cancel(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Zero-order hold stays accurate as step Lambda -> 0: no (e^z - 1)/z by subtraction."""
    c = case(subject, COMMON, dt=(1e-7, 1e-5))
    yield from agrees(bench, c.with_call(state=0 * c.state, form="scan"))


@clause("L8", SUBJECTS, every_dtype=True)
def long_memory_keeps_its_digits(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A long sequence with |Lambda_bar| near 1 stays within the error that states in this precision can keep."""
    yield from agrees(bench, case(subject, LONG, (), dt=(1e-3, 1e-2)).with_call(form="scan"))


@clause("L9", SUBJECTS, every_dtype=True)
def step_size_is_exact(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The step is exp(log_step): the answer to one impulse shows an error of 1e-5."""
    c = case(subject, LONG, ())
    u = np.zeros_like(c.u)
    u[0] = 1.0
    yield from agrees(bench, Case(c.layer, c.params, u, {"form": "scan"}))


@clause("L10", SUBJECTS)
def padding_is_ignored(bench: Bench, subject: str) -> Iterator[Measurement]:
    """With lengths, y is zero in the padding and the final state is the one at the end of the valid part."""
    c = case(subject, 11, (3,))
    for form in ("scan", "convolution"):
        yield from agrees(bench, c.with_call(lengths=np.array([7, 11, 0]), state=c.state, form=form), f"{form} ")


@clause("L11", SUBJECTS)
def reset_cuts_at_its_own_sample(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A reset at k makes x_{k-1} zero: not one sample late, not one early."""
    c = case(subject, 11)
    yield from agrees(bench, c.with_call(resets=cases.flags((2, 11)), state=c.state))
    yield from agrees(bench, c.with_call(resets=cases.flags((11,))), "flags for all: ")


@clause("L12", SUBJECTS)
def each_sample_has_its_own_step(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A step size per sample: step k is the one that leads to x_k."""
    c = case(subject, COMMON)
    yield from agrees(bench, c.with_call(step_scale=cases.steps((2, COMMON)), state=c.state))


@clause("L13", SUBJECTS)
def sampling_rate_can_change(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A number as step_scale multiplies every step, in both forms."""
    for form in ("scan", "convolution"):
        c = case(subject, COMMON)
        yield from agrees(bench, c.with_call(step_scale=2.0, state=c.state, form=form), f"{form} ")


@clause("L14", SUBJECTS)
def both_directions_contain_their_own_sample(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Bidirectional: the reverse run has its own C and state and also contains u_k, in both forms."""
    c = case(subject, VALID, bidirectional=True)
    for form in ("scan", "convolution"):
        yield from agrees(bench, c.with_call(state=c.state, form=form), f"{form} ")


@clause("L15", SUBJECTS)
def everything_at_once(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Both directions with initial state, lengths, resets and a step per sample together."""
    c = case(subject, 11, bidirectional=True)
    call = {"resets": cases.flags((2, 11)), "step_scale": cases.steps((2, 11)), "lengths": np.array([11, 6])}
    yield from agrees(bench, c.with_call(state=c.state, **call))


@clause("L16", SUBJECTS)
def unstable_parameters_cannot_be_reached(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Re Lambda is read as min(Lambda_re, -1e-4): a positive leaf decays at the margin."""
    c = case(subject, COMMON)
    params = c.params | {"Lambda_re": np.abs(c.params["Lambda_re"])}
    yield from agrees(bench, Case(c.layer, params, c.u, {"state": 0 * c.state, "form": "scan"}))


@clause("L17", SUBJECTS, every_dtype=True)
def chunked_form_equals_the_reference(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The chunked form equals the reference over several chunks, the last one cut: with a state, and both ways."""
    c = case(subject, 150)
    yield from agrees(bench, c.with_call(state=c.state, form="chunked"), "with a state, ")
    both = case(subject, 150, bidirectional=True)
    yield from agrees(bench, both.with_call(lengths=np.array([150, 67]), form="chunked"), "both ways, ")
