"""A backend under test in one dtype: host values in, host values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptd.arrays import as_complex, imag, real
from ptd.contract import Backend

from . import oracle
from .cases import Case
from .products import FULL, Products

Values = NDArray[np.float64]


@dataclass
class Bench:
    """Runs cases on a backend. What was computed once is kept: several clauses look at one run."""

    backend: Backend
    dtype: str
    products: Products = FULL
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def array(self, host: Any) -> Any:
        """A host value on the backend: reals and complex in the bench's dtype, integers and flags as they are."""
        host = np.asarray(host)
        if host.dtype.kind == "c":
            return as_complex(self.array(host.real), self.array(host.imag))
        return self.backend.asarray(host, self.dtype if host.dtype.kind == "f" else None)

    def arrays(self, host: Mapping[str, Any]) -> dict[str, Any]:
        """A dict of host values on the backend; plain numbers, strings and None stay."""
        return {n: self.array(v) if isinstance(v, np.ndarray) else v for n, v in host.items()}

    def host(self, array: Any) -> NDArray:
        """A backend array on the host, in double precision if it is real or complex."""
        if "complex" in str(array.dtype):
            return self.host(real(array)) + 1j * self.host(imag(array))
        array = np.asarray(self.backend.to_numpy(array))
        return array.astype(np.float64) if array.dtype.kind == "f" else array

    def apply(self, case: Case) -> tuple[Values, Values]:
        """Output and final state of a case."""
        if case not in self._kept:
            call = self.arrays(case.call)
            y, x = self.backend.apply(
                case.layer, self.arrays(case.params), self.array(case.u), return_state=True, **call
            )
            self._kept[case] = self.host(y), self.host(x)
        return self._kept[case]

    def gradients(self, case: Case) -> dict[str, Values]:
        """The gradient of the oracle's loss by every leaf, the input and, where the case has one, the initial state."""
        if ("gradients", case) not in self._kept:
            fixed = self.arrays({n: v for n, v in case.call.items() if n != "state"})
            w, w_state = map(self.array, oracle.weights(case))

            def loss(u: Any, state: Any = None, **params: Any) -> Any:
                y, x = self.backend.apply(case.layer, params, u, state=state, return_state=True, **fixed)
                return (w * y).sum() + (w_state * x).sum()

            found = self.backend.gradients(loss, self.arrays(oracle.arguments(case)))
            self._kept["gradients", case] = {name: self.host(value) for name, value in found.items()}
        return self._kept["gradients", case]
