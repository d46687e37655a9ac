"""gloo: two processes that sum their vectors. No optimizer and no server: what averaging gradients costs by itself.

Best settings found: one flat tensor; TCP without pacing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distnet.benchmark.measure import Size
from distnet.benchmark.turns import Contender
from rivals.pair import pair, prefer_reno, serve

_DOUBLINGS = 100  # of ones, before they are made ones again: float32 holds 2^100 exactly


@contextlib.contextmanager
def contender(size: Size) -> Iterator[Contender]:
    """Sum a vector over two processes, in place."""
    with pair("gloo all-reduce, no optimizer", __name__, size, roles=("peer", "worker")) as rival:
        yield rival


def main(role: str, tensors: list[int], folder: str) -> None:
    """Run one of the two processes; the worker tells its peer how many sums come next."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank = ("worker", "peer").index(role)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=2)
    prefer_reno()
    vector = torch.ones(sum(tensors))
    right = True

    def sums(count: int) -> list[float]:
        nonlocal right
        seconds: list[float] = []
        vector.fill_(1.0)
        dist.barrier()
        for _ in range(count):
            start_s = time.perf_counter()
            dist.all_reduce(vector)
            seconds.append(time.perf_counter() - start_s)
        right = right and bool((vector == 2.0**count).all())
        return seconds

    def run(calls: int) -> list[float]:
        seconds: list[float] = []
        while len(seconds) < calls:
            count = min(_DOUBLINGS, calls - len(seconds))
            dist.broadcast(torch.tensor([count]), src=0)
            seconds += sums(count)
        return seconds

    if role == "worker":
        serve(run, lambda: (float(right), float(right)), checks="itself")
        dist.broadcast(torch.tensor([0]), src=0)
        return
    told = torch.tensor([0])
    while True:
        dist.broadcast(told, src=0)
        if int(told) == 0:
            return
        sums(int(told))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
