"""An operation on its way."""

from __future__ import annotations

from typing import Generic

from distnet import _native
from distnet._private.bounds import LONGEST_SECONDS, check_seconds
from distnet._private.group_calls import Call, Result

__all__ = ["Work"]


class Work(Generic[Result]):
    """An operation of a group on its way; the ``begin_…`` methods of :class:`ProcessGroup` return it.

    The arrays that it was begun with belong to it until it is done: do not change them before. A work that is dropped
    goes on all the same, because the other ranks count on it.

    Thread safety: any thread.

    Example:
        >>> with distnet.GroupCoordinator() as coordinator:
        ...     with distnet.ProcessGroup(coordinator.address, rank=0, size=1) as group:
        ...         first = group.begin_allreduce(np.arange(3.0))
        ...         second = group.begin_allgather(np.arange(2.0))
        ...         second.wait()[0].tolist(), first.wait().tolist()
        ([0.0, 1.0], [0.0, 1.0, 2.0])
    """

    def __init__(self, native: _native.Work, call: Call[Result]) -> None:
        self._native = native
        self._call = call

    def done(self) -> bool:
        """Return at once whether it has ended, well or with an error.

        Returns:
            Whether :meth:`wait` returns or raises without waiting.
        """
        return self._native.done()

    def wait(self, timeout: float | None = None) -> Result:
        """Wait until it has ended; several works in any order, and one as often as you like.

        Args:
            timeout: seconds to wait at most; the operation goes on. None: as long as the operation may take.

        Returns:
            What the operation returns, as its own method does.

        Raises:
            DeadlineExceeded: ``timeout`` passed.
            DistNetError: what the operation raises.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        self._native.wait(LONGEST_SECONDS if timeout is None else float(timeout))
        return self._call.result_of(self._native)
