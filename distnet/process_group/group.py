"""One rank's membership in a group: how it comes, who it is, groups made of it, and how it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from distnet._private.collective_arguments import checked_ranks
from distnet._private.stop_flag import StopFlag
from distnet.process_group.collectives import Collectives
from distnet.process_group.joining import Joining, name_of, resolve_place
from distnet.process_group.messages import Messages

__all__ = ["ProcessGroup"]


class ProcessGroup(Collectives, Messages):
    """One rank's membership in a group of ranks, with the operations that its members do together.

    Each operation is called by every rank of the group. Unnamed ones are matched by the order in which each rank begins
    them; those with ``name=`` are matched by that, in any order. Kind, dtype, shape, ``op`` and root must be the same
    on all ranks: where they differ, all of them raise the same :class:`~distnet.CollectiveMismatch`, which says who
    differs, and the group goes on. All ranks get the same bits, every time and over both transports: elements are
    reduced in the order of ranks.

    Arrays are those of NumPy, or what NumPy can view, such as tensors of PyTorch on the CPU and Python's numbers. They
    hold uint8, int8, int16, int32, int64, float16, float32, float64, bool or bfloat16, and have at most 8 dimensions.
    An array of bfloat16 is one of ``ml_dtypes``, or one of uint16 that is given with ``dtype="bfloat16"``. Float16 and
    bfloat16 are reduced in float32. Integers wrap; where they are averaged or scaled, that is done in float64, and the
    result is cut towards zero. Sum and maximum of bool are *or*, product and minimum *and*. An array that is not
    C-contiguous is copied first. An ``out=`` is C-contiguous, of the result's dtype and shape; it may be the array
    itself.

    ``begin_…`` starts an operation and returns a :class:`Work`; any number may be on their way. Members use shared
    memory where all are on one host, else TCP.

    In a ``with`` block the group is closed in order at the end. Where an exception ends the block, the member is lost
    to the others, which raise :class:`~distnet.PeerClosed`.

    Args:
        address: of a coordinator: ``GroupCoordinator.address``, or that of a :class:`~distnet.ParameterServer`, whose
            first shard has one. None: that of the server that ``distnet run`` started this script beside.
        rank: this member's number in the group, from 0. None: the rank that ``distnet run`` gave this process.
        size: how many members the group has. None: the workers of ``distnet run``.
        timeout: seconds, above 0, in which the coordinator and all members must be there; afterwards, of silence after
            which a member counts as lost. One that computes is not silent: the engine answers for it.
        name: of the group; one coordinator may serve many.
        transport: ``"auto"`` takes shared memory where all members are on one host, else TCP; ``"shm"`` and ``"tcp"``
            insist.
        operation_timeout: seconds, above 0, that an operation may take from its beginning, with the wait for other
            ranks. An unnamed one that takes longer ends the group, for all of its members.
        stop: a :class:`threading.Event`, or another object with ``is_set()``. While it is set, a wait for the others,
            for an operation or in :meth:`close` ends within a fraction of a second by :class:`~distnet.Interrupted`, as
            by Ctrl-C, but on whichever thread it is. :meth:`Work.wait` leaves the operation going; a call without
            ``begin_`` that is broken off in the middle of its operation ends the group. None: only Ctrl-C ends waits.

    Raises:
        DeadlineExceeded: not all members came within ``timeout``; it says who is missing.
        ConnectError: nobody listened at the address within that time.
        ConfigError: an argument makes no sense, ranks give different sizes, another member has this rank, or there is
            no address and ``distnet run`` did not start this process.
        TransportError: the coordinator went away, or had no room.
        Unauthorized: the coordinator runs as another user.
        Interrupted: ``stop`` was set while it waited for the others.

    Thread safety: any thread. Threads that begin unnamed operations need an order of their own, since each rank must
    begin them in the same one. Not usable after a fork.

    Example:
        >>> with distnet.GroupCoordinator() as coordinator:
        ...     with distnet.ProcessGroup(coordinator.address, rank=0, size=1) as group:
        ...         group.rank, group.size, group.allreduce(np.ones(2), "average").tolist()
        (0, 1, [1.0, 1.0])
    """

    def __init__(
        self,
        address: str | None = None,
        rank: int | None = None,
        size: int | None = None,
        *,
        timeout: float = 30.0,
        name: str = "world",
        transport: str = "auto",
        operation_timeout: float = 1800.0,
        stop: StopFlag | None = None,
    ) -> None:
        address, rank, size = resolve_place(address, rank, size)
        self._joined = Joining(
            address=address,
            rank=rank,
            size=size,
            timeout=timeout,
            name=name,
            transport=transport,
            operation_timeout=operation_timeout,
            stop=stop,
        )
        self._made: dict[tuple[int, ...], int] = {}  # how many groups of these ranks were made of this one
        super().__init__(self._joined.join(), rank, size, float(operation_timeout))

    @property
    def rank(self) -> int:
        """This member's number, from 0."""
        return self._joined.rank

    @property
    def size(self) -> int:
        """How many members there are."""
        return self._joined.size

    @property
    def name(self) -> str:
        """The group's name."""
        return self._native.name

    @property
    def transport(self) -> str:
        """The transport of arrays, ``"shm"`` or ``"tcp"``."""
        return self._native.transport

    @property
    def closed(self) -> bool:
        """Whether this rank has left the group."""
        return self._native.closed

    # ---- groups and their end --------------------------------------------------------------------------------------
    def new_group(self, ranks: Sequence[int], name: str | None = None) -> ProcessGroup | None:
        """Make a group of some of this group's ranks.

        All of these ranks call it; others may, and need not. It is a group of its own, with its own
        :meth:`close`, whose member ``i`` is ``ranks[i]``.

        Args:
            ranks: of this group, the same list on all of them.
            name: of the new group, which no other group of this coordinator has. None: one is made of this group's
                name, the ranks, and how many groups of these ranks were made before.

        Returns:
            The new group; None where this rank is not of it.

        Raises:
            DistNetError: what the constructor raises.
        """
        members = tuple(checked_ranks(ranks, self._joined.size))
        if name is None:
            number = self._made[members] = self._made.get(members, 0) + 1
            name = name_of(f"{self.name}/{','.join(map(str, members))}#{number}")
        if self._joined.rank not in members:
            return None
        joined = self._joined
        return ProcessGroup(
            joined.address,
            members.index(joined.rank),
            len(members),
            timeout=joined.timeout,
            name=name,
            transport=joined.transport,
            operation_timeout=joined.operation_timeout,
            stop=joined.stop,
        )

    def close(self) -> None:
        """Leave the group in order, once the operations that this rank has begun are done; it may be called twice.

        The others go on without this rank as long as they call no operation that needs it.
        """
        self._native.close()

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._native.abandon()  # not an orderly end: the others hear that this member is lost
