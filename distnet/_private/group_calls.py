"""One call of a process group as a value: from checked arguments to what the engine is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from distnet._private.bounds import check_whole
from distnet._private.collective_arguments import (
    NUMPYS_DTYPES,
    AnyArray,
    array_by_rank,
    check_name,
    check_op,
    check_out,
    check_result,
    check_rows,
    checked_splits,
    element_type,
    usable_array,
)
from distnet.errors import ConfigError

__all__ = ["Answer", "Call", "Calls", "Result"]

_MOST_TAG = 2**32 - 1

Result = TypeVar("Result")


@dataclasses.dataclass(kw_only=True, slots=True)
class Call(Generic[Result]):
    """What one rank asks for, and what type its result has.

    Attributes:
        kind: of operation, by the engine's name.
        inputs: what this rank brings: one array or none.
        out: where the engine writes the result; None: it makes memory for it, or there is none.
        dtype: of the elements, by the engine's name.
        shape: of what this rank brings, or where it brings nothing, of what it expects.
        op: the reduction.
        prescale: a factor of what this rank brings.
        postscale: a factor of the result.
        root: of the operation; the other rank of a message.
        splits: rows for each rank.
        takes_any: whether this rank takes any dtype and shape that the root brings.
        name: of the operation; empty: it is matched by order.
        tag: of a message.
        by_rank: whether the result is a list with the rows of each rank.
        like: the NumPy dtype of a result that the engine makes memory for; None: the engine says.
    """

    kind: str
    inputs: tuple[AnyArray, ...] = ()
    out: AnyArray | None = None
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    op: str = "sum"
    prescale: float = 1.0
    postscale: float = 1.0
    root: int = 0
    splits: Sequence[int] = ()
    takes_any: bool = False
    name: str = ""
    tag: int = 0
    by_rank: bool = False
    like: np.dtype[Any] | None = None

    def result_of(self, work: Answer) -> Result:
        """Return the result of an operation that is done."""
        return cast(Result, self._result_of(work))

    def _result_of(self, work: Answer) -> object:
        array = self.out
        if array is None:
            if self.kind == "join":
                return work.last_rank
            if work.output is None:
                return None
            array = work.output.view(self.like or NUMPYS_DTYPES[work.dtype]).reshape(work.shape)
        return array_by_rank(array, work.rows, scalars=not self.shape) if self.by_rank else array


class Answer(Protocol):
    """What the engine says of an operation that is done: the bytes of its result where it made memory for them."""

    @property
    def output(self) -> npt.NDArray[np.uint8] | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def rows(self) -> list[int]: ...
    @property
    def last_rank(self) -> int: ...


class Calls:
    """Makes the calls of one rank, and refuses those that make no sense, before anything is sent.

    Args:
        rank: that calls.
        size: of its group.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size

    def allreduce(
        self, value: Any, op: str, prescale: float, postscale: float, out: Any, name: str | None, dtype: str | None
    ) -> Call[AnyArray]:
        call = _bringing("allreduce", value, name, dtype)
        return self._reducing(call, op, prescale, postscale, out, call.shape)

    def reduce_scatter(
        self,
        value: Any,
        op: str,
        splits: Sequence[int] | None,
        prescale: float,
        postscale: float,
        out: Any,
        name: str | None,
        dtype: str | None,
    ) -> Call[AnyArray]:
        call = _bringing("reduce_scatter", value, name, dtype)
        call.splits = checked_splits(splits, call.inputs[0], self._size)
        return self._reducing(call, op, prescale, postscale, out, (call.splits[self._rank], *call.shape[1:]))

    def _reducing(
        self, call: Call[AnyArray], op: str, prescale: float, postscale: float, out: Any, shape: tuple[int, ...]
    ) -> Call[AnyArray]:
        check_op(op, call.dtype, prescale, postscale)
        call.op, call.prescale, call.postscale = op, float(prescale), float(postscale)
        call.out = _destination(out, call.inputs[0], shape)
        return call

    def allgather(self, value: Any, out: Any, name: str | None, dtype: str | None) -> Call[list[AnyArray]]:
        call = _bringing("allgather", value, name, dtype, by_rank=True)
        if out is not None:
            call.out = check_out(out)
            check_rows(call.out, call.inputs[0])
        return call

    def alltoall(
        self, value: Any, splits: Sequence[int] | None, name: str | None, dtype: str | None
    ) -> Call[list[AnyArray]]:
        call = _bringing("alltoall", value, name, dtype, by_rank=True)
        call.splits = checked_splits(splits, call.inputs[0], self._size)
        return call

    def broadcast(self, value: Any, root: int, out: Any, name: str | None, dtype: str | None) -> Call[AnyArray]:
        self._check_root(root)
        if value is None and root == self._rank:
            raise ConfigError("the array is None at the root of a broadcast; expected an array")
        if value is None:
            return _taking("broadcast", root, out, name, dtype)
        call = _bringing("broadcast", value, name, dtype, root=root)
        call.out = _destination(out, call.inputs[0], call.shape)
        return call

    def gather(self, value: Any, root: int, name: str | None, dtype: str | None) -> Call[list[AnyArray] | None]:
        self._check_root(root)
        return _bringing("gather", value, name, dtype, root=root, by_rank=True)

    def scatter(
        self, value: Any, root: int, splits: Sequence[int] | None, out: Any, name: str | None, dtype: str | None
    ) -> Call[AnyArray]:
        self._check_root(root)
        if root != self._rank:
            if value is not None or splits is not None:
                given = "splits" if value is None else "an array"
                raise ConfigError(f"rank {self._rank} gives {given}, and rank {root} is the root; expected None")
            return _taking("scatter", root, out, name, dtype)
        if value is None:
            raise ConfigError("the array is None at the root of a scatter; expected an array")
        call = _bringing("scatter", value, name, dtype, root=root)
        call.splits = checked_splits(splits, call.inputs[0], self._size)
        call.out = _destination(out, call.inputs[0], (call.splits[root], *call.shape[1:]))
        return call

    def send(self, value: Any, to: int, tag: int, dtype: str | None) -> Call[None]:
        self._check_peer("to", to, tag)
        return _bringing("send", value, None, dtype, root=to, tag=tag)

    def recv(self, out: Any, source: int, tag: int, dtype: str | None) -> Call[AnyArray]:
        self._check_peer("source", source, tag)
        if out is None:
            raise ConfigError("out is None; expected an array of the dtype and as long as what is sent")
        call = _taking("receive", source, out, None, dtype)
        call.tag = tag
        return call

    def barrier(self, name: str | None) -> Call[None]:
        return Call(kind="barrier", name=_checked(name))

    def join(self) -> Call[int]:
        return Call(kind="join")

    def _check_root(self, root: int) -> None:
        check_whole("root", root, 0, self._size - 1)

    def _check_peer(self, name: str, peer: int, tag: int) -> None:
        check_whole(name, peer, 0, self._size - 1)
        if peer == self._rank:
            raise ConfigError(f"{name} is {peer}, which is this rank; expected another one")
        check_whole("tag", tag, 0, _MOST_TAG)


def _bringing(kind: str, value: Any, name: str | None, dtype: str | None, **more: Any) -> Call[Any]:
    """Return a call in which this rank brings an array."""
    array = usable_array(value)
    elements = element_type(array.dtype, array.shape, dtype)
    shape = array.shape
    return Call(kind=kind, inputs=(array,), dtype=elements, shape=shape, like=array.dtype, name=_checked(name), **more)


def _taking(kind: str, root: int, out: Any, name: str | None, dtype: str | None) -> Call[AnyArray]:
    """Return a call in which this rank brings nothing; without `out` it takes whatever comes."""
    if out is None:
        return Call(kind=kind, root=root, takes_any=True, name=_checked(name))
    array = check_out(out)
    elements = element_type(array.dtype, array.shape, dtype, "out")
    return Call(kind=kind, root=root, out=array, dtype=elements, shape=array.shape, name=_checked(name))


def _destination(out: Any, array: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Return where a result of the array's dtype goes."""
    if out is None:
        return np.empty(shape, array.dtype)
    found = check_out(out)
    check_result(found, array, shape)
    return found


def _checked(name: str | None) -> str:
    if name is None:
        return ""
    check_name(name)
    return name
