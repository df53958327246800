"""Triton's interpreter on a CPU, for the tests of Triton kernels."""

from __future__ import annotations

import pytest
import torch

from ptd_torch.scan import kernel_path

RUNS = kernel_path(torch.device("cpu")) == "triton interpreter"

needed = pytest.mark.skipif(not RUNS, reason="needs TRITON_INTERPRET=1 and Triton: nox -s triton-interpreter")
