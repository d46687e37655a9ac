"""torch RPC over TensorPipe: a server that steps its parameters and returns them, a worker that calls it.

Settings: TensorPipe's own choice of transport and channel, which is shared memory and one process reading the other's;
one thread of arithmetic in each process; one flat tensor (one a layer made no difference that could be told). Its
threads poll that memory without pause, which is why it is suspended while others are measured.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distnet.benchmark.measure import RATE, Size
from distnet.benchmark.turns import Contender, timed
from rivals.pair import pair, serve


@contextlib.contextmanager
def contender(size: Size) -> Iterator[Contender]:
    """Push a gradient by ``rpc_sync`` and get the parameters as its result."""
    with pair("torch RPC (TensorPipe)", __name__, size, roles=("server", "worker"), polls=True) as rival:
        yield rival


_parameters: list[Any] = []  # the server's


def push_pull(gradient: Any) -> Any:
    """Step in place and return the parameters; runs in the server."""
    return _parameters[0].add_(gradient, alpha=-RATE)


def main(role: str, tensors: list[int], folder: str) -> None:
    """Run one of the two processes."""
    import torch
    from torch.distributed import rpc

    # The function travels by its name; the worker must know the module that the server knows.
    import rivals.torch_rpc as this

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    this._parameters.append(torch.zeros(sum(tensors)))
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{Path(folder) / 'meeting'}", num_worker_threads=4)
    rpc.init_rpc(role, rank=("server", "worker").index(role), world_size=2, rpc_backend_options=options)
    if role == "server":
        threading.Event().wait()  # its threads serve until the harness ends it
    gradient = torch.ones(sum(tensors))
    newest = [gradient]

    def call() -> None:
        newest[0] = rpc.rpc_sync("server", this.push_pull, args=(gradient,), timeout=60)

    serve(timed(call), lambda: (float(newest[0].min()), float(newest[0].max())), checks="steps")


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
