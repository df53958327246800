"""Run by test_torch in processes of their own: a step of two gloo processes equals the step of one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ptd
from ptd_torch import backend

MODEL = ptd.SequenceModel(ptd.S5(4, 8), 2, 3, 5)
SIZE = 2


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    u = np.random.default_rng(1).standard_normal((4, 9, 3)).astype(np.float32)
    return torch.from_numpy(u), torch.tensor([0, 4, 2, 1])


def step(module: torch.nn.Module, u: torch.Tensor, targets: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(module(u), targets).backward()
    optimizer.step()


def replicated(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    step(DistributedDataParallel(module), *share())
    return module.state_dict()


def sharded(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The optimiser sees shards alone."""
    fully_shard(module, mesh=init_device_mesh("cpu", (SIZE,)))
    step(module, *share())
    assert module.decoder.weight.to_local().shape[0] < 5
    return {name: value.full_tensor() for name, value in module.state_dict().items()}


def share() -> tuple[torch.Tensor, ...]:
    """This process's half of the batch."""
    return tuple(part.chunk(SIZE)[dist.get_rank()] for part in batch())


def equals_one_process(run: Callable[[torch.nn.Module], dict[str, torch.Tensor]]) -> None:
    """The state after a step in run is that after the same step here alone."""
    start = backend.on("cpu").module(MODEL, MODEL.initialize(np.random.default_rng(0), init="legs"))
    alone = copy.deepcopy(start)
    step(alone, *batch())
    expected = alone.state_dict()
    assert not torch.equal(expected["blocks.0.layer.C_re"], start.state_dict()["blocks.0.layer.C_re"])
    torch.testing.assert_close(run(copy.deepcopy(start)), expected, rtol=0, atol=1e-6)


def process(rank: int, meeting_point: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=SIZE)
    for run in (replicated, sharded):
        equals_one_process(run)
    dist.destroy_process_group()


if __name__ == "__main__":
    # A fork has what this process has imported; on macOS what is imported may have threads, which a fork loses.
    method = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(process, (sys.argv[1],), nprocs=SIZE, start_method=method)
    print("equal")
