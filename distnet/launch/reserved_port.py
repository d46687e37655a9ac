"""The port at which the copies of a script may meet, kept free for them."""

from __future__ import annotations

import socket
from types import TracebackType

from distnet._private.launcher_env import Master

__all__ = ["ReservedPort"]

_HOST = "127.0.0.1"


class ReservedPort:
    """A free port of this host that the system gives to nobody who asks for any port, while the block lasts.

    It is bound and not listened at. So a process that asks for this very port, as frameworks do with ``SO_REUSEADDR``,
    can listen there.

    Attributes:
        master: what to tell the processes that meet there.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, 0))
        self.master = Master(address=_HOST, port=self._socket.getsockname()[1])

    def __enter__(self) -> ReservedPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
