"""Whether a checkpoint, then a snapshot, fits where a process may allocate one and a half of the model more.

``python little_memory.py FOLDER MEBIBYTES``: where the checkpoint goes, and how large the model is. It prints what
came of each. A process of its own has no memory left over from other tests, which the limit would not see.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import distnet


def main() -> None:
    folder, model_bytes = Path(sys.argv[1]), int(sys.argv[2]) << 20
    model = [np.ones(model_bytes // 4, np.float32)]
    with distnet.ParameterServer(model, processes=True, optimizer=distnet.SGD(0.1)) as server:
        server.checkpoint(folder)  # what is allocated once
        # A snapshot takes the state beside the buffer that each client maps and this one never touches.
        limit = memory_used() + model_bytes + model_bytes // 2
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
        print(outcome(lambda: server.checkpoint(folder)), outcome(server.snapshot))


def memory_used() -> int:
    """Bytes that RLIMIT_DATA counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except MemoryError:
        return "MemoryError"
    return "done"


if __name__ == "__main__":
    main()
