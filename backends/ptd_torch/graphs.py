"""Work on a GPU as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def captured(run: Callable[[], Result], *, watched: bool = False) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of run() and the result that its replays overwrite; run is called three times before, to warm up.

    watched says that another thread looks at events meanwhile, as NCCL's does.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # torch's own stream for this is one for all devices, on that of the first capture
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local" if watched else "global"):
        result = run()
    return graph, result
