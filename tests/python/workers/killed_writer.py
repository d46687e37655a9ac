"""Writes checkpoints in children that are killed at one call of the system after another, and tells what is left.

Its argument is a folder. For each call, before it and after it, a forked child begins to write the next checkpoint and
kills itself there; then this process loads what the folder holds. It prints a JSON list with one entry for each death:
the call, the version before, the version that was being written, the version that loads.
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
    """A state whose every element says its version; larger than a piece of the checksum's reading."""
    return Snapshot(
        parameters={"w": np.full(1 << 20, version, np.float32), "b": np.full((), version, np.float32)},
        optimizer_state=(),
        ema=None,
        versions=(version,),
        round=None,
        optimizer=SGD(0.1).to_spec(),
    )


class Deaths:
    """Counts calls of the system, and kills this process at one of them."""

    def __init__(self, at: int, after: bool) -> None:
        self._at, self._after = at, after
        self._count = 0

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._count += 1
            here = self._count == self._at
            if here and not self._after:
                die(name)
            result = call(*arguments, **named)
            if here and self._after:
                die(f"after {name}")
            return result

        return counted


def die(where: str) -> None:
    """Say where, and be killed."""
    (Path(sys.argv[1]) / "died-in").write_text(where)
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(folder: Path, version: int, deaths: Deaths) -> None:
    class CountedMap(mmap.mmap):
        flush = deaths.counted("flush of the mapping", mmap.mmap.flush)
        __setitem__ = deaths.counted("store to the mapping", mmap.mmap.__setitem__)

    real = {name: getattr(os, name) for name in CALLS}
    died_in = file.mmap
    file.mmap = type("module", (), {"mmap": CountedMap})  # type: ignore[assignment]
    for name, call in real.items():
        setattr(os, name, deaths.counted(name, call))
    CheckpointFolder(folder / "checkpoints", keep=2).write(snapshot(version))
    file.mmap = died_in


def main() -> None:
    """Go through all deaths, until a child lives."""
    folder = Path(sys.argv[1])
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=2)
    for version in (1, 2, 3):
        checkpoints.write(snapshot(version))
    version, deaths, step, died = 3, [], 0, True
    while died:
        step += 1
        for after in (False, True):
            child = os.fork()
            if child == 0:
                try:
                    write_and_die(folder, version + 1, Deaths(step, after))
                finally:
                    os._exit(0)
            died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            loaded = load(folder / "checkpoints")
            assert loaded.versions == (loaded.version,)
            assert all((array == loaded.version).all() for array in loaded.parameters.values())  # type: ignore[union-attr]
            if died:
                deaths.append([(folder / "died-in").read_text(), version, version + 1, loaded.version])
            version = loaded.version
    checkpoints.write(snapshot(version + 1))
    print(json.dumps(deaths))


if __name__ == "__main__":
    main()
