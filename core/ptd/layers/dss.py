"""DSS: a diagonal system with one Lambda for all features and no input column (Gupta et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from .. import checks
from ..arrays import Array, namespace, scale
from ..discretization import phi_1
from .layer import Parameters
from .s4d import S4D


@dataclass(frozen=True)
class DSS(S4D):
    """S4D's recurrence with shared Lambda, B = 1 and all N modes stored: y = Re(C x) + D u (DSS prop. 1).

    kernel_length = 0 is DSS-exp. kernel_length = L > 0 is DSS-softmax: each mode's kernel is divided by its sum
    over L steps, which for Re Lambda < 0 is the same recurrence with B = 1/(e^{L Lambda step} - 1); longer or
    shorter inputs keep that normaliser, so the layer has a state and a step like any other.

    Parameters: Lambda (N,), C (H, N), D and log_step (H,).

    Attributes:
        kernel_length: 0 for DSS-exp, else the length DSS-softmax normalises over.

    >>> sorted(DSS(d_model=3, d_state=8).shapes())
    ['C_im', 'C_re', 'D', 'Lambda_im', 'Lambda_re', 'log_step']
    """

    conj_sym: bool = False
    shared: bool = True
    kernel_length: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.conj_sym or not self.shared:
            got = f"conj_sym={self.conj_sym}, shared={self.shared}"
            raise checks.fail("DSS", "conj_sym=False and shared=True, its definition", got, "use S4D for the rest")
        if isinstance(self.kernel_length, bool) or not isinstance(self.kernel_length, int) or self.kernel_length < 0:
            raise checks.fail("kernel_length", "0 (DSS-exp) or a length (DSS-softmax)", repr(self.kernel_length))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, all real."""
        return {name: shape for name, shape in super().shapes().items() if name not in ("B_re", "B_im")}

    def input_column(self, params: Parameters) -> Array:
        Lambda = self.eigenvalues(params)
        if self.kernel_length == 0:
            return namespace(Lambda).ones_like(Lambda)
        # Through phi_1, so that slowly decaying modes lose no digits: e^z - 1 = z phi_1(z).
        z = scale(Lambda, self.kernel_length * self.step_sizes(params, None))
        return 1.0 / (z * phi_1(z))
