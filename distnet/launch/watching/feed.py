"""A server's counters, asked for now and then by a thread of its own: a server that does not answer holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from distnet.errors import DistNetError
from distnet.stats import ServerStatistics

__all__ = ["Feed"]

_LOOK_EVERY_S = 0.5
_SHARE_OF_TIME = 20  # looking takes at most one part in so many of the time


class Feed:
    """Asks a server for its counters.

    Args:
        ask: returns the counters, None where there are none yet; called by that thread alone.
        every_s: how often at most.

    Thread safety: any thread; ``close()`` is for one.
    """

    def __init__(self, ask: Callable[[], ServerStatistics | None], *, every_s: float = _LOOK_EVERY_S) -> None:
        self._ask = ask
        self._every_s = every_s
        self._changed = threading.Condition()
        self._newest: tuple[float, ServerStatistics] | None = None
        self._error: DistNetError | None = None
        self._asked_s = 0.0  # when the newest answer, or error, was asked for
        self._hurry = self._over = False
        self._thread = threading.Thread(target=self._run, name="statistics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def newest(self) -> tuple[float, ServerStatistics] | None:
        """When the newest counters were asked for, on the monotonic clock, and the counters; None before the first."""
        with self._changed:
            return self._newest

    @property
    def error(self) -> DistNetError | None:
        """Why there are no newer counters."""
        with self._changed:
            return self._error

    def hurry(self) -> None:
        """Ask now, not when it is time."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def fresh(self, within_s: float = 5.0) -> ServerStatistics | None:
        """Return counters that were asked for after this call; the newest there are, where none come in time."""
        with self._changed:
            now_s = time.monotonic()
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._asked_s > now_s, within_s)
            return None if self._newest is None else self._newest[1]

    def close(self, within_s: float = 5.0) -> None:
        """Stop asking. An answer that does not come is waited for no longer than that."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(within_s)

    def _run(self) -> None:
        while not self._over:
            asked_s = time.monotonic()
            answer: ServerStatistics | None = None
            error: DistNetError | None = None
            try:
                answer = self._ask()
            except DistNetError as failure:
                error = failure
            with self._changed:
                self._error, self._asked_s = error, asked_s
                self._changed.notify_all()
                if answer is not None:
                    self._newest = asked_s, answer
                pause_s = max(self._every_s, _SHARE_OF_TIME * (time.monotonic() - asked_s))
                self._changed.wait_for(lambda: self._over or self._hurry, min(pause_s, 10 * self._every_s))
                self._hurry = False
