"""The thread of a group that completes futures, so that the threads that move data never run anybody's callbacks."""

from __future__ import annotations

import queue
import threading

from distnet.torch.work import Future

__all__ = ["Completion"]


class Completion:
    """Completes futures in the order of their operations, on a thread that begins with the first of them.

    Thread safety: any thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._futures: queue.SimpleQueue[Future | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def complete_in_turn(self, future: Future) -> None:
        """Complete a future after those that came before, for operations that end in that order."""
        with self._lock:
            if self._thread is None:
                self._thread = self._started(self._run)
        self._futures.put(future)

    def complete_alone(self, future: Future) -> None:
        """Complete a future whatever others wait for: a receive may wait for what other operations bring about."""
        self._started(future.complete)

    def stop(self) -> None:
        """End the thread. All operations have ended before; a second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._futures.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _started(self, target: object) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"completes futures of {self._name}", daemon=True)  # type: ignore[arg-type]
        thread.start()
        return thread

    def _run(self) -> None:
        while (future := self._futures.get()) is not None:
            future.complete()
            del future  # nor its tensors are kept until the next one comes
