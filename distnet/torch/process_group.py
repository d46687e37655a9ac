"""The face of a group for ``torch.distributed``: unpacks what PyTorch passes, and hands it to the collectives.

PyTorch calls these methods by name, from Python and from C++ (DDP's reducer, functional collectives), and has renamed
some over time; both names stand here.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from distnet.errors import ConfigError, DistNetError
from distnet.torch.completion import Completion
from distnet.torch.moving import ANY_RANK, Moving
from distnet.torch.operations import Call, Operations
from distnet.torch.reducing import Reducing
from distnet.torch.rendezvous import Membership
from distnet.torch.untraced import untraced
from distnet.torch.work import Work
from distnet_torch_backend import BACKEND, DEVICES

__all__ = ["ProcessGroup"]

_open_groups: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()


class ProcessGroup(dist.ProcessGroup):  # type: ignore[misc]
    """One rank's process group of the backend "distnet"; ``init_process_group`` and ``new_group`` make it.

    Thread safety: any thread, as long as all ranks begin their operations in the same order.

    Args:
        store: of ``torch.distributed``, for this group alone.
        rank: in the group.
        size: of the group.
        timeout_s: for all ranks to come, and for each operation unless it says otherwise.
        name: of the group.
        transport: ``"auto"``, ``"shm"`` or ``"tcp"``.

    Raises:
        DistNetError: the ranks did not come together.
    """

    def __init__(self, store: Any, rank: int, size: int, *, timeout_s: float, name: str, transport: str) -> None:
        super().__init__(rank, size)
        self._store = store
        self._timeout_s = timeout_s
        self._group_name = self._group_desc = name
        self._coalesced: list[Work] | None = None
        self._sequence_number = 0
        self._membership: Membership | None = Membership(
            store, rank, size, timeout_s=timeout_s, name=name, transport=transport
        )
        self._completion = Completion(name)
        self._operations = Operations(self._membership.native, self._completion)
        self._reducing = Reducing(self._operations)
        self._moving = Moving(self._operations)
        _open_groups.add(self)

    # ---- who it is -------------------------------------------------------------------------------------------------
    def getBackendName(self) -> str:  # noqa: N802 - PyTorch's names, here and below
        """Return the backend's name."""
        return BACKEND

    def getGroupName(self) -> str:  # noqa: N802
        """Return the name by which PyTorch knows the group."""
        return self._group_name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        """Take the name by which PyTorch knows the group."""
        self._group_name = name

    def getGroupDesc(self) -> str:  # noqa: N802
        """Return the group's description."""
        return self._group_desc

    def setGroupDesc(self, description: str) -> None:  # noqa: N802
        """Take the group's description."""
        self._group_desc = description

    @property
    def group_name(self) -> str:
        """The name by which PyTorch knows the group."""
        return self._group_name

    @property
    def group_desc(self) -> str:
        """The group's description."""
        return self._group_desc

    @property
    def transport(self) -> str:
        """How tensors travel: ``"shm"`` or ``"tcp"``."""
        return str(self._operations.transport)

    def get_group_store(self) -> Any:
        """Return the group's store."""
        return self._store

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device(device) for device in DEVICES]

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        if device.type not in DEVICES:
            raise RuntimeError(f"the backend {BACKEND!r} has no tensors of {device.type}")  # as PyTorch's own say it
        return self

    # What PyTorch asks the backend of a device, which is the group itself here.
    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        """Return False: tensors need no memory of the backend's own."""
        return False

    def _set_sequence_number_for_group(self) -> None:
        self._sequence_number = 0

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence_number

    # ---- how it ends -----------------------------------------------------------------------------------------------
    def set_timeout(self, timeout: datetime.timedelta) -> None:
        """Set what an operation may take unless it says otherwise."""
        self._timeout_s = timeout.total_seconds()

    setTimeout = _set_default_timeout = set_timeout  # noqa: N815

    def shutdown(self) -> None:
        """Leave the group in order; what ``destroy_process_group`` calls. A second call does nothing."""
        membership, self._membership = self._membership, None
        if membership is not None:
            try:
                with contextlib.suppress(DistNetError):  # works have said it, where the group has failed
                    membership.close()
            finally:
                self._completion.stop()

    def abort(self) -> None:
        """Leave the group at once: operations under way fail, here and at the other ranks."""
        membership, self._membership = self._membership, None
        if membership is not None:
            try:
                membership.abandon()
            finally:
                self._completion.stop()

    # ---- reductions ------------------------------------------------------------------------------------------------
    @untraced
    def allreduce(self, tensors: Any, opts: Any = None, timeout: Any = None, *, op: Any = None) -> Work:
        """Reduce a tensor in place."""
        tensors = _listed(tensors)
        _only(tensors, "allreduce")
        return self._noted(self._reducing.allreduce(tensors, _reduce_op(opts, op), self._call(opts, timeout)))

    @untraced
    def allreduce_coalesced(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Work:
        """Reduce several tensors in place."""
        return self._noted(self._reducing.allreduce(list(tensors), _reduce_op(opts), self._call(opts)))

    @untraced
    def reduce(self, tensors: Any, opts: Any = None, op: Any = None, timeout: Any = None, *, root: int = 0) -> Work:
        """Reduce a tensor to one rank."""
        tensor = _only(_listed(tensors), "reduce")
        root = _root(opts, root)
        return self._noted(self._reducing.reduce(tensor, root, _reduce_op(opts, op), self._call(opts, timeout)))

    @untraced
    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> Work:
        """Reduce a list with a tensor for each rank; each takes its own."""
        if isinstance(outputs, torch.Tensor):
            outputs, inputs = [outputs], [inputs]
        output = _only(outputs, "reduce_scatter")
        tensors = _only(inputs, "reduce_scatter")
        return self._noted(
            self._reducing.reduce_scatter(output, tensors, _reduce_op(opts, op), self._call(opts, timeout))
        )

    @untraced
    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Work:
        """Reduce a tensor with a part for each rank; each takes its own."""
        return self.reduce_scatter_single_coalesced([output], [tensor], opts)

    @untraced
    def reduce_scatter_single_coalesced(
        self, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], opts: Any = None
    ) -> Work:
        """The same for several tensors."""
        return self._noted(self._reducing.reduce_scatter_flat(outputs, tensors, _reduce_op(opts), self._call(opts)))

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    # ---- from each to all, from one to all, from all to one --------------------------------------------------------
    @untraced
    def allgather(self, outputs: Any, tensors: Any, opts: Any = None, timeout: Any = None) -> Work:
        """Hand every rank's tensor to all, into a list with one for each."""
        if isinstance(tensors, torch.Tensor):
            outputs, tensors = [outputs], [tensors]
        tensor = _only(tensors, "allgather")
        return self._noted(self._moving.allgather(_only(outputs, "allgather"), tensor, self._call(opts, timeout)))

    @untraced
    def allgather_coalesced(
        self, outputs: Sequence[Sequence[torch.Tensor]], tensors: Sequence[torch.Tensor], opts: Any = None
    ) -> Work:
        """The same for several tensors; the outputs are lists, one for each rank."""
        return self._noted(self._moving.allgather_lists(outputs, tensors, self._call(opts)))

    @untraced
    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Work:
        """Hand every rank's tensor to all, into one tensor."""
        return self.all_gather_single_coalesced([output], [tensor], opts)

    @untraced
    def all_gather_single_coalesced(
        self, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], opts: Any = None
    ) -> Work:
        """The same for several tensors."""
        return self._noted(self._moving.allgather_flat(outputs, tensors, self._call(opts)))

    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced

    @untraced
    def alltoall(
        self, outputs: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor], opts: Any = None, timeout: Any = None
    ) -> Work:
        """Hand each rank a tensor of a list, and take one from each."""
        return self._noted(self._moving.alltoall(outputs, tensors, self._call(opts, timeout)))

    @untraced
    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_split_sizes: Sequence[int] | None,
        input_split_sizes: Sequence[int] | None,
        opts: Any = None,
        timeout: Any = None,
    ) -> Work:
        """Hand each rank rows of a tensor, and take rows from each."""
        return self._noted(
            self._moving.alltoall_flat(
                output, tensor, output_split_sizes or (), input_split_sizes or (), self._call(opts, timeout)
            )
        )

    alltoall_base = all_to_all_single

    @untraced
    def broadcast(self, tensors: Any, opts: Any = None, timeout: Any = None, *, root: int = 0) -> Work:
        """Hand one rank's tensor to all."""
        tensor = _only(_listed(tensors), "broadcast")
        return self._noted(self._moving.broadcast(tensor, _root(opts, root), self._call(opts, timeout)))

    @untraced
    def gather(self, outputs: Any, tensors: Any, opts: Any = None, timeout: Any = None, *, root: int = 0) -> Work:
        """Hand every rank's tensor to one rank, into a list with one for each."""
        if isinstance(tensors, torch.Tensor):
            outputs, tensors = [outputs], [tensors]
        tensor = _only(tensors, "gather")
        mine = outputs[0] if outputs else []
        return self._noted(self._moving.gather(mine, tensor, _root(opts, root), self._call(opts, timeout)))

    @untraced
    def scatter(self, outputs: Any, tensors: Any, opts: Any = None, timeout: Any = None, *, root: int = 0) -> Work:
        """Hand each rank one of a list of one rank's tensors."""
        if isinstance(outputs, torch.Tensor):
            outputs, tensors = [outputs], [tensors]
        output = _only(outputs, "scatter")
        given = tensors[0] if tensors else []
        return self._noted(self._moving.scatter(output, given, _root(opts, root), self._call(opts, timeout)))

    @untraced
    def barrier(self, opts: Any = None, timeout: Any = None) -> Work:
        """Wait for all ranks."""
        return self._noted(self._moving.barrier(self._call(opts, timeout)))

    @untraced
    def monitored_barrier(self, timeout: datetime.timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Wait for all ranks; an error names those that do not come.

        ``torch.distributed.monitored_barrier`` refuses every backend but gloo by its name: call this method instead.
        """
        self._moving.barrier(Call(self._seconds(timeout), waits=True)).wait()

    # ---- between two ranks -----------------------------------------------------------------------------------------
    @untraced
    def send(self, tensors: Sequence[torch.Tensor], to: int, tag: int = 0) -> Work:
        """Hand a tensor to one rank."""
        return self._noted(self._moving.send(_only(tensors, "send"), to, tag, self._call(None)))

    @untraced
    def recv(self, tensors: Sequence[torch.Tensor], source: int, tag: int = 0) -> Work:
        """Take a tensor from one rank."""
        return self._noted(self._moving.receive(_only(tensors, "recv"), source, tag, self._call(None)))

    def recv_anysource(self, tensors: Sequence[torch.Tensor], tag: int = 0) -> Work:
        """Take a tensor from whichever rank sends one."""
        return self.recv(tensors, ANY_RANK, tag)

    # ---- several as one --------------------------------------------------------------------------------------------
    @untraced
    def _start_coalescing(self, device: torch.device) -> None:
        self._coalesced = []

    @untraced
    def _end_coalescing(self, device: torch.device) -> Work:
        works, self._coalesced = self._coalesced or [], None
        return self._operations.together(works, [tensor for work in works for tensor in work.result()])

    # ---- what PyTorch passes ---------------------------------------------------------------------------------------
    def _noted(self, work: Work) -> Work:
        self._sequence_number += 1
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work

    def _call(self, opts: Any, timeout: Any = None) -> Call:
        return Call(self._seconds(getattr(opts, "timeout", timeout)), waits=not getattr(opts, "asyncOp", True))

    def _seconds(self, timeout: datetime.timedelta | None) -> float:
        seconds = 0.0 if timeout is None else timeout.total_seconds()
        return seconds if seconds > 0 else self._timeout_s  # PyTorch's "not said" is below zero


def _listed(tensors: Any) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _only(values: Sequence[Any], what: str) -> Any:
    """Return the one element: PyTorch's lists are of a time when a process had several devices."""
    if len(values) != 1:
        raise ConfigError(f"{what} got {len(values)} tensors; expected one")
    return values[0]


def _reduce_op(opts: Any, op: Any = None) -> Any:
    """Return the reduction, which is part of the options, stands in their place, or is given by its name."""
    if op is not None:
        return op
    if opts is None:
        return dist.ReduceOp.SUM
    return getattr(opts, "reduceOp", opts)


def _root(opts: Any, root: int) -> int:
    """Return the root, which is part of the options, stands in their place, or is given by its name."""
    if isinstance(opts, int):
        return opts
    return int(getattr(opts, "rootRank", root))


@atexit.register
def _leave_all() -> None:
    """Leave the groups that a script has not destroyed, so that the others hear of an end and not of a death."""
    for group in list(_open_groups):
        group.shutdown()
