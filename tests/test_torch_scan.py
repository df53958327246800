"""The torch operator of the recurrence on tensors that are views; nox -s triton-interpreter runs it on Triton too."""

from __future__ import annotations

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
    """Of shared coefficients, of some for each row and for each step, against finite differences."""
    random = torch.Generator().manual_seed(0)
    shapes = [a, (3, 5, directions, 2, 2), *([(3, directions, 2, 2)] if start else [])]
    values = [0.6 * torch.randn(shape, dtype=torch.float64, generator=random) for shape in shapes]
    count = 2 if exclusive else 1  # without exclusive there is no final state

    def run(a, drive, x0=None):
        return scan(a, drive, x0, exclusive)[:count]

    assert torch.autograd.gradgradcheck(run, [value.requires_grad_() for value in values])
