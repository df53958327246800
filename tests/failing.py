"""Backends that fail, to be named on the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from mutants import MUTANTS, Honest, changed

import ptd

backend = MUTANTS["skip-dropped"][0]


def _garble(*arguments: Any, **call: Any) -> Any:
    raise ValueError("dtype [f32] expected, got [/f64]")


garbled = changed(run=_garble)


def in_step_of_s4d(fate: Callable[[], Any]) -> Any:
    """An honest backend to which something happens in a step of S4D."""

    def step(self: Any, layer: Any, *arguments: Any, **call: Any) -> Any:
        if isinstance(layer, ptd.S4D):
            fate()
        return Honest.step(self, layer, *arguments, **call)

    return changed(step=step)


dying = in_step_of_s4d(lambda: os._exit(3))
hanging = in_step_of_s4d(lambda: time.sleep(600))
