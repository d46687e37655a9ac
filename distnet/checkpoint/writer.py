"""Writes a server's state into folders, one checkpoint at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from distnet.checkpoint.arguments import arguments_to_spec
from distnet.checkpoint.every import Every
from distnet.checkpoint.folder import CheckpointFolder
from distnet.errors import DeadlineExceeded
from distnet.optimizers import state_vectors
from distnet.snapshot import Cut, Moment
from distnet.stats import ServerStatistics

__all__ = ["CheckpointWriter"]

_WAIT_S = 600.0  # that a checkpoint waits for another one of the same server


class CheckpointWriter:
    """What writes the checkpoints of one server, into whatever folder.

    Args:
        arguments: of the server, those that a checkpoint keeps, each with a value.
        every: how often the server writes one by itself, which a checkpoint keeps, too; None: it does not.

    Thread-safety: any thread; one at a time reads a state into a file, others wait.
    """

    def __init__(self, arguments: Mapping[str, Any], every: Every | None) -> None:
        self._vectors = 1 + bool(arguments["ema_decay"]) + state_vectors(arguments["optimizer"])
        self._arguments = arguments_to_spec(arguments)
        del self._arguments["optimizer"]  # the cut has it
        if every is not None:
            self._arguments["checkpoint_every"] = str(every)
        self._writing = threading.Lock()

    def write(
        self,
        folder: CheckpointFolder,
        within_s: float | None,
        *,
        cut: Callable[[], AbstractContextManager[Cut]],
        stats: Callable[[], ServerStatistics],
    ) -> tuple[Path, Moment]:
        """Write one and return its file, and the moment that it is of.

        Args:
            folder: where to write it.
            within_s: for which another one of the same server is waited for; None: ten minutes.
            cut: gives the state at one moment, to be read within its context.
            stats: returns the server's counters.

        Raises:
            DeadlineExceeded: another one has been on its way all that time.
            DistNetError: it cannot be written, or the state cannot be cut.
        """
        if not self._writing.acquire(timeout=_WAIT_S if within_s is None else within_s):
            raise DeadlineExceeded(f"another checkpoint has been on its way for {_WAIT_S:.0f} s")
        try:
            expected_bytes = 4 * stats().floats * self._vectors  # of the file, without its header
            with folder.room(expected_bytes), cut() as state:
                return folder.write_cut(state, self._arguments), state.moment
        finally:
            self._writing.release()
