"""Where the members of process groups find each other."""

from __future__ import annotations

from types import TracebackType

from distnet import _native
from distnet._private.addresses import check_address
from distnet._private.bounds import check_seconds

__all__ = ["GroupCoordinator"]


class GroupCoordinator:
    """Brings the members of process groups together and watches them; it needs no parameters and moves no array.

    The server of ``distnet run`` has one already. Elsewhere one process starts it, usually that of rank 0, tells the
    others its :attr:`address`, and keeps it until all groups are closed: a group whose coordinator is gone is dead.
    One coordinator serves any number of groups, by name.

    At the end of a ``with`` block it waits for the members to leave, as :meth:`stop` does; where an exception ends the
    block, it does not.

    Args:
        address: ``"shm://"`` or ``"shm://name"`` for members of this host, ``"tcp://host:port"`` for any (they use
            shared memory where all are on this host). Port 0 is any free one.

    Raises:
        ConfigError: the address is none.
        ConnectError: the address is taken.

    Thread safety: one thread starts and stops it.

    Example:
        Two threads stand for two processes here.

        >>> from concurrent.futures import ThreadPoolExecutor
        >>> def work(rank):
        ...     with distnet.ProcessGroup(coordinator.address, rank, 2) as group:
        ...         return group.allreduce(np.full(3, rank + 1.0)).tolist()
        >>> with distnet.GroupCoordinator() as coordinator, ThreadPoolExecutor() as pool:
        ...     list(pool.map(work, range(2)))
        [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """

    def __init__(self, address: str = "shm://") -> None:
        check_address("address", address)
        self._native = _native.GroupCoordinator(address)

    @property
    def address(self) -> str:
        """Where it listens, as :class:`ProcessGroup` takes it."""
        return self._native.address

    def stop(self, *, patience: float = 30.0) -> None:
        """Wait until all members have left, and end; stopping twice is allowed.

        Args:
            patience: seconds to wait at most, 0 or above. Members that are still there then raise
                :class:`~distnet.PeerClosed`.

        Raises:
            ConfigError: ``patience`` is no number of seconds.
        """
        check_seconds("patience", patience)
        self._native.stop(float(patience))

    def __enter__(self) -> GroupCoordinator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.stop(patience=0.0)
