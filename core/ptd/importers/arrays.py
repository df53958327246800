"""Checkpoints as flat mappings of names to arrays: the layer at a prefix, whole, with its shapes checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..initialization import PARTS, Leaves
from ..layers.layer import STABILITY_MARGIN, Layer

#: Where flax and Lightning put a net's parameters, among other things that a checkpoint holds.
WRAPPERS = ("state_dict", "params")


def flatten(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with names like "encoder/layers_0/seq/B", whatever its nesting and its separators were.

    Parameters under "params" or "state_dict" come without that; "batch_stats" and what else there is keeps its place.

    >>> flatten({"params": {"seq": {"D": 1}}, "batch_stats": {"norm.mean": 2}})
    {'seq/D': 1, 'batch_stats/norm/mean': 2}
    """
    checks.instance("arrays", arrays, Mapping, "a mapping of names to arrays", "pass ptd.importers.read(path)")
    flat = dict(_items(arrays, ""))
    for wrapper in WRAPPERS:
        flat = {name.removeprefix(f"{wrapper}/"): value for name, value in flat.items()}
    return flat


def _items(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        path = joined(prefix, str(name))
        if isinstance(value, Mapping):
            yield from _items(value, path)
        else:
            yield path, value


def joined(*parts: str) -> str:
    """A name from its parts, as flatten has it; empty ones, of a prefix that is none, leave no separator.

    >>> joined("model.", "layer", "kernel/B"), joined("", "D")
    ('model/layer/kernel/B', 'D')
    """
    return "/".join(filter(None, (part.replace(".", "/").strip("/") for part in parts)))


def under(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What a checkpoint has below a prefix, named from there on, as it is.

    >>> under({"layers.0.seq.D": 1, "layers.1.seq.D": 2}, "layers.1")
    {'seq/D': 2}
    """
    place, found = joined(prefix), flatten(arrays).items()
    start = f"{place}/" if place else ""
    return {name.removeprefix(start): value for name, value in found if name.startswith(start)}


def places(arrays: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The prefixes at which a checkpoint has all of names.

    >>> places({"layers.0.seq.D": 1, "layers.1.seq.D": 2, "D": 3}, ["seq/D"])
    ['layers/0', 'layers/1']
    """
    flat, names = flatten(arrays), list(names)
    ends = [path for path in flat if path == names[0] or path.endswith(f"/{names[0]}")]
    prefixes = [path.removesuffix(names[0]) for path in ends]
    return [prefix.rstrip("/") for prefix in prefixes if all(prefix + name in flat for name in names)]


def take(arrays: Mapping[str, Any], prefix: str, axes: Mapping[str, str]) -> dict[str, NDArray]:
    """The arrays below a prefix, which are those of axes and no others, in double precision.

    Args:
        arrays: the checkpoint, flat or nested.
        prefix: where the names of axes begin, with "." or "/" between its parts.
        axes: of every name its axes, as "P H 2": equal letters are of equal size, the first one decides; numbers are
            sizes. "complex H P" allows complex numbers and makes them so.

    Returns:
        The arrays named as in axes, float64 or complex128.

    Raises:
        ValueError: a name is missing or left over, a shape does not fit, or values are not finite numbers.

    >>> take({"seq.B": np.ones((4, 3, 2))}, "seq", {"B": "P H 2"})["B"].dtype
    dtype('float64')
    """
    found = under(arrays, prefix)
    if missing := [name for name in axes if name not in found]:
        where = places(arrays, axes)
        remedy = "pass prefix=" + " or ".join(map(repr, where[:3])) if where else "see the names in the file"
        raise checks.fail("prefix", f"{', '.join(axes)} below it", f"no {', '.join(missing)} at {prefix!r}", remedy)
    if extra := sorted(found.keys() - axes.keys()):
        got = f"also {', '.join(extra[:4])}" + (f" and {len(extra) - 4} more" if len(extra) > 4 else "")
        remedy = "they would be left behind: pass a longer prefix, or the layer is of another kind"
        raise checks.fail("prefix", f"only {', '.join(axes)} below {prefix!r}", got, remedy)
    sizes: dict[str, tuple[int, str]] = {}
    return {name: _fitting(name, found[name], letters, sizes) for name, letters in axes.items()}


def two_readouts(names: Mapping[str, Any], Lambda: str) -> bool:
    """Whether C has twice as many columns as Lambda, called so, has modes: of the run forth and of the one back."""
    C, modes = np.shape(names.get("C", ())), np.shape(names.get(Lambda, ()))
    return len(C) > 1 and len(modes) == 1 and C[1] == 2 * modes[0]


def _fitting(name: str, value: Any, letters: str, sizes: dict[str, tuple[int, str]]) -> NDArray:
    """One array with the axes in letters, whose sizes are kept with the name that set them."""
    kind = np.complex128 if letters.startswith("complex") else np.float64
    array, wanted = numbers(name, value), letters.removeprefix("complex").split()
    if array.ndim == len(wanted):
        for letter, size in zip(wanted, array.shape, strict=True):
            sizes.setdefault(letter, (int(letter) if letter.isdigit() else size, name))
    known = [str(sizes[letter][0]) if letter in sizes else letter for letter in wanted]
    if [str(size) for size in array.shape] != known:
        because = ", ".join(
            f"{letter}={sizes[letter][0]} from {sizes[letter][1]}"
            for letter in dict.fromkeys(wanted)
            if letter in sizes and not letter.isdigit()
        )
        expected = f"shape ({', '.join(wanted)})" + (f" with {because}" if because else "")
        raise checks.fail(name, expected, array.shape, "another kind of layer, or another option")
    if array.dtype.kind == "c" and kind is np.float64:
        raise checks.fail(name, "real numbers", array.dtype, "another source has these names: see ptd import FILE")
    checks.finite(name, array)
    return array.astype(kind)


def numbers(name: str, value: Any) -> NDArray:
    """A checkpoint's entry as a NumPy array of numbers: of NumPy, jax, or torch on the CPU.

    Raises:
        ValueError: it is no array of numbers, or lies on a device.
    """
    value = value.detach() if hasattr(value, "detach") else value
    if "bfloat16" in str(getattr(value, "dtype", "")) and hasattr(value, "float"):
        value = value.float()  # NumPy has no bfloat16 for torch to give
    try:
        array = np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        got = f"a {type(value).__name__} that NumPy cannot read"
        raise checks.fail(name, "an array", got, "move it to the CPU first") from error
    if "bfloat16" in str(array.dtype):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fciu":
        raise checks.fail(name, "an array of numbers", f"dtype {array.dtype}", "it is no checkpoint of parameters")
    return array


def unit_of_time(name: str, Lambda: NDArray[np.complex128]) -> float:
    """The least c = 1, 2, 4, ... with Re Lambda c <= -STABILITY_MARGIN, where layers cut Re Lambda off.

    Zero-order hold and the bilinear rule depend on Lambda step and B step alone: Lambda c, B c and step/c are the same
    recurrence, in another unit of time (with a low-rank term, P sqrt(c)).

    Args:
        name: of the parameter, for the error.
        Lambda: complex eigenvalues, any shape.

    Raises:
        ValueError: some Re Lambda >= 0.

    >>> unit_of_time("Lambda_re", np.array([-0.5 + 1j, -3e-5 + 2j]))
    4.0
    """
    slowest = float(Lambda.real.max())
    if slowest >= 0:
        remedy = "its modes never decay: clip Re Lambda below zero in the source and train on"
        raise checks.fail(name, "Re Lambda < 0", f"{slowest:.3g}", remedy)
    return 2.0 ** max(0, math.ceil(math.log2(STABILITY_MARGIN / -slowest)))


def upper_half(Lambda: NDArray, *companions: NDArray) -> list[NDArray]:
    """Of each conjugate pair the mode with Im Lambda >= 0, and with it the conjugates of its B, C or P.

    2 Re(C x) is the same for both.

    Args:
        Lambda: complex eigenvalues.
        companions: arrays that Lambda broadcasts against.

    >>> upper_half(np.array([-1 - 2j]), np.array([[3 + 1j]]))
    [array([-1.+2.j]), array([[3.-1.j]])]
    """
    lower = Lambda.imag < 0
    return [np.where(lower, np.conj(values), values) for values in (Lambda, *companions)]


def leaves_of(layer: Layer, real: Mapping[str, NDArray], **complex_values: NDArray) -> Leaves:
    """A layer's leaves, float64, from real ones and from complex values, each of them two leaves; checked.

    Raises:
        ValueError: they are not the layer's.
    """
    split = {name + part: of(value) for name, value in complex_values.items() for part, of in PARTS}
    leaves = {name: np.array(value, np.float64, order="C") for name, value in (split | dict(real)).items()}
    layer.check(leaves)
    return leaves
