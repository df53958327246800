"""Complex numbers as two values each, in Triton kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times(a_re, a_im, b_re, b_im):
    """a b."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def loaded(base, at, apart, mask):
    """The numbers whose real parts lie at base + at, and their imaginary parts so far apart from them."""
    return tl.load(base + at, mask=mask, other=0.0), tl.load(base + at + apart, mask=mask, other=0.0)
