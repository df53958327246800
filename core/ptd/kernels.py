"""The kernels a layer is composed of: a table of functions, each of which a backend may replace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import chunks, convolution, recurrence
from .arrays import Array


@dataclass(frozen=True)
class Kernels:
    """The performance-critical functions, and the choices between forms that depend on them.

    The defaults are the definitions, in any array namespace.

    A backend passes its own table: ``Kernels(scan=my_scan)`` keeps the definitions for everything else.

    >>> Kernels().scan is recurrence.scan
    True
    """

    scan: Callable[..., Array] = recurrence.scan
    scan_low_rank: Callable[..., Array] = recurrence.scan_low_rank
    vandermonde: Callable[..., Array] = convolution.vandermonde
    cauchy: Callable[..., Array] = convolution.cauchy
    causal_convolution: Callable[..., Array] = convolution.causal_convolution
    mixing_convolution: Callable[..., Array] = convolution.mixing_convolution
    carries: Callable[..., tuple[Array, Array]] = chunks.carries
    orbits: Callable[..., tuple[Array, Array, Array]] = chunks.orbits
    chunk_length: Callable[[Any, int], int] = chunks.chunk_length
    #: Further dtypes of u, by name, that may come with wider parameters: products run in them, recurrences do not.
    activations: frozenset[str] = frozenset()
    #: The scan form of S4D and DSS without states in memory, if there is one: from u (..., L, H), Lambda_bar, B_bar and
    #: C (H, P), a state (..., H, P) or None and resets (..., L) or None, to y = Re(C x) and the final state.
    fused: Callable[..., tuple[Array, Array]] | None = None
    #: The chunked form of layers with a system per feature in one, if there is one: from u (..., L, H), a
    #: chunks.ChunkSystem, a state as planes (H, ..., 2, M) or None, and lengths (...) or None, from where on u does not
    #: count and y is zero, to y and without lengths the final states (H, ..., D, 2, M) over whole chunks; None where it
    #: does not apply, and the parts are run one by one.
    per_feature_chunks: Callable[..., tuple[Array, Array | None] | None] | None = None
    #: The matrices over chunks of a diagonal layer with a system per feature in one, if there is such a kernel: from
    #: the name of a discretisation, Lambda (M,) or (H, M), steps (H, 1), B like Lambda, a list of C (H, M) for each
    #: direction, what is added at lag 0 (H,) or None, and T to the chunks.ChunkSystem of y = Re(C x); None where it
    #: does not apply.
    diagonal_chunks: Callable[..., chunks.ChunkSystem | None] | None = None
    #: The chunked form of S5 from rest as a whole, if there is one: from chunks (..., n, T H) and their ChunkSystem to
    #: outputs (..., n, T H).
    mixing_chunks: Callable[..., Array] | None = None
    #: The states after each sample of a run from rest, in D directions from one drive, if S5's chunks of one sample are
    #: to run by them: from Lambda_bar (M,), drive real (..., L, 2, M) and D to real (..., L, D, 2, M).
    both_ways: Callable[[Array, Array, int], Array] | None = None
    #: S5's chunks of one sample, from rest, as a whole, if there is such a kernel: from u (..., L, H), Lambda_bar (M,),
    #: into (2 M, H), out (H, D 2 M) and skip (H,) or None to y = out x + skip u (..., L, H), with x the states after
    #: each sample as both_ways gives them of the drive into u.
    mixing_states: Callable[..., Array] | None = None
    #: The form that is fastest here: from the layer, and of a run from rest without a final state the number of
    #: sequences and L; None of any other run, and where they are not known.
    fastest_form: Callable[[Any, tuple[int, int] | None], str] = lambda layer, size: layer.default_form

    def with_carries(self, carries: Callable[..., tuple[Array, Array]], **changes: Any) -> Kernels:
        """This table with other carries, and without what runs chunks as a whole, which would not ask for them."""
        parts = replace(self, per_feature_chunks=None, mixing_chunks=None, both_ways=None, mixing_states=None)
        return replace(parts, carries=carries, **changes)


def by_kind(forms: Mapping[str, str]) -> Callable[[Any, tuple[int, int] | None], str]:
    """A fastest_form that goes by the kind of a layer alone; those not named run in their own default form."""
    return functools.partial(_of_kind, forms)


def by_size_on_cpu(forms: Mapping[str, str]) -> Callable[[Any, tuple[int, int] | None], str]:
    """by_kind, but the convolution for S4D and DSS where a run has many modes and is short or in batches.

    Chunks cost each sample T + 4 P products for P modes, a transform costs the same for all P; its kernel costs as much
    whatever the batch. Measured in torch and jax (benchmarks/notes.md): 1.2 to 6.8 times as fast with gradients, 1.1 to
    4.2 without.
    """
    return functools.partial(_of_size_on_cpu, forms)


# Not within the two above: tables of kernels are pickled with the modules that have them.
def _of_kind(forms: Mapping[str, str], layer: Any, size: tuple[int, int] | None) -> str:
    return forms.get(layer.kind, layer.default_form)


def _of_size_on_cpu(forms: Mapping[str, str], layer: Any, size: tuple[int, int] | None) -> str:
    if size is not None and layer.kind in ("s4d", "dss") and layer.modes >= 64 and 2048 * size[0] >= size[1]:
        return "convolution"
    return _of_kind(forms, layer, size)


PORTABLE = Kernels()
