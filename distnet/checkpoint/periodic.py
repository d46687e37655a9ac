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
from distnet.snapshot import Moment
from distnet.stats import ServerStatistics

__all__ = ["PeriodicCheckpoints"]

_LOG = logging.getLogger("distnet")
_LOOK_S = 0.2  # how often the thread looks at the server's count of updates
_WAIT_S = 600.0  # for another thread that writes a checkpoint


class PeriodicCheckpoints:
    """Writes checkpoints of one server into its folder.

    A write that fails is logged at ERROR by the logger ``distnet``, and training goes on; the next try comes when the
    next checkpoint is due. The thread has the name ``distnet-checkpoints`` and ends with :meth:`end`, which the
    interpreter calls on its way out where nobody has.

    Invariants:

    - One thread writes at a time: the one that holds ``_turn``. It alone changes ``_written`` and ``_counted``, and
    lets
      the folder go: nobody writes to a folder that another server may have by now.
    - ``_written`` is the moment of the newest file of this server; before there is one, that which it started from.
      ``_counted`` is what the counters said before that file was cut: where they still say it, no push has changed
      anything since. A learning rate that was set may have; ``_written`` alone can tell.

    Args:
        folder: claimed already.
        every: None: only at the end, and when asked.
        write: writes one into a folder, once another one has been waited for at most so many seconds; returns its file
            and the moment that it is of. From any thread, as the next two.
        moment: returns the moment of a cut that is made now.
        stats: returns the server's counters now.
        started_from: the moment that the server began at.

    Thread safety: ``write_now()`` from any thread, the rest from the one that starts and stops the server.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        every: Every | None,
        *,
        write: Callable[[CheckpointFolder, float], tuple[Path, Moment]],
        moment: Callable[[], Moment],
        stats: Callable[[], ServerStatistics],
        started_from: Moment,
    ) -> None:
        self._folder, self._every = folder, every
        self._write_into, self._moment, self._stats = write, moment, stats
        self._owner = os.getpid()
        self._turn = threading.Lock()
        self._ending = threading.Event()
        self._over = False  # whoever has the turn lets the folder go
        self._final = False  # the last one is written
        self._written = started_from
        begun = stats()
        self._counted = _counted(begun)
        self._tried_at_s, self._tried_version = time.monotonic(), begun.version
        self._silent = False  # the server does not answer, and that was said
        self._thread = threading.Thread(target=self._run, name="distnet-checkpoints", daemon=True)
        if every is not None:
            self._thread.start()
        atexit.register(self.end)

    def write_now(self) -> Path:
        """Write one.

        Returns:
            Its file.

        Raises:
            DeadlineExceeded: another thread has been writing one for ten minutes.
            DistNetError: it cannot be written.
        """
        until_s = time.monotonic() + _WAIT_S
        self._take_turn(until_s)
        try:
            return self._write(until_s)
        finally:
            self._give_turn()

    def write_last(self) -> None:
        """End the thread, and write a last one if anything changed since the newest; :meth:`end` then writes none.

        Raises:
            DeadlineExceeded: another thread has been writing one for ten minutes.
            DistNetError: it cannot be written.
        """
        self._ending.set()
        until_s = time.monotonic() + _WAIT_S
        if self._thread.ident is not None:
            self._thread.join(_WAIT_S)
        self._take_turn(until_s)
        try:
            if self._changed():
                self._write(until_s)
            self._final = True
        finally:
            self._give_turn()

    def is_of(self, path: str | os.PathLike[str]) -> bool:
        """Return whether this is the folder's path, however it is written.

        Args:
            path: any.

        Returns:
            Whether both are the same folder; False where there is none.
        """
        try:
            return os.path.samefile(path, self._folder.path)
        except OSError:
            return False

    def end(self) -> str | None:
        """End the thread and write a last checkpoint if anything changed since the newest.

        It waits at most ten minutes for one that is being written; the thread that still writes one then lets the
        folder go afterwards. In a forked child it does nothing.

        Returns:
            Why the last one is missing; None where it is not.
        """
        if os.getpid() != self._owner:
            return None
        atexit.unregister(self.end)
        try:
            if not self._final:
                self.write_last()
            return None
        except (DistNetError, OSError) as error:
            reason = f"the last checkpoint was not written, and {self._lost()}: {error}"
            _LOG.error(reason)
            return reason
        finally:
            self._ending.set()
            self._over = True
            if self._turn.acquire(blocking=False):
                self._give_turn()

    def _take_turn(self, until_s: float) -> None:
        if not self._turn.acquire(timeout=max(0.0, until_s - time.monotonic())):
            raise DeadlineExceeded(f"another checkpoint has been on its way to {self._folder.path} for {_WAIT_S:.0f} s")

    def _give_turn(self) -> None:
        if self._over:
            self._folder.release()
        self._turn.release()

    def _write(self, until_s: float) -> Path:
        """Write one; in this thread's turn."""
        counted = _counted(self._stats())  # what comes between this and the cut is written once more: no harm
        path, self._written = self._write_into(self._folder, max(0.0, until_s - time.monotonic()))
        self._counted = counted
        return path

    def _changed(self) -> bool:
        """Whether anything has changed since the newest one; in this thread's turn."""
        stats = self._stats()
        if stats.queue_depth > 0 or _counted(stats) != self._counted:
            return True
        return stats.floats > 0 and self._moment() != self._written

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
            stats = self._stats()
        except (DistNetError, OSError) as error:
            if not self._silent:
                _LOG.error("no checkpoints are written while the server does not answer: %s", error)
            self._silent = True
            self._tried_at_s = time.monotonic()
            return False
        self._silent = False
        if self._every.updates is not None and stats.version < self._tried_version + self._every.updates:
            return False
        self._tried_at_s, self._tried_version = time.monotonic(), stats.version
        return _counted(stats) != self._counted

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


def _counted(stats: ServerStatistics) -> tuple[int | float, ...]:
    """Return those counters that change with the state."""
    shards = [(shard.version, shard.round, shard.refused, shard.learning_rate) for shard in stats.shards]
    return tuple(number for shard in shards for number in shard)
