"""A clause: one sentence that must hold for every backend, and the function that measures whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .bench import Bench
from .outcome import Measurement

Check = Callable[[Bench, str], Iterable[Measurement]]

#: Every clause by its id, in the order of the report.
CLAUSES: dict[str, Clause] = {}


@dataclass(frozen=True)
class Clause:
    """One sentence of the contract.

    Attributes:
        id: short and stable, for tables and mutants.
        name: the sentence as an identifier.
        text: the sentence.
        check: measures it for one subject.
        subjects: what it is measured on: layers, kernels or models, by name.
        needs: the feature a backend may declare unsupported, or None.
        every_dtype: measured in all of a backend's dtypes, else in its most precise one.
    """

    id: str
    name: str
    text: str
    check: Check
    subjects: tuple[str, ...]
    needs: str | None
    every_dtype: bool

    def dtypes(self, offered: tuple[str, ...]) -> tuple[str, ...]:
        """The dtypes it is measured in, of those a backend offers."""
        precise = max(offered, key=lambda name: int(name.removeprefix("float")))
        return offered if self.every_dtype else (precise,)


def clause(
    id: str, subjects: Iterable[str], *, needs: str | None = None, every_dtype: bool = False
) -> Callable[[Check], Check]:
    """Register the decorated function as a clause; its docstring's first line is the clause's text."""

    def register(check: Check) -> Check:
        text = (check.__doc__ or "").strip().splitlines()[0]
        if id in CLAUSES or not text:
            raise ValueError(f"id: expected a new id and a docstring, got {id!r} for {check.__name__}")
        CLAUSES[id] = Clause(id, check.__name__, text, check, tuple(subjects), needs, every_dtype)
        return check

    return register
