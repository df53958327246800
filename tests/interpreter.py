"""Triton's interpreter on a CPU, for the tests of Triton kernels; run, the command `ptd` in it.

Two things of the interpreter (Triton 3.9) cost more than all arithmetic, and change no number: it calls the function of
a scan once per element, in Python, and looks through all of triton.language again where a kernel calls a function.
Here a scan's function is called once per step, on what stands side by side, and that look is taken once per launch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch

from ptd_torch.kernels import KERNELS
from ptd_torch.scan import kernel_path

RUNS = kernel_path(torch.device("cpu")) == "triton interpreter"

needed = pytest.mark.skipif(not RUNS, reason="needs TRITON_INTERPRET=1 and Triton: nox -s triton-interpreter")


def scan_by_steps(self: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """In place of triton.runtime.interpreter.ScanOps.generic_scan, for functions that give tuples."""
    steps = range(arguments[0].shape[self.axis])
    given = [
        tuple(self.to_tensor(np.take(each.handle.data, [k], self.axis), each.dtype) for each in arguments)
        for k in steps
    ]
    found = accumulate(given, lambda before, here: self.combine_fn.fn(*before, *here))
    joined = (np.concatenate([each.handle.data for each in values], self.axis) for values in zip(*found, strict=True))
    return [self.to_tensor(data, each.dtype) for data, each in zip(joined, arguments, strict=True)]


def call_function(self: Any, *arguments: Any, **named: Any) -> Any:
    """In place of InterpretedFunction.__call__: what a module sees of triton.language is replaced once a launch."""
    if self.fn.__module__ not in _seen:
        _seen.add(self.fn.__module__)
        triton_interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)


def launch(self: Any, *arguments: Any, **named: Any) -> Any:
    """In place of InterpretedFunction.run, whose end puts triton.language back."""
    _seen.clear()
    return run(self, *arguments, **named)


def counted_turns(patch: pytest.MonkeyPatch) -> list[str]:
    """The names of turns' functions as they are called from now on."""
    from ptd_torch.triton import turns

    called: list[str] = []
    for name in ("to_features", "from_features"):
        turn = getattr(turns, name)
        patch.setattr(turns, name, lambda *args, turn=turn, name=name: called.append(name) or turn(*args))
    return called


def matrices_by_array_code(patch: pytest.MonkeyPatch) -> None:
    """Matrices over chunks not as kernels, which take most of a learner's time here and have tests of their own."""
    patch.setitem(KERNELS, "cpu", dataclasses.replace(KERNELS["cpu"], diagonal_chunks=None))


#: The arguments that kernels of chunks write.
WRITTEN = {"entering", "final", "y", "grad_decay", "grad_into", "grad_out", "grad_direct"}


def chunks_of_zeros(patch: pytest.MonkeyPatch) -> None:
    """The kernels of chunks write zeros alone: for what shows in where arrays lie, whatever they hold."""
    from ptd_torch.triton import chunks

    def clear(names: list[str], *arguments: Any, **_: Any) -> None:
        given = dict(zip(names, arguments, strict=False))  # the others are constants, by keyword
        for name in names:
            if name in WRITTEN and given.get(name) is not None:
                given[name].zero_()

    for name in ("_walk", "_outputs", "_products"):
        launch = functools.partial(clear, getattr(chunks, name).arg_names)
        patch.setattr(chunks, name, collections.defaultdict(lambda launch=launch: launch))


_seen: set[str] = set()
if RUNS:
    from triton.runtime import interpreter as triton_interpreter
    from triton.runtime.interpreter import InterpretedFunction, ScanOps

    scan_by_elements, run = ScanOps.generic_scan, InterpretedFunction.run
    if hasattr(triton_interpreter, "_patch_lang"):  # another Triton runs as it is
        ScanOps.generic_scan = scan_by_steps
        InterpretedFunction.run, InterpretedFunction.__call__ = launch, call_function

if __name__ == "__main__":
    from ptd.cli import main

    main()
