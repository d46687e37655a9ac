"""Writes checkpoints in children that are killed at one call of the system after another, and tells what is left.

Its argument is a folder. For each call a forked child begins to write the next checkpoint and kills itself before that
call, which is after the one before; then this process loads what the folder holds. It prints a JSON list with one entry
for each death: the call, the version before, the version that was being written, the version that loads.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distnet import SGD, Snapshot
from distnet.checkpoint import CheckpointFolder, file, load

CALLS = ("open", "posix_fallocate", "write", "pwrite", "ftruncate", "fsync", "close", "replace", "symlink", "unlink")


def snapshot(version: int) -> Snapshot:
    """A state whose every element says its version."""
    return Snapshot(
        parameters={"w": np.full(1 << 14, version, np.float32), "b": np.full((), version, np.float32)},
        optimizer_state=(),
        ema=None,
        versions=(version,),
        round=None,
        optimizer=SGD(0.1).to_spec(),
    )


class Deaths:
    """Counts calls of the system, and kills this process at one of them."""

    def __init__(self, at: int) -> None:
        self._left = at

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                die(name)
            return call(*arguments, **named)

        return counted


def die(where: str) -> None:
    """Say where, and be killed."""
    (Path(sys.argv[1]) / "died-in").write_text(where)
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(folder: Path, version: int, deaths: Deaths) -> None:
    class CountedMap(mmap.mmap):
        flush = deaths.counted("flush of the mapping", mmap.mmap.flush)
        __setitem__ = deaths.counted("store to the mapping", mmap.mmap.__setitem__)

    setattr(file, "mmap", type("module", (), {"mmap": CountedMap}))  # noqa: B010
    for name in CALLS:
        setattr(os, name, deaths.counted(name, getattr(os, name)))
    CheckpointFolder(folder / "checkpoints", keep=2).write(snapshot(version))


def main() -> None:
    """Go through all deaths, until a child lives."""
    folder = Path(sys.argv[1])
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=2)
    for version in (1, 2, 3):
        checkpoints.write(snapshot(version))
    version, deaths, step, died = 3, [], 0, True
    while died:
        step += 1
        child = os.fork()
        if child == 0:
            try:
                write_and_die(folder, version + 1, Deaths(step))
            finally:
                os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        loaded = load(folder / "checkpoints")
        assert isinstance(loaded.parameters, dict)
        assert all((array == loaded.version).all() for array in loaded.parameters.values())
        if died:
            deaths.append([(folder / "died-in").read_text(), version, version + 1, loaded.version])
        version = loaded.version
    checkpoints.write(snapshot(version + 1))
    print(json.dumps(deaths))


if __name__ == "__main__":
    main()
