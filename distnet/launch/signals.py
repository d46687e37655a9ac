"""Being told to stop: SIGTERM and SIGHUP end a command as Ctrl-C does, through its ``finally`` clauses."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["StopRequested", "holding_signals", "stopping_on_signals", "told_by"]


class StopRequested(KeyboardInterrupt):
    """Another process asked this one to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"told to stop by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number


def told_by(stop: BaseException) -> int:
    """Return the signal that an end is due to; Ctrl-C's for an error."""
    return stop.number if isinstance(stop, StopRequested) else signal.SIGINT


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise ``StopRequested`` in the main thread; elsewhere this does nothing."""
    with _handling(dict.fromkeys(_STOPPING, _stop)):
        yield


@contextlib.contextmanager
def holding_signals(say: Callable[[], None]) -> Iterator[None]:
    """Within the block, the first signal to stop calls ``say`` and is held until the block's end; the next one raises.

    For what should be finished even by a process that was told to stop, such as writing a checkpoint. A signal that was
    held is raised at the end, unless an exception is on its way already.
    """
    held: list[KeyboardInterrupt] = []

    def hold(number: int, frame: FrameType | None) -> None:
        stop = KeyboardInterrupt() if number == signal.SIGINT else StopRequested(number)
        if held:
            raise stop
        held.append(stop)
        say()

    with _handling(dict.fromkeys(_STOPPING, hold)):
        yield
    if held:
        raise held[0]


_Handler = Callable[[int, "FrameType | None"], None]
_STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StopRequested(number)


@contextlib.contextmanager
def _handling(handlers: dict[signal.Signals, _Handler]) -> Iterator[None]:
    """Set signal handlers for the block, where this is the thread that may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
