"""What a process group refuses before anything is sent, in one clear sentence each; no engine takes part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distnet
from distnet._private.collective_arguments import checked_ranks
from distnet._private.group_calls import Call, Calls

CALLS = Calls(1, 3)
F4 = np.zeros((6, 2), np.float32)
U2 = np.zeros(4, np.uint16)
READ_ONLY = np.zeros((6, 2), np.float32)
READ_ONLY.flags.writeable = False


def allreduce(array: Any = F4, op: Any = "sum", pre: Any = 1.0, post: Any = 1.0, **more: Any) -> Call[Any]:
    return CALLS.allreduce(array, op, pre, post, more.get("out"), more.get("name"), more.get("dtype"))


def reduce_scatter(array: Any = F4, splits: Any = None, out: Any = None) -> Call[Any]:
    return CALLS.reduce_scatter(array, "sum", splits, 1.0, 1.0, out, None, None)


def of_rank_1(array: Any = None, root: Any = 0, splits: Any = None, out: Any = None) -> Call[Any]:
    return CALLS.scatter(array, root, splits, out, None, None)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another dtype": (lambda: allreduce(np.zeros(3, np.uint32)), r"the array is uint32 \(3,\); .*\.astype\('int64'\)"),
    "complex": (
        lambda: allreduce(np.zeros(3, complex)),
        r"the array is complex128 \(3,\); expected uint8, .*bfloat16$",
    ),
    "texts": (lambda: allreduce(np.array(["a"])), r"the array is <U1 \(1,\); expected uint8"),
    "objects": (lambda: allreduce(np.array([None])), r"the array is object \(1,\); expected uint8"),
    "uint16 without a word": (lambda: allreduce(U2), r"the array is uint16 \(4,\); .*dtype='bfloat16' where"),
    "a dtype that is not the array's": (
        lambda: allreduce(dtype="float64"),
        r"dtype is 'float64', and the array is float32",
    ),
    "bfloat16 of float32": (lambda: allreduce(dtype="bfloat16"), r"dtype is 'bfloat16', and the array is float32"),
    "a list": (lambda: allreduce([F4, F4]), r"the array is a list; an operation takes one array"),
    "a dict": (lambda: allreduce({"w": F4}), r"the array is a dict; an operation takes one array"),
    "None": (lambda: allreduce(None), r"the array is None; expected an array"),
    "a text": (lambda: allreduce("abc"), r"the array is a str; expected an array"),
    "a masked array": (lambda: allreduce(np.ma.masked_array([1.0])), r"masked array; .*\.filled\(0\)"),
    "nine dimensions": (lambda: allreduce(np.zeros((1,) * 9)), r"9 dimensions; expected at most 8"),
    "an op that is none": (lambda: allreduce(op="mean"), r"op is 'mean'; did you mean 'average'\?"),
    "an op like none": (lambda: allreduce(op="xor"), r"op is 'xor'; expected one of sum, average, min, max, product"),
    "an op in capitals": (lambda: allreduce(op="SUM"), r"op is 'SUM'"),
    "an average of bool": (lambda: allreduce(np.zeros(2, bool), "average"), r"op is 'average', and the array is bool"),
    "a scale of bool": (lambda: allreduce(np.zeros(2, bool), pre=2.0), r"prescale is 2.0, and the array is bool"),
    "a scale that is no number": (lambda: allreduce(post=float("nan")), r"postscale is nan; expected a finite number"),
    "a scale that is a text": (lambda: allreduce(pre="2"), r"prescale is '2'; expected a finite number"),
    "out of another dtype": (
        lambda: allreduce(out=np.zeros((6, 2))),
        r"out is float64 \(6, 2\); expected float32 \(6, 2\)",
    ),
    "out of another shape": (lambda: allreduce(out=F4[:3]), r"out is float32 \(3, 2\); expected float32 \(6, 2\)"),
    "out with gaps": (lambda: allreduce(out=np.zeros((6, 4), "f4")[:, ::2]), r"out does not lie in one piece"),
    "out that is read-only": (lambda: allreduce(out=READ_ONLY), r"out is read-only"),
    "out that is a list": (lambda: allreduce(out=[0.0]), r"out is a list; expected a writable, C-contiguous array"),
    "out of the other byte order": (lambda: allreduce(out=np.zeros((6, 2), ">f4")), r"out is >f4; expected a writable"),
    "out that overlaps": (
        lambda: (lambda memory: allreduce(memory[:4], out=memory[2:]))(np.zeros(6)),
        r"out shares a part of the array's memory",
    ),
    "out at the array's beginning": (
        lambda: (lambda memory: reduce_scatter(memory, out=memory[:2]))(np.zeros(6)),
        r"out shares a part of the array's memory",
    ),
    "out of other rows": (
        lambda: CALLS.allgather(F4, np.zeros((18, 3), "f4"), None, None),
        r"out is float32 \(18, 3\); expected float32 \(rows of all ranks, 2\)",
    ),
    "out with this rank's rows": (
        lambda: (lambda memory: CALLS.allgather(memory[2:4], memory, None, None))(np.zeros(6)),
        r"out shares a part of the array's memory; expected other memory",
    ),
    "a name that is none": (lambda: allreduce(name=3), r"name is 3; expected a text"),
    "an empty name": (lambda: allreduce(name=""), r"name is '', of 0 bytes; expected 1 to"),
    "a name with a line end": (lambda: allreduce(name="a\nb"), r"name is 'a\\nb', of 3 bytes; .*printable"),
    "splits that do not add up": (
        lambda: reduce_scatter(splits=[1, 2, 4]),
        r"splits add up to 7, and the array has 6 rows",
    ),
    "splits for two of three": (
        lambda: reduce_scatter(splits=[3, 3]),
        r"expected a number of rows for each of the 3 ranks",
    ),
    "a negative split": (lambda: reduce_scatter(splits=[-1, 3, 4]), r"splits holds -1; expected whole numbers"),
    "half a row": (lambda: reduce_scatter(splits=[1.5, 1.5, 3]), r"splits holds 1.5; expected whole numbers"),
    "splits that are a number": (lambda: reduce_scatter(splits=2), r"splits is 2; expected a number of rows"),
    "nothing to split": (lambda: CALLS.alltoall(3.0, None, None, None), r"no dimension to split along"),
    "a root beyond": (
        lambda: CALLS.broadcast(F4, 3, None, None, None),
        r"root is 3; expected a whole number from 0 to 2",
    ),
    "a root that is no number": (lambda: CALLS.gather(F4, True, None, None), r"root is True; expected a whole number"),
    "a root without an array": (lambda: CALLS.broadcast(None, 1, None, None, None), r"None at the root of a broadcast"),
    "a scatter without an array": (lambda: of_rank_1(root=1), r"None at the root of a scatter"),
    "an array where there is no root": (lambda: of_rank_1(F4), r"rank 1 gives an array, and rank 0 is the root"),
    "splits where there is no root": (
        lambda: of_rank_1(splits=[2, 2, 2]),
        r"rank 1 gives splits, and rank 0 is the root",
    ),
    "a message to itself": (lambda: CALLS.send(F4, 1, 0, None), r"to is 1, which is this rank; expected another one"),
    "a message from nobody": (lambda: CALLS.recv(F4, 3, 0, None), r"source is 3; expected a whole number from 0 to 2"),
    "a message to nowhere": (lambda: CALLS.recv(None, 0, 0, None), r"out is None; expected an array"),
    "a tag below zero": (
        lambda: CALLS.send(F4, 0, -1, None),
        r"tag is -1; expected a whole number from 0 to 4294967295",
    ),
    "no ranks": (lambda: checked_ranks([], 3), r"ranks is \[\]; expected a list of ranks, at least one"),
    "a rank beyond": (lambda: checked_ranks([0, 3], 3), r"one of ranks is 3; expected a whole number from 0 to 2"),
    "a rank twice": (lambda: checked_ranks([0, 0], 3), r"ranks is \[0, 0\]; expected each rank once"),
    "a rank alone": (lambda: checked_ranks(1, 3), r"ranks is 1; expected a list of ranks"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_by_name(what: str) -> None:
    call, text = REFUSED[what]
    with pytest.raises(distnet.ConfigError, match=text):
        call()


def test_arrays_are_used_where_they_are() -> None:
    call = allreduce(F4, out=F4)
    assert call.inputs[0] is F4
    assert call.out is F4


@pytest.mark.parametrize(
    "array", [np.zeros((6, 4), "f4")[:, ::2], np.zeros((2, 6), "f4").T, np.zeros((6, 2), ">f4"), np.float32(0)]
)
def test_what_cannot_be_used_where_it_is_is_copied(array: Any) -> None:
    call = allreduce(array)
    assert call.inputs[0].flags.c_contiguous
    assert call.inputs[0].dtype == np.float32
    assert call.shape == array.shape


def test_tensors_of_torch_are_views() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, requires_grad=True)
    call = allreduce(tensor)
    assert call.inputs[0].ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(("value", "dtype"), [(True, "bool"), (3, "int64"), (2.5, "float64"), (np.int8(1), "int8")])
def test_numbers_are_arrays_without_dimensions(value: Any, dtype: str) -> None:
    call = allreduce(value)
    assert (call.dtype, call.shape) == (dtype, ())


def test_rows_are_shared_out_evenly_and_the_first_ranks_get_more() -> None:
    assert reduce_scatter(np.zeros((8, 2))).splits == [3, 3, 2]
    assert reduce_scatter(np.zeros((1, 2))).splits == [1, 0, 0]
    assert reduce_scatter(np.zeros((6, 2)), splits=np.array([1, 5, 0])).splits == [1, 5, 0]


# ---- the constructors ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "needs an address, a rank and a size, unless `distnet run`"),
        ({"address": "shm://x", "rank": 0}, "needs an address, a rank and a size"),
        ({"address": "localhost:1", "rank": 0, "size": 1}, "did you mean tcp://localhost:1"),
        ({"address": "shm://x", "rank": 2, "size": 2}, "rank is 2; expected a whole number from 0 to 1"),
        ({"address": "shm://x", "rank": 0, "size": 0}, "size is 0; expected a whole number from 1 to 1024"),
        ({"address": "shm://x", "rank": 0, "size": 1, "transport": "rdma"}, "transport is 'rdma'; expected 'auto'"),
        ({"address": "shm://x", "rank": 0, "size": 1, "timeout": 0}, "timeout is 0; expected seconds, above 0"),
        ({"address": "shm://x", "rank": 0, "size": 1, "operation_timeout": 0}, "operation_timeout is 0; expected"),
        ({"address": "shm://x", "rank": 0, "size": 1, "name": ""}, "name is '', of 0 bytes"),
    ],
)
def test_a_group_refuses_what_makes_no_sense(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(distnet.ConfigError, match=text):
        distnet.ProcessGroup(**arguments)


def test_a_coordinator_refuses_what_makes_no_sense() -> None:
    with pytest.raises(distnet.ConfigError, match="did you mean tcp://localhost:1"):
        distnet.GroupCoordinator("localhost:1")
    with distnet.GroupCoordinator() as coordinator, pytest.raises(distnet.ConfigError, match="patience is -1"):
        coordinator.stop(patience=-1)


@pytest.mark.parametrize("name", [name for name in dir(distnet.ProcessGroup) if name.startswith("begin_")])
def test_what_begins_an_operation_takes_the_same_arguments_and_promises_the_same_result(name: str) -> None:
    begun = inspect.signature(getattr(distnet.ProcessGroup, name))
    done = inspect.signature(getattr(distnet.ProcessGroup, name.removeprefix("begin_")))
    assert begun.parameters == done.parameters
    assert begun.return_annotation == f"Work[{done.return_annotation}]"
    assert "Call" not in done.return_annotation
