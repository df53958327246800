"""One of several processes, each with a device of its own, that share the rows of every batch: its part, and sums.

What is summed over a batch within a model, the moments of its norms and their gradients, asks current() for them: an
operator takes tensors alone.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from ptd import checks

#: How long a process waits for the others at a sum on a CPU: what they may still have to compile or to load.
PATIENCE = datetime.timedelta(minutes=10)


class Part(NamedTuple):
    """The rows of a batch that are one process's: length of all, from first on."""

    first: int
    length: int
    all: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.length)

    @property
    def share(self) -> float:
        """Of the batch, and so the weight of a mean over the part."""
        return self.length / self.all


class Ranks:
    """This process alone, or among others through a group of torch.distributed's that is nobody else's.

    Args:
        rank, size: which of how many.
        device: where what is summed lies.
        meeting: a path that all processes share and nobody else, for several.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None, meeting: str = ""):
        self.rank, self.size = rank, size
        if size > 1:
            self._group = _group(rank, size, torch.device(device or "cpu"), meeting)

    def part(self, batch: int) -> Part:
        """This process's part of a batch; parts differ by one row at most.

        Raises:
            ValueError: there are fewer rows than processes.
        """
        if batch < self.size:
            raise checks.fail("batch", f"at least {self.size} rows, one a device", batch, "train on fewer devices")
        first, end = (batch * rank // self.size for rank in (self.rank, self.rank + 1))
        return Part(first, end - first, batch)

    def total(self, x: Tensor) -> Tensor:
        """x, contiguous, as the sum over all processes, in place."""
        if self.size > 1:
            self._group.allreduce([x]).wait()
        return x

    def gathered(self, x: Tensor) -> Tensor:
        """x of every process, (size, *x.shape)."""
        if self.size == 1:
            return x[None]
        all_ = x.new_zeros((self.size, *x.shape))
        all_[self.rank] = x
        return self.total(all_)

    def first(self, x: Tensor) -> Tensor:
        """x, contiguous, as it is in the first process, in place; of any dtype."""
        if self.size > 1:
            self._group.broadcast(x.reshape(-1).view(torch.uint8), 0).wait()
        return x

    def leave(self) -> None:
        """End waiting sums, here and, as they find out, elsewhere."""
        if self.size > 1:
            self._group.abort()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Within it, current() is this."""
        global _current
        before, _current = _current, self
        try:
            yield
        finally:
            _current = before


ALONE = Ranks()
# Not of one thread: the backward pass runs in others.
_current = ALONE


def current() -> Ranks:
    """The processes among which a learner is training now."""
    return _current


@torch.library.custom_op("ptd::over_ranks", mutates_args=())
def over_ranks(x: Tensor) -> Tensor:
    """The sum of x over the current ranks; its gradient is the sum of their gradients."""
    return current().total(x.clone(memory_format=torch.contiguous_format))


@over_ranks.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


over_ranks.register_autograd(lambda ctx, dy: over_ranks(dy))


def _group(rank: int, size: int, device: torch.device, meeting: str) -> torch.distributed.ProcessGroup:
    store = torch.distributed.FileStore(meeting, size)
    if device.type == "cuda":
        return torch.distributed.ProcessGroupNCCL(store, rank, size)
    options = torch.distributed.ProcessGroupGloo._Options()
    options._devices = [torch.distributed.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = PATIENCE
    return torch.distributed.ProcessGroupGloo(store, rank, size, options)
