"""The lattice of modes: whatever way a backend runs a layer, it agrees with itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from .. import tolerance
from ..bench import Bench, Values
from ..cases import COMMON, SUBJECTS, VALID, Case, case
from ..clause import clause
from ..outcome import Measurement, compare

L = COMMON
CHUNK = L // 3


def same(bench: Bench, label: str, whole: Case, y: Values, x: Values | None = None) -> Iterator[Measurement]:
    """y and x equal the whole case's within twice its tolerance: both sides round."""
    y_whole, x_whole = bench.apply(whole)
    yield compare(f"{label} output", y, y_whole, 2 * tolerance.output(whole, bench.dtype))
    if x is not None:
        yield compare(f"{label} final state", x, x_whole, 2 * tolerance.state(whole, bench.dtype))


@functools.cache
def whole(subject: str, form: str = "scan") -> Case:
    """The lattice's case: one sequence with an initial state."""
    c = case(subject, L)
    return c.with_call(state=c.state, form=form)


@clause("M1", SUBJECTS)
def convolution_equals_scan(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Convolution equals scan."""
    yield from same(bench, "scan", whole(subject, "convolution"), *bench.apply(whole(subject)))


@clause("M2", SUBJECTS)
def iterated_step_equals_scan(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The step, iterated, equals the scan."""
    c = whole(subject)
    params, state, outputs = bench.arrays(c.params), bench.array(c.state), []
    for k in range(L):
        y, state = bench.backend.step(c.layer, params, bench.array(c.u[:, k]), state)
        outputs.append(bench.host(y))
    yield from same(bench, "stepped", c, np.stack(outputs, axis=1), bench.host(state))


@clause("M3", SUBJECTS)
def chunks_with_carried_state_equal_the_whole(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Chunks with the state carried equal the whole, in both forms."""
    for form in ("scan", "convolution"):
        c, state, outputs = whole(subject, form), whole(subject).state, []
        for chunk in np.split(c.u, L // CHUNK, axis=1):
            y, state = bench.apply(Case(c.layer, c.params, chunk, c.call | {"state": state}))
            outputs.append(y)
        yield from same(bench, f"{form} in chunks:", c, np.concatenate(outputs, axis=1), state)


@clause("M4", SUBJECTS)
def packed_sequences_equal_single_ones(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Sequences packed end to end with reset flags equal the single sequences, in both directions."""
    c = case(subject, CHUNK, (3,), bidirectional=True)
    packed = Case(c.layer, c.params, c.u.reshape(L, -1), {"resets": np.arange(L) % CHUNK == 0})
    yield from same(bench, "single", packed, bench.apply(c.with_call(form="scan"))[0].reshape(L, -1))


@clause("M5", SUBJECTS)
def reset_equals_split(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A reset at k equals a split at k."""
    c = whole(subject)
    first, second = (c.u[:, k : k + CHUNK] for k in (0, CHUNK))
    y_first, _ = bench.apply(Case(c.layer, c.params, first, c.call))
    y_second, end = bench.apply(Case(c.layer, c.params, second, c.call | {"state": 0 * c.state}))
    both, resets = c.u[:, : 2 * CHUNK], np.arange(2 * CHUNK) == CHUNK
    reset = Case(c.layer, c.params, both, {"state": c.state, "resets": resets})
    yield from same(bench, "split", reset, np.concatenate([y_first, y_second], axis=1), end)


@clause("M6", SUBJECTS)
def padded_equals_unpadded(bench: Bench, subject: str) -> Iterator[Measurement]:
    """A padded sequence equals the unpadded one, whatever the padding holds, in both directions."""
    c = case(subject, L, bidirectional=True)
    call = {"state": c.state, "form": "scan"}
    padded = np.where(np.arange(L)[:, None] < VALID, c.u, 1e6)
    y, x = bench.apply(Case(c.layer, c.params, padded, call | {"lengths": np.full(2, VALID)}))
    yield from same(bench, "padded", Case(c.layer, c.params, c.u[:, :VALID], call), y[:, :VALID], x)


@clause("M7", SUBJECTS)
def bidirectional_equals_two_runs(bench: Bench, subject: str) -> Iterator[Measurement]:
    """Bidirectional equals a run forward plus a run over the reversed input with the other C."""
    c = case(subject, CHUNK, (3,), bidirectional=True)
    y_forward, _ = bench.apply(_one_way(c, "C", c.u, skip=True))
    y_reverse, _ = bench.apply(_one_way(c, "C_reverse", c.u[:, ::-1], skip=False))
    yield from same(bench, "two runs:", c.with_call(form="scan"), y_forward + y_reverse[:, ::-1])


@clause("M8", SUBJECTS)
def equal_steps_per_sample_equal_one_rate(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The same step for every sample equals one rate for all."""
    c = whole(subject)
    each = c.with_call(state=c.state, step_scale=np.full((2, L), 1.5))
    yield from same(bench, "per sample:", c.with_call(**c.call, step_scale=1.5), *bench.apply(each))


@clause("M9", SUBJECTS, needs="compilation")
def compiled_equals_uncompiled(bench: Bench, subject: str) -> Iterator[Measurement]:
    """The framework's compiler does not change the result."""
    c = whole(subject)
    c = Case(c.layer, c.params, c.u[:, :CHUNK], c.call)  # loops of steps, unrolled, take a compiler longest
    run = bench.backend.compiled(
        lambda params, u, state: bench.backend.apply(c.layer, params, u, state=state, return_state=True, form="scan")
    )
    y, x = run(bench.arrays(c.params), bench.array(c.u), bench.array(c.state))
    yield from same(bench, "compiled", c, bench.host(y), bench.host(x))


def _one_way(c: Case, C: str, u: Values, *, skip: bool) -> Case:
    layer = dataclasses.replace(c.layer, bidirectional=False, skip=skip)
    kept = {name: value for name, value in c.params.items() if not name.startswith("C") and (skip or name != "D")}
    return Case(layer, kept | {f"C_{part}": c.params[f"{C}_{part}"] for part in ("re", "im")}, u, {"form": "scan"})
