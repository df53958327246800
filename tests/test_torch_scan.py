"""The torch operator of the recurrence on tensors that are views; nox -s triton-interpreter runs it on Triton too."""

from __future__ import annotations

import interpreter
import pytest
import torch
from torch.testing import assert_close

from ptd_torch.scan import scan

R, L, M = 2, 40, 5


def planes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 2, M, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coefficients(*shape: int) -> torch.Tensor:
    """In the unit disk."""
    a = planes(*shape, seed=1)
    return a / a.norm(dim=-2, keepdim=True).clamp(min=1)


def test_sum_of_final_states_has_the_gradient_of_their_weighted_sum():
    a, drive = coefficients().requires_grad_(), planes(R, L, 2).requires_grad_()
    final = scan(a, drive, None, True)[1]
    by_sum = torch.autograd.grad(final.sum(), [a, drive], retain_graph=True)
    assert_close(by_sum, torch.autograd.grad(final, [a, drive], torch.ones_like(final).clone()))


def test_broadcast_coefficients_have_the_gradient_of_their_copies():
    a, drive, weights = coefficients(L).requires_grad_(), planes(R, L, 1), planes(R, L, 1, seed=2)
    shared = a.expand(R, L, 2, M)
    found, expected = (
        torch.autograd.grad((scan(each, drive, None, False)[0] * weights).sum(), a)[0]
        for each in (shared, shared.contiguous())
    )
    assert_close(found, expected)


@pytest.mark.parametrize("start", [True, False], ids=["state", "rest"])
@pytest.mark.parametrize(
    ("directions", "exclusive", "a"),
    [
        (1, False, (2, 2)),
        (1, False, (3, 2, 2)),
        (1, False, (3, 5, 2, 2)),
        (1, True, (2, 2)),
        (2, True, (2, 2)),
        (2, True, (3, 2, 2)),
    ],
)
def test_second_derivatives_of_the_recurrence(directions, exclusive, a, start):
    """Of shared coefficients, of some for each row and for each step, against those of its definition."""
    random = torch.Generator().manual_seed(0)
    shapes = [a, (3, 5, directions, 2, 2), *([(3, directions, 2, 2)] if start else [])]
    values = [0.6 * torch.randn(shape, dtype=torch.float64, generator=random) for shape in shapes]
    values = [value.requires_grad_() for value in values]
    found, expected = (second_derivatives(run, values, exclusive) for run in (scan, defined))
    assert_close(found, expected)


def second_derivatives(run, values: list[torch.Tensor], exclusive: bool) -> tuple[torch.Tensor, ...]:
    """Of a sum of cubes, by everything."""
    a, drive, x0 = values if len(values) == 3 else (*values, None)
    x, final = run(a, drive, x0, exclusive)
    first = torch.autograd.grad((x**3).sum() + (final**3).sum(), values, create_graph=True)
    return torch.autograd.grad(sum((gradient**2).sum() for gradient in first), values)


@interpreter.needed
def test_scan_by_steps_is_the_interpreters_own_bit_for_bit(monkeypatch):
    """In several tiles, the last one cut, with padding beside the rows: one lane after the other, and all at once."""
    from triton.runtime.interpreter import ScanOps

    from ptd_torch.triton import scan as triton_scan

    monkeypatch.setattr(triton_scan, "ROWS", 4)
    monkeypatch.setattr(triton_scan, "LANES", 8)
    found = {}
    for run in (interpreter.scan_by_elements, interpreter.scan_by_steps):
        monkeypatch.setattr(ScanOps, "generic_scan", run)
        found[run] = scan(coefficients(), planes(R, 7, 2), None, True)
    own, quick = found.values()
    assert all(map(torch.equal, quick, own))


def defined(a, drive, x0, exclusive: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What scan is said to return, one sample after the other."""
    (rows, n, directions), a = drive.shape[:3], torch.view_as_complex(a.movedim(-2, -1).contiguous())
    if a.ndim == 2:
        a = a.repeat_interleave(rows // len(a), 0)
    results, finals = [], []
    for direction in range(directions):
        d = torch.view_as_complex(drive[:, :, direction].movedim(-2, -1).contiguous())
        order = range(n) if direction == 0 else range(n - 1, -1, -1)
        state = torch.zeros_like(d[:, 0]) if x0 is None else torch.complex(*x0[:, direction].unbind(-2))
        seen = {}
        for k in order:
            before, state = state, (a[:, k] if a.ndim == 3 else a) * state + d[:, k]
            seen[k] = before if exclusive else state
        results.append(torch.view_as_real(torch.stack([seen[k] for k in range(n)], 1)).movedim(-1, -2))
        finals.append(torch.view_as_real(state).movedim(-1, -2))
    x, final = torch.stack(results, 2), torch.stack(finals, 1)
    return x, final if exclusive else final.new_empty(0)
