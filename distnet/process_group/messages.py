"""Messages from one member to another."""

from __future__ import annotations

from typing import Any

from distnet._private.collective_arguments import AnyArray
from distnet._private.group_calls import Call
from distnet.process_group.operations import Operations, begins, operation

__all__ = ["Messages"]


class Messages(Operations):
    """What one member sends to another; :class:`distnet.ProcessGroup` says what operations share."""

    @operation
    def send(self, array: Any, to: int, tag: int = 0, *, dtype: str | None = None) -> Call[None]:
        """Send an array to one rank, which receives it with :meth:`recv`.

        It returns once that rank receives.

        Args:
            array: any.
            to: the rank that gets it; not this one.
            tag: of the message, 0 to 2**32 - 1. Messages between two ranks with the same tag arrive in order.
            dtype: as :meth:`allreduce` takes it.

        Raises:
            CollectiveMismatch: the other rank receives into an array of another dtype or length; both raise it.
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.send(array, to, tag, dtype)

    begin_send = begins(send)

    @operation
    def recv(self, out: AnyArray, source: int, tag: int = 0, *, dtype: str | None = None) -> Call[AnyArray]:
        """Receive an array that one rank sends with :meth:`send`.

        Args:
            out: where to put it; of the dtype and as long as what is sent.
            source: the rank that sends it; not this one.
            tag: of the message.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            ``out``.

        Raises:
            DistNetError: what :meth:`send` raises.
        """
        return self._calls.recv(out, source, tag, dtype)

    begin_recv = begins(recv)
