"""Operations on their way, as ``torch.distributed`` hands them out: works, and the futures of works."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist

from distnet.torch.untraced import untraced

__all__ = ["Future", "NativeWork", "Work"]

_AS_LONG_AS_IT_TAKES_S = 1e8  # every operation has a timeout of its own


class NativeWork(Protocol):
    """What the engine returns for an operation that has begun."""

    def done(self) -> bool:
        """Return whether it has ended, well or not."""

    def wait(self, timeout: float, /) -> None:
        """Wait until it has ended, and raise its error; DeadlineExceeded, too, where `timeout` was too short."""

    @property
    def last_rank(self) -> int:
        """Of a receive that is done: whom it is from."""


class Work(dist._Work):  # type: ignore[misc]  # PyTorch is Any here
    """An operation that has begun: what ``async_op=True`` returns. The handle may be dropped; the operation goes on.

    Thread safety: any thread. Whichever waits first finishes the operation: it copies results into tensors whose own
    memory the engine could not write.

    Args:
        parts: the engine's operations that this is made of.
        result: the tensors that hold the result.
        finish: what is left to do once all parts are done well; None: nothing.
        complete_later: hands a future over to the thread that completes it.
        receives: whether it is a receive, whose sender :meth:`source_rank` returns.
    """

    def __init__(
        self,
        parts: Sequence[NativeWork],
        result: list[torch.Tensor],
        *,
        complete_later: Callable[[Future], None],
        finish: Callable[[], None] | None = None,
        receives: bool = False,
    ) -> None:
        super().__init__()
        self._parts = parts
        self._result = result
        self._finish = finish
        self._complete_later = complete_later
        self._receives = receives
        self._lock = threading.Lock()
        self._settled = False
        self._error: Exception | None = None
        self._future: Future | None = None

    @classmethod
    def joined(
        cls, works: Sequence[Work], result: list[torch.Tensor], complete_later: Callable[[Future], None]
    ) -> Work:
        """Return one work for several that nobody has waited for."""

        def finish() -> None:
            for work in works:
                work.wait()

        parts = [part for work in works for part in work._parts]
        return cls(parts, result, complete_later=complete_later, finish=finish)

    @untraced
    def wait(self, timeout: datetime.timedelta | None = None) -> bool:
        """Wait until the operation has ended and its tensors hold the result.

        Args:
            timeout: to wait at most; the operation goes on. None or 0: as long as the operation may take.

        Raises:
            DistNetError: what ended the operation.
        """
        self._wait(timeout.total_seconds() if timeout else None)
        if self._error is not None:
            raise self._error
        return True

    def settle(self) -> Exception | None:
        """Wait until the operation has ended, and return its error rather than raising it."""
        self._wait(None)
        return self._error

    def _wait(self, timeout_s: float | None) -> None:
        if self._settled:
            return
        error: Exception | None = None
        for part in self._parts:
            try:
                part.wait(timeout_s if timeout_s and timeout_s > 0 else _AS_LONG_AS_IT_TAKES_S)
            except Exception as raised:
                if not part.done():
                    raise
                error = error or raised
        with self._lock:
            if not self._settled:
                self._end(error)

    def _end(self, error: Exception | None) -> None:
        if error is None and self._finish is not None:
            try:
                self._finish()
            except Exception as raised:
                error = raised
        self._error = error
        self._finish = None
        self._settled = True

    @untraced
    def is_completed(self) -> bool:
        """Return whether it has ended, well or not; the tensors then hold the result."""
        if not self._settled and all(part.done() for part in self._parts):
            self._wait(None)
        return self._settled

    def is_success(self) -> bool:
        """Return whether it has ended well."""
        return self.is_completed() and self._error is None

    def exception(self) -> Exception | None:
        """Return what ended it, or None."""
        return self._error if self.is_completed() else None

    def result(self) -> list[torch.Tensor]:
        """Return the tensors that hold the result, or will."""
        return self._result

    def synchronize(self) -> None:
        """Wait as :meth:`wait` does: what was copied to a GPU is there then."""
        self.wait()

    def block_current_stream(self) -> None:
        """The same: results come from the host, so there is no kernel that a stream could wait for."""
        self.wait()

    def source_rank(self) -> int:
        """Return the rank of the group that a receive is from, once it is done; -1 for what is no receive."""
        return self._parts[0].last_rank if self._receives and self.is_success() else -1

    _source_rank = source_rank

    @untraced
    def get_future(self) -> Future:
        """Return a future of the tensors that hold the result, the same at every call."""
        with self._lock:
            known = self._future
            if known is None:
                self._future = future = Future(self)
        if known is not None:
            return known
        if self._settled:
            future.complete()
        else:
            self._complete_later(future)
        return future


class _Failed:
    """Stands for the result that a failed operation has not: whatever is done with it raises the operation's error.

    A future that Python makes cannot be given an error that C++ understands. PyTorch's C++ code takes the tensors out
    of this object, and so meets the error.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def _raise(self, *_: object) -> NoReturn:
        raise self._error

    __reduce_ex__ = __getitem__ = __iter__ = __len__ = _raise


class Future(torch.futures.Future[list[torch.Tensor]]):  # type: ignore[misc]
    """A future of a work, completed by a thread of its group, or by whoever waits for it first.

    A callback in Python runs on the thread that attaches it, which waits for the operation before. Otherwise callbacks
    that begin operations of their own, such as those of PowerSGD, would begin them in another order on every rank.
    Callbacks of PyTorch's C++ code run when the future is completed.

    Thread safety: any thread.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work
        self._lock = threading.Lock()
        self._claimed = False

    def complete(self) -> None:
        """Wait for the work, and set the result unless that is done."""
        error = self._work.settle()
        with self._lock:
            is_first = not self._claimed
            self._claimed = True
        if is_first:
            self.set_result(self._work.result() if error is None else _Failed(error))
        else:
            super().wait()  # another thread is about to set it

    @untraced
    def wait(self) -> list[torch.Tensor]:
        """Wait for the work, and return the tensors that hold the result.

        Raises:
            DistNetError: what ended the operation.
        """
        self.complete()
        return self.value()

    @untraced
    def value(self) -> list[torch.Tensor]:
        """Return the tensors that hold the result of a work that is done; raises as :meth:`wait` does."""
        if (error := self._work.exception()) is not None:
            raise error
        tensors: list[torch.Tensor] = super().value()
        return tensors

    @untraced
    def then(self, callback: Callable[[Any], Any]) -> Any:
        """Wait for the work, run the callback here, and return a completed future of what it returns."""
        self.complete()
        return super().then(callback)

    @untraced
    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Wait for the work, and run the callback here."""
        self.complete()
        super().add_done_callback(callback)
