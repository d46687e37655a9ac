"""Being told to stop: SIGTERM and SIGHUP end a command as Ctrl-C does, through its ``finally`` clauses."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopRequested", "stopping_on_signals"]


class StopRequested(KeyboardInterrupt):
    """Another process asked this one to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"told to stop by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise ``StopRequested`` in the main thread; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopRequested(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGTERM: stop, signal.SIGHUP: stop, signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
