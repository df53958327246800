"""What operators say that have a first derivative only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refuse_second(what: str) -> Callable[..., Any]:
    """The gradient of the gradient of what, for register_autograd: there is none."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"gradients: expected a first derivative of {what}, got a second, which its kernels do not have; "
            "use form='scan'"
        )

    return backward
