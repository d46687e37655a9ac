"""A server's checkpoints while it trains: one now and then, from a thread of its own, and one at the end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from distnet.checkpoint.every import Every
from distnet.checkpoint.folder import CheckpointFolder
from distnet.errors import CheckpointError, DeadlineExceeded, DistNetError
from distnet.stats import ServerStatistics

__all__ = ["PeriodicCheckpoints"]

_LOG = logging.getLogger("distnet")
_LOOK_S = 0.2  # how often the thread looks at the server's count of updates
_WAIT_S = 600.0  # for another thread that writes a checkpoint
_Versions = tuple[int, ...]


class PeriodicCheckpoints:
    """Writes checkpoints of one server into its folder.

    A write that fails is logged at ERROR as "distnet", and training goes on; the next try comes when the next
    checkpoint is due. The thread has the name ``distnet-checkpoints`` and ends with :meth:`end`, which the interpreter
    calls on its way out where nobody has.

    Invariants
    - One thread writes at a time: the one that holds `_turn`. It alone changes `_written`.
    - `_written` are the versions of the newest file of this server; before there is one, those that it started from.

    Args:
        folder: claimed already.
        every: None: only at the end, and when asked.
        write: writes one into a folder and returns its file and its versions; from any thread.
        stats: returns the server's counters now.

    Thread-safety: ``write_now()`` from any thread, the rest from the one that starts and stops the server.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every: Every | None,
        write: Callable[[CheckpointFolder], tuple[Path, _Versions]],
        stats: Callable[[], ServerStatistics],
    ) -> None:
        self._folder, self._every = folder, every
        self._write, self._stats = write, stats
        self._owner = os.getpid()
        self._turn = threading.Lock()
        self._ending = threading.Event()
        self._written = self._versions()
        self._tried_at_s, self._tried_version = time.monotonic(), min(self._written)
        self._silent = False  # the server does not answer, and that was said
        self._thread = threading.Thread(target=self._run, name="distnet-checkpoints", daemon=True)
        if every is not None:
            self._thread.start()
        atexit.register(self.end)

    def write_now(self) -> Path:
        """Write one and return its file.

        Raises:
            DeadlineExceeded: another thread has been writing one for ten minutes.
            DistNetError: it cannot be written.
        """
        if not self._turn.acquire(timeout=_WAIT_S):
            raise DeadlineExceeded(f"another checkpoint has been on its way to {self._folder.path} for {_WAIT_S:.0f} s")
        try:
            path, self._written = self._write(self._folder)
            return path
        finally:
            self._turn.release()

    def is_of(self, path: str | os.PathLike[str]) -> bool:
        """Whether this is the folder's path, however it is written."""
        try:
            return os.path.samefile(path, self._folder.path)
        except OSError:
            return False

    def end(self) -> str | None:
        """End the thread and write a last checkpoint if anything changed since the newest; return why it is missing.

        It waits at most ten minutes for one that is being written. In a forked child it does nothing.
        """
        if os.getpid() != self._owner:
            return None
        atexit.unregister(self.end)
        self._ending.set()
        try:
            if self._thread.ident is not None:
                self._thread.join(_WAIT_S)
            busy = self._stats().queue_depth > 0  # accepted and not applied; asked before the versions
            if busy or self._versions() != self._written:
                self.write_now()
            return None
        except (DistNetError, OSError) as error:
            reason = f"the last checkpoint was not written, and {self._lost()}: {error}"
            _LOG.error(reason)
            return reason
        finally:
            self._folder.release()

    def _versions(self) -> _Versions:
        return tuple(self._stats().versions)

    def _run(self) -> None:
        while not self._ending.wait(self._wait_s()):
            if self._due():
                self._try()

    def _wait_s(self) -> float:
        assert self._every is not None
        if self._every.seconds is None:
            return _LOOK_S
        left_s = self._tried_at_s + self._every.seconds - time.monotonic()
        return min(max(left_s, 0.0), threading.TIMEOUT_MAX)

    def _due(self) -> bool:
        """Whether the time or the update has come, and anything has changed since the newest one."""
        assert self._every is not None
        try:
            versions = self._versions()
        except (DistNetError, OSError) as error:
            if not self._silent:
                _LOG.error("no checkpoints are written while the server does not answer: %s", error)
            self._silent = True
            self._tried_at_s = time.monotonic()
            return False
        self._silent = False
        if self._every.updates is not None and min(versions) < self._tried_version + self._every.updates:
            return False
        self._tried_at_s, self._tried_version = time.monotonic(), min(versions)
        return versions != self._written

    def _try(self) -> None:
        try:
            self.write_now()
        except Exception as error:  # whatever it is, training goes on
            _LOG.error("training goes on without a new checkpoint; %s: %s", self._newest(), error)

    def _newest(self) -> str:
        latest = self._latest()
        return "there is none yet" if latest is None else f"the newest is {latest}"

    def _lost(self) -> str:
        latest = self._latest()
        return "there is none before it" if latest is None else f"what came after {latest} is lost"

    def _latest(self) -> Path | None:
        with contextlib.suppress(OSError, CheckpointError):
            return self._folder.latest()
        return None
