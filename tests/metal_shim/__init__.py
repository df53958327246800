"""Runs Metal kernels on the host: the text mlx generates, compiled as C++ over metal_shim.h.

mlx writes a kernel's whole source while it exports a function, without a Metal device. That text, signature and
template instantiation included, is what is compiled here; nothing of it is written by hand.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

HERE = Path(__file__).parent
GUARD = 64
HUGE = 2.0**100
#: Thread attributes of Metal, as the shim knows them.
ATTRIBUTES = {
    "thread_position_in_threadgroup": "shim::current->position",
    "threadgroup_position_in_grid": "shim::group",
    "threads_per_threadgroup": "shim::threads_per_group",
    "thread_index_in_simdgroup": "shim::current->index % shim::LANES",
    "simdgroup_index_in_threadgroup": "shim::current->index / shim::LANES",
    "thread_index_in_threadgroup": "shim::current->index",
}


class Kernel:
    """A stand-in for what mx.fast.metal_kernel returns: called the same way, it computes at once on the host.

    Attributes:
        turns: in which order the threads of a threadgroup take turns, from their number.
    """

    turns: Callable[[int], np.ndarray] = staticmethod(np.arange)

    def __init__(self, folder: Path, name: str, inputs: Sequence[str], outputs: Sequence[str], source: str):
        self.folder, self.name = folder, name
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._generator = mx.fast.metal_kernel(name, self._inputs, self._outputs, source)

    def __call__(self, *, inputs: list[mx.array], output_shapes: list, output_dtypes: list, **launch: Any) -> list:
        """The outputs, from a run of every threadgroup."""
        text = self.generated(inputs, output_shapes=output_shapes, output_dtypes=output_dtypes, **launch)
        run = self._compiled(text)
        given = [_guarded(np.array(value)) for value in inputs]
        made = [_guarded(np.full(shape, np.nan, np.float32)) for shape in output_shapes]
        grid, group = launch["grid"], launch["threadgroup"]
        if any(total % part for total, part in zip(grid, group, strict=True)):
            raise ValueError(f"grid: expected a multiple of threadgroup={group}, got {grid}")
        pointers = (ctypes.c_void_p * (len(given) + len(made)))(
            *(whole.ctypes.data + GUARD * whole.itemsize for whole, _ in given + made)
        )
        sizes = [(ctypes.c_uint * 3)(*values) for values in (np.floor_divide(grid, group), group)]
        order = np.ascontiguousarray(self.turns(int(np.prod(group))), np.uint32)
        if not run(pointers, *sizes, order.ctypes.data_as(ctypes.c_void_p)):
            raise RuntimeError(f"{self.name}: threads of one group diverge at a barrier or a SIMD operation")
        for (whole, value), label in zip(given + made, self._inputs + self._outputs, strict=True):
            _check_guards(label, whole, value.size)
        return [mx.array(value) for _, value in made]

    def generated(self, inputs: list[mx.array], **launch: Any) -> str:
        """The source that mlx generates for a call."""

        def call(*arrays: mx.array) -> list[mx.array]:
            return self._generator(inputs=list(arrays), verbose=True, **launch)

        with tempfile.TemporaryFile() as printed, tempfile.TemporaryDirectory() as unused:
            saved = os.dup(1)
            os.dup2(printed.fileno(), 1)
            try:
                mx.export_function(f"{unused}/kernel.mlxfn", call, *(mx.zeros(v.shape, v.dtype) for v in inputs))
            finally:
                os.dup2(saved, 1)
                os.close(saved)
            printed.seek(0)
            return printed.read().decode().partition("```\n")[2].rpartition("```")[0]

    def _compiled(self, text: str) -> Any:
        library = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
        if not library.exists():
            source = library.with_suffix(".cpp")
            source.write_text(f'#include "metal_shim.h"\n{text}\n{_entry(text)}')
            flags = ["-O1", "-shared", "-fPIC", "-std=c++17", "-Wall", "-Wno-attributes", "-Werror", f"-I{HERE}"]
            subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
        run = ctypes.CDLL(str(library)).run
        run.restype = ctypes.c_bool
        return run


def _entry(text: str) -> str:
    """A C function that runs every threadgroup of the kernel in text."""
    instance = re.search(r"decltype\((.*)\)", text)
    head = re.search(r"\[\[kernel\]\] void \w+\(\n(.*?)\) \{", text, re.DOTALL)
    if instance is None or head is None:
        raise ValueError(f"text: expected a Metal kernel and its instantiation, got {text!r}")
    arguments = []
    for parameter in head[1].split(",\n"):
        declared, attribute = re.fullmatch(r"\s*(.*) \w+ \[\[(.*)\]\]", parameter).groups()
        if buffer := re.fullmatch(r"buffer\((\d+)\)", attribute):
            arguments.append(f"({declared})buffers[{buffer[1]}]")
        else:
            arguments.append(ATTRIBUTES[attribute])
    return f"""
static void** buffers;
static void call() {{ {instance[1]}({", ".join(arguments)}); }}
extern "C" bool run(void** arrays, const uint* groups, const uint* threads, const uint* order) {{
  buffers = arrays;
  shim::body = call;
  shim::threads_per_group = {{threads[0], threads[1], threads[2]}};
  for (uint z = 0; z < groups[2]; ++z)
    for (uint y = 0; y < groups[1]; ++y)
      for (uint x = 0; x < groups[0]; ++x) {{
        shim::group = {{x, y, z}};
        if (!shim::run_group(order)) return false;
      }}
  return true;
}}
"""


def _guarded(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of value inside a larger array, and the view of it: what a kernel reads outside is huge."""
    fill = HUGE if value.dtype.kind == "f" else np.iinfo(value.dtype).max if value.dtype.kind in "iu" else True
    whole = np.full(value.size + 2 * GUARD, fill, value.dtype)
    inner = whole[GUARD : GUARD + value.size].reshape(value.shape)
    inner[...] = value
    return whole, inner


def _check_guards(label: str, whole: np.ndarray, size: int) -> None:
    around = np.concatenate([whole[:GUARD], whole[GUARD + size :]])
    if not (around == _guarded(whole[:0])[0][0]).all():
        raise RuntimeError(f"{label}: a thread wrote outside")
