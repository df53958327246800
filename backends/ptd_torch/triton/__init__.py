"""Triton's kernels and their launches, one module per part of a layer. Imported only where Triton is installed."""
