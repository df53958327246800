"""How the products of a run round: in full, or in a narrower format that a wider row of the report allows for."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ptd import checks
from ptd.contract import Backend


@dataclass(frozen=True)
class Products:
    """A format of the factors of matrix products.

    Attributes:
        name: as the command takes it and the record keeps it.
        words: for the report's heading.
        eps: spacing of the format's numbers at one, what a factor may be off by where it is cut off; 0 if nothing is
            narrower than the dtype. Sums and the recurrence are in the dtype.
        clauses: ids of the clauses, or their first letters, that have a bound for it; None for all.
        activations: what models compute in between encoder and pooling, or None for the dtype.
    """

    name: str
    words: str = ""
    eps: float = 0.0
    clauses: tuple[str, ...] | None = None
    activations: str | None = None

    def allowed(self, backend: Backend) -> AbstractContextManager:
        """A context in which the backend may round so."""
        return backend.fast_products() if self.name == "fast" else contextlib.nullcontext()

    def covers(self, clause: str) -> bool:
        """Whether there is a bound for a clause."""
        return self.clauses is None or clause in self.clauses or clause[0] in self.clauses

    def options(self) -> dict[str, Any]:
        """What models and learners are asked for."""
        return {} if self.activations is None else {"activations": self.activations}


#: TF32 has ten bits of fraction, bfloat16 seven.
PRODUCTS = {
    each.name: each
    for each in (
        Products("full"),
        Products("fast", "fast products", 2.0**-10, ("L", "G", "S1", "S2", "S3")),
        Products("bfloat16", "bfloat16 activations", 2.0**-7, ("S1", "S2", "T1", "T3"), "bfloat16"),
    )
}
FULL = PRODUCTS["full"]


def chosen(name: str, backend: Backend) -> Products:
    """Products by name, for a backend.

    Raises:
        ValueError: no products of that name, or the backend has no such activations.
    """
    checks.choice("products", name, PRODUCTS)
    found = PRODUCTS[name]
    if found.activations and found.activations not in backend.kernels.activations:
        raise ValueError(f"products: expected full or fast for {backend.name}, got {name}; it has no such activations")
    return found
