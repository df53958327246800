"""Checks at the public border: one line that names argument, expectation, what came and the remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import arrays


def fail(argument: str, expected: str, got: object, remedy: str = "") -> ValueError:
    """The project's one error sentence, as a ValueError to raise.

    >>> str(fail("N", "a positive integer", -3, "pass N >= 1"))
    'N: expected a positive integer, got -3; pass N >= 1'
    """
    return ValueError(f"{argument}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))


def positive_integer(argument: str, value: Any) -> None:
    """Raise unless value is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise fail(argument, "a positive integer", repr(value), f"pass {argument} >= 1")


def seed(value: Any) -> None:
    """Raise unless value is an integer >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise fail("seed", "an integer >= 0", repr(value), "pass seed=0")


def one_device(owner: str, devices: Any) -> None:
    """Raise unless devices is 1, for a backend, called owner, whose learners have no more."""
    positive_integer("devices", devices)
    if devices > 1:
        raise fail("devices", f"1, what {owner} trains on", devices, "the jax and torch backends take several")


def choice(argument: str, value: Any, options: Iterable[str]) -> None:
    """Raise unless value is one of the names in options."""
    if value not in (names := sorted(options)):
        raise fail(argument, "one of " + ", ".join(map(repr, names)), repr(value))


def activations(value: Any, options: Iterable[str]) -> None:
    """Raise unless value is None or one of the dtypes in options, those that a backend's kernels take."""
    if value is not None and value not in (names := sorted(options)):
        expected = "None" + (", or one of " + ", ".join(map(repr, names)) if names else "")
        raise fail("activations", expected, repr(value), "None keeps the parameters' dtype")


def shape(argument: str, array: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raise unless array's shape equals expected; meaning names the axes and where their sizes come from."""
    if tuple(np.shape(array)) != expected:
        raise fail(argument, f"shape {expected}, {meaning}", tuple(np.shape(array)))


def shapes(owner: str, params: Any, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise unless params maps exactly the expected names to arrays of the expected shapes."""
    if missing := sorted(expected.keys() - params.keys()):
        raise fail("params", f"the leaves of {owner}", f"none named {', '.join(missing)}", "see layer.shapes()")
    if extra := sorted(params.keys() - expected.keys()):
        raise fail("params", f"only the leaves of {owner}", f"also {', '.join(extra)}", "see layer.shapes()")
    for name, shape_ in expected.items():
        shape(name, params[name], shape_, f"a leaf of {owner}")


def one_dtype(params: Any, dtype: Any) -> None:
    """Raise unless all leaves have a dtype, and one not narrower than float32: eigenvalues near 1 need its digits."""
    if name_of(dtype) in ("float16", "bfloat16"):
        raise fail("params", "leaves of float32 or wider", dtype, "narrower activations are a learner's or autocast's")
    for name, leaf in params.items():
        if leaf.dtype != dtype:
            raise fail("params", f"leaves of one dtype, {dtype} as log_step", f"{leaf.dtype} for {name}", "cast it")


def leaves(owner: str, params: Any, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise unless the host arrays in params have the expected names and shapes and are real and finite."""
    shapes(owner, params, expected)
    for name, leaf in params.items():
        dtype = np.asarray(leaf).dtype
        if dtype.kind != "f":
            raise fail(name, "a real floating dtype", dtype, "store complex values as two leaves, _re and _im")
        finite(name, leaf)


def broadcasts(argument: str, array: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raise unless an array or host value broadcasts to shape expected."""
    own = tuple(np.shape(array))
    if len(own) > len(expected) or any(a not in (1, b) for a, b in zip(own[::-1], expected[::-1], strict=False)):
        raise fail(argument, f"a shape that broadcasts to {expected}, {meaning}", own)


def plain_fields(description: Any) -> None:
    """Make NumPy's numbers in a frozen dataclass Python's own: they are stored as JSON, and compared."""
    for field in dataclasses.fields(description):
        if isinstance(value := getattr(description, field.name), np.generic):
            object.__setattr__(description, field.name, value.item())


def boolean(argument: str, value: Any) -> None:
    """Raise unless value is True or False: a string or None would count as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise fail(argument, "True or False", repr(value))


def instance(argument: str, value: Any, kind: type, name: str, remedy: str = "") -> None:
    """Raise unless value is an instance of kind, called name in the message."""
    if not isinstance(value, kind):
        raise fail(argument, name, repr(value), remedy)


def array(argument: str, value: Any, kind: type = object, name: str = "an array") -> None:
    """Raise unless value is an array of some framework, or of the one whose arrays are of a kind, called name."""
    if not isinstance(value, kind) or not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise fail(argument, name, type(value).__name__, f"pass backend.asarray({argument})")


def name_of(dtype: Any) -> str:
    """A dtype's bare name, "float32" for every framework's."""
    return str(dtype).rpartition(".")[2]


def flags(argument: str, value: Any) -> None:
    """Raise unless value is of boolean dtype."""
    own = hasattr(value, "dtype")
    array = value if own else np.asarray(value)
    dtype = array.dtype
    if "bool" not in str(dtype) and (own or array.size):  # an empty list has a dtype that nobody chose
        raise fail(argument, "boolean flags", f"dtype {dtype}", "pass one flag per sample, not indices")


HOST = (bool, int, float, complex, str, list, tuple)


def on_host(value: Any) -> np.ndarray | None:
    """The value as a NumPy array, where it is one, a number, text, a sequence or an array of arrays.on_host; else None.

    What follows for values that are not looked at must hold for any of them: see sequences.within.
    """
    if isinstance(value, (*HOST, np.ndarray, np.generic)):
        return np.asarray(value)
    return arrays.on_host(value)


def lengths(value: Any, L: int) -> None:
    """Raise unless lengths are integers and, where they can be looked at, in 0 ... L."""
    if isinstance(value, (list, tuple)) and all(type(one) is int and 0 <= one <= L for one in value):
        return  # without NumPy, which torch.compile would trace
    if (host := on_host(value)) is None:
        if not is_integral(value):
            raise fail("lengths", "integers", f"dtype {value.dtype}", "cast them")
        return
    if host.size and host.dtype.kind not in "iu":
        raise fail("lengths", "integers", f"dtype {host.dtype}")
    if host.size and (host.min() < 0 or host.max() > L):
        raise fail("lengths", f"values in 0..{L}, the length of u", int(host.max() if host.max() > L else host.min()))


def is_integral(value: Any) -> bool:
    """Whether a host value or a framework's array is of an integer dtype."""
    return "int" in str(value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype)


def numbers_below(argument: str, value: Any, size: int, what: str, origin: str) -> None:
    """Raise unless integers, called what, are in 0 ... size - 1, where they can be looked at; size is origin's."""
    host = on_host(value)
    if host is None or not host.size or (host.dtype.kind == "u" and np.iinfo(host.dtype).max < size):
        return
    low, high = host.min(), host.max()
    if low < 0 or high >= size:
        raise fail(argument, f"{what} in 0..{size - 1} from {origin}", int(low if low < 0 else high))


def positive(argument: str, value: Any, remedy: str = "") -> None:
    """Raise unless values are real, finite and > 0, where they can be looked at."""
    if type(value) in (int, float) and math.isfinite(value) and value > 0:
        return  # without NumPy, which torch.compile would trace
    if (host := on_host(value)) is None:
        return
    if host.dtype.kind not in "iuf":
        raise fail(argument, "finite values > 0", repr(value), remedy)
    bad = ~(np.isfinite(host) & (host > 0))
    if bad.any():
        raise fail(argument, "finite values > 0", np.atleast_1d(host)[np.atleast_1d(bad)][0], remedy)


def positive_number(argument: str, value: Any, remedy: str = "") -> None:
    """Raise unless value is one real, finite number > 0."""
    if np.ndim(value):
        raise fail(argument, "one number > 0", repr(value), remedy)
    positive(argument, value, remedy)


def number(argument: str, value: Any, low: float, high: float, expected: str) -> None:
    """Raise unless value is a real number with low <= value < high."""
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not low <= value < high:
        raise fail(argument, expected, repr(value))


def finite(argument: str, array: Any) -> None:
    """Raise if a host array has a NaN or infinity, naming the first place."""
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if bad.size:
        raise fail(
            argument,
            "finite values",
            f"{np.asarray(array)[tuple(bad[0])]} at index {tuple(int(i) for i in bad[0])}",
            "the parameters diverged or the file is damaged: go back to an earlier checkpoint",
        )


def options(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError, as Python does for an unknown keyword, unless all given options are known; it lists those."""
    known = sorted(known)
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(str(fail(owner, f"only the options {', '.join(known)}", f"also {', '.join(unknown)}")))


def same_dtype(argument: str, value: Any, like: Any, remedy: str) -> None:
    """Raise unless an array has the dtype of like, a parameter; another framework's array is named as such."""
    if value.dtype == like.dtype:
        return
    # by dtypes, since jax computes with NumPy's arrays as well
    if _framework(value.dtype) != _framework(like.dtype):
        expected, got = f"an array of {_framework(like)}, as the parameters are", f"one of {_framework(value)}"
        raise fail(argument, expected, got, "pass what is not the backend's own through backend.asarray(...)")
    raise fail(argument, f"dtype {like.dtype} from the parameters", value.dtype, remedy)


def _framework(value: Any) -> str:
    return type(value).__module__.partition(".")[0].removesuffix("lib")  # jaxlib


def batch_axes(value: Any) -> None:
    """Raise unless batch is a sequence of sizes, integers >= 0."""
    sizes = value if isinstance(value, (tuple, list)) else [-1]
    if any(isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0 for size in sizes):
        raise fail("batch", "a tuple of sizes, as (8,), or ()", repr(value), "pass the leading axes of the samples")


def host(name: str, value: Any) -> np.ndarray:
    """A leaf as a NumPy array; ValueError where its framework does not give it, as one recorded or on a device."""
    try:
        return np.ascontiguousarray(value)
    except (RuntimeError, TypeError) as error:
        got = f"a {type(value).__name__} for {name}, of which NumPy makes none"
        raise fail("params", "leaves as host arrays", got, "pass module.leaves()") from error
