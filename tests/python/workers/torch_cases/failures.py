"""What goes wrong on purpose: each returns what its rank has seen."""

from __future__ import annotations

import datetime
import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel


def _raised(call: Any) -> list[str]:
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def mismatches() -> list[list[str]]:
    """Operations that differ between ranks; the group goes on after each."""
    rank = dist.get_rank()
    differs = rank == 1
    seen = [
        _raised(lambda: dist.all_reduce(torch.ones(3 if differs else 4))),
        _raised(lambda: dist.all_reduce(torch.ones(3, dtype=torch.float64 if differs else torch.float32))),
        _raised(lambda: dist.all_reduce(torch.ones(3), dist.ReduceOp.MAX if differs else dist.ReduceOp.SUM)),
        _raised(lambda: dist.broadcast(torch.ones(3), 1 if differs else 0)),
        _raised(lambda: dist.barrier() if differs else dist.all_reduce(torch.ones(3))),
        _raised(lambda: dist.all_reduce(torch.ones(3 if differs else 4), async_op=True).get_future().wait()),
    ]
    total = torch.ones(2)
    dist.all_reduce(total)
    assert total.tolist() == [float(dist.get_world_size())] * 2
    return seen


def dies(who: int) -> list[list[str]]:
    """One rank dies in an operation; the others see it there, and in every operation after it."""
    dist.barrier()
    world: Any = dist.group.WORLD
    store = world.get_group_store()
    if dist.get_rank() == who:  # which may leave the barrier before others do: they are still in it then
        store.wait([f"rank {rank} has left the barrier" for rank in range(dist.get_world_size()) if rank != who])
        os.kill(os.getpid(), signal.SIGKILL)
    store.set(f"rank {dist.get_rank()} has left the barrier", "")
    return [
        _raised(lambda: dist.all_reduce(torch.ones(3))),
        _raised(dist.barrier),
        _raised(lambda: dist.all_reduce(torch.ones(3), async_op=True).wait()),
        _raised(lambda: dist.all_reduce(torch.ones(3), async_op=True).get_future().wait()),
    ]


def leaves_ddp(who: int, hook: bool) -> list[str]:
    """One rank leaves at once; the others see it in their step."""
    module = DistributedDataParallel(torch.nn.Linear(3, 3))
    if hook:
        module.register_comm_hook(None, default_hooks.fp16_compress_hook)
    module(torch.ones(2, 3)).sum().backward()
    world: Any = dist.group.WORLD
    if dist.get_rank() == who:
        world.get_group_store().wait(["the others have taken the first step"])
        world.abort()
        return []
    world.get_group_store().set("the others have taken the first step", "")
    return _raised(lambda: module(torch.ones(2, 3)).sum().backward())


def absent(late: int) -> list[str]:
    """One rank does not come to a barrier in time; the others say which."""
    dist.barrier()
    world: Any = dist.group.WORLD
    store = world.get_group_store()
    rank = dist.get_rank()
    if rank == late:
        store.wait([f"gave up {other}" for other in range(dist.get_world_size()) if other != late])
        return _raised(lambda: dist.all_reduce(torch.ones(3)))
    seen = _raised(lambda: world.monitored_barrier(datetime.timedelta(seconds=0.3)))
    store.set(f"gave up {rank}", "")
    return seen
