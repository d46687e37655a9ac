"""How a client waits for the other ranks, at a barrier or in ``finish()``, with words for a long silence."""

from __future__ import annotations

import logging
import time
from typing import Literal, Protocol

from distnet._private.bounds import check_seconds

__all__ = ["wait_for_all_ranks"]

FIRST_WORDS_SECONDS = 10.0
NEXT_WORDS_SECONDS = 60.0
_FOREVER_SECONDS = 1e18

_log = logging.getLogger("distnet")


class Waiter(Protocol):
    """What the native client can do about it."""

    def arrive(self, kind: str, timeout: float) -> None: ...
    def wait_for_others(self, at_most: float) -> bool: ...
    def stop_waiting(self) -> None: ...
    def give_up_waiting(self) -> None: ...
    def awaited(self) -> str: ...


def wait_for_all_ranks(
    waiter: Waiter, kind: Literal["barrier", "finish"], rank: int | None, timeout: float | None
) -> None:
    """Settle what this rank pushed, say that it is here, and wait until all ranks are.

    Raises:
        ConfigError: `timeout` is no number of seconds; and what the native client raises.
        DeadlineExceeded: `timeout` passed; it says who is missing.
    """
    if timeout is not None:
        check_seconds("timeout", timeout)
    began = time.monotonic()
    ends = began + (_FOREVER_SECONDS if timeout is None else timeout)
    words = began + FIRST_WORDS_SECONDS
    try:
        waiter.arrive(kind, _FOREVER_SECONDS if timeout is None else timeout)
        while not waiter.wait_for_others(max(0.0, min(ends, words) - time.monotonic())):
            now = time.monotonic()
            if now >= ends:
                waiter.stop_waiting()  # says who is missing, unless all have come just now
                return
            if now >= words:
                _say_for_whom(waiter, kind, rank, now - began)
                words = now + NEXT_WORDS_SECONDS
    except BaseException:  # also Ctrl-C: the others are not to think that this rank still waits
        waiter.give_up_waiting()
        raise


def _say_for_whom(waiter: Waiter, kind: str, rank: int | None, seconds: float) -> None:
    if awaited := waiter.awaited():  # empty: all have come just now
        where = "at a barrier" if kind == "barrier" else "in finish()"
        _log.warning("rank %s has waited %s for %.0f s; missing: %s", rank, where, seconds, awaited)
