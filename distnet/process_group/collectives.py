"""The operations that all members of a group do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distnet._private.collective_arguments import AnyArray
from distnet._private.group_calls import Call
from distnet.process_group.operations import Operations, begins, operation

__all__ = ["Collectives"]


class Collectives(Operations):
    """Collectives and barriers of one member; :class:`distnet.ProcessGroup` says what they share."""

    # ---- reductions ------------------------------------------------------------------------------------------------
    @operation
    def allreduce(
        self,
        array: Any,
        op: str = "sum",
        *,
        prescale: float = 1.0,
        postscale: float = 1.0,
        out: AnyArray | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> Call[AnyArray]:
        """Reduce an array over all ranks, element by element; all get the result.

        Args:
            array: of the same dtype and shape on all ranks.
            op: ``"sum"``, ``"average"``, ``"min"``, ``"max"`` or ``"product"``. An average divides by the number of
                ranks that have not joined (:meth:`join`).
            prescale: a factor of this rank's array before the reduction.
            postscale: a factor of the result.
            out: where to put the result. None: a new array.
            name: by which ranks find this operation's counterparts. None: the order of calls.
            dtype: ``"bfloat16"`` where a uint16 array holds the bits of such. None: as NumPy says.

        Returns:
            The result, in ``out`` or a new array of the same dtype and shape.

        Raises:
            CollectiveMismatch: ranks called it with differing arguments; all raise it, and the group goes on.
            PeerClosed: a member is lost; it is named, and the group is dead.
            DeadlineExceeded: a member did not come within ``operation_timeout``; it is named, and the group is dead.
            ConfigError: an argument makes no sense, or an operation of that name is under way. Nothing was sent.
        """
        return self._calls.allreduce(array, op, prescale, postscale, out, name, dtype)

    begin_allreduce = begins(allreduce)

    @operation
    def reduce_scatter(
        self,
        array: Any,
        op: str = "sum",
        *,
        splits: Sequence[int] | None = None,
        prescale: float = 1.0,
        postscale: float = 1.0,
        out: AnyArray | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> Call[AnyArray]:
        """Reduce an array over all ranks, element by element; each gets its own rows of the result.

        Args:
            array: of the same dtype and shape on all ranks, with one dimension at least.
            op: as :meth:`allreduce` takes it.
            splits: how many rows each rank gets, the same on all. None: as even as can be, the first ranks one more.
            prescale: a factor of this rank's array before the reduction.
            postscale: a factor of the result.
            out: where to put this rank's rows. None: a new array.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            This rank's rows.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.reduce_scatter(array, op, splits, prescale, postscale, out, name, dtype)

    begin_reduce_scatter = begins(reduce_scatter)

    # ---- from each to all ------------------------------------------------------------------------------------------
    @operation
    def allgather(
        self, array: Any, *, out: AnyArray | None = None, name: str | None = None, dtype: str | None = None
    ) -> Call[list[AnyArray]]:
        """Hand every rank's array to all ranks.

        Args:
            array: of the same dtype on all ranks. The number of rows (the first dimension) may differ, not the rest of
                the shape.
            out: where to put the rows of all ranks, one behind another. None: new memory.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            All arrays, by rank, one behind another in ``out`` or in new memory.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.allgather(array, out, name, dtype)

    begin_allgather = begins(allgather)

    @operation
    def alltoall(
        self, array: Any, splits: Sequence[int] | None = None, *, name: str | None = None, dtype: str | None = None
    ) -> Call[list[AnyArray]]:
        """Hand each rank its rows of every rank's array.

        Args:
            array: of the same dtype on all ranks, with one dimension at least. The number of rows may differ.
            splits: how many of this rank's rows each rank gets. None: as even as can be, the first ranks one more.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            What each rank had for this one, by rank.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.alltoall(array, splits, name, dtype)

    begin_alltoall = begins(alltoall)

    # ---- from and to one rank --------------------------------------------------------------------------------------
    @operation
    def broadcast(
        self,
        array: Any,
        root: int = 0,
        *,
        out: AnyArray | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> Call[AnyArray]:
        """Hand one rank's array to all ranks.

        Args:
            array: the root's. On the other ranks None, or one of the same dtype and shape, whose values do not count.
            root: the rank whose array it is.
            out: where to put it, usually ``array`` itself. None: a new array. Where another rank than the root gives
                neither, it takes what comes; bfloat16 comes as uint16.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            The root's values, in ``out`` or a new array.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.broadcast(array, root, out, name, dtype)

    begin_broadcast = begins(broadcast)

    @operation
    def gather(
        self, array: Any, root: int = 0, *, name: str | None = None, dtype: str | None = None
    ) -> Call[list[AnyArray] | None]:
        """Hand every rank's array to one rank.

        Args:
            array: as :meth:`allgather` takes it.
            root: the rank that gets them.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            All arrays, by rank, at the root; None elsewhere.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.gather(array, root, name, dtype)

    begin_gather = begins(gather)

    @operation
    def scatter(
        self,
        array: Any,
        root: int = 0,
        *,
        splits: Sequence[int] | None = None,
        out: AnyArray | None = None,
        name: str | None = None,
        dtype: str | None = None,
    ) -> Call[AnyArray]:
        """Hand each rank its rows of one rank's array.

        Args:
            array: at the root: with one dimension at least. None on the other ranks.
            root: the rank whose array it is.
            splits: at the root: how many rows each rank gets. None: as even as can be, the first ranks one more.
            out: where to put this rank's rows. None: a new array, which takes what comes; bfloat16 comes as uint16.
            name: as :meth:`allreduce` takes it.
            dtype: as :meth:`allreduce` takes it.

        Returns:
            This rank's rows.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.scatter(array, root, splits, out, name, dtype)

    begin_scatter = begins(scatter)

    # ---- waiting for each other ------------------------------------------------------------------------------------
    @operation
    def barrier(self, *, name: str | None = None) -> Call[None]:
        """Wait until all ranks are here.

        Args:
            name: as :meth:`allreduce` takes it.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._calls.barrier(name)

    begin_barrier = begins(barrier)

    def join(self) -> int:
        """Say that this rank has nothing left to contribute, and wait until all ranks have said so.

        For ranks whose data do not last equally long. Meanwhile this rank takes part in the operations of the others
        and contributes nothing: no summand, and no rows to an :meth:`allgather`. Afterwards the group goes on with all.

        Returns:
            The rank that joined last.

        Raises:
            DistNetError: what :meth:`allreduce` raises.
        """
        return self._run(self._calls.join())
