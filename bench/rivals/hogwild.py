"""Hogwild with torch: parameters in shared memory that the worker itself steps. No server, no copy back, no guard.

Best settings found: one flat tensor and the fused optimizer, which makes one pass; one thread.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from distnet.benchmark.measure import RATE, Size
from distnet.benchmark.turns import Contender, timed
from rivals.pair import pair, serve


@contextlib.contextmanager
def contender(size: Size) -> Iterator[Contender]:
    """Step shared parameters in place."""
    with pair("torch Hogwild, no server", __name__, size, roles=("worker",)) as rival:
        yield rival


def look(parameters: Any, answer: Any) -> None:
    """Say what another process sees of the parameters."""
    answer.put((float(parameters.min()), float(parameters.max())))


def main(role: str, tensors: list[int], folder: str) -> None:
    """Run the worker; the other process is there for the check alone."""
    import torch
    import torch.multiprocessing

    import rivals.hogwild as this  # spawned processes find `look` there

    torch.set_num_threads(1)
    parameters = torch.zeros(sum(tensors)).share_memory_()
    parameters.grad = torch.ones(sum(tensors))
    optimizer = torch.optim.SGD([parameters], lr=RATE, fused=True)

    def seen_elsewhere() -> tuple[float, float]:
        context = torch.multiprocessing.get_context("spawn")
        answer = context.SimpleQueue()
        process = context.Process(target=this.look, args=(parameters.detach(), answer))
        process.start()
        low, high = answer.get()
        process.join()
        return low, high

    serve(timed(optimizer.step), seen_elsewhere, checks="steps")


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
