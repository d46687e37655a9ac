"""What the native module adds to groups of ranks: memory, handles, waits, hosts and forks. Ranks are threads here."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import distnet
from distnet import _native

TEN = np.arange(10, dtype=np.float32)

# Ends while a callback waits for a lock.
ENDS_IN_A_CALLBACK = """
import threading, time
import numpy as np
from distnet import _native

coordinator = _native.GroupCoordinator("shm://")
members = [None, None]

def form(rank):
    members[rank] = _native.ProcessGroup(coordinator.address, "world", rank, 2, 20.0, "auto")
threads = [threading.Thread(target=form, args=(rank,)) for rank in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
array = np.ones(5, np.float32)
works = [member.begin("allreduce", [array], None, dtype="float32", shape=[5]) for member in members[:1]]
lock = threading.Lock()
inside = threading.Event()

def callback():
    inside.set()
    with lock:
        time.sleep(0.3)
works[0].add_done_callback(callback)
with lock:
    works.append(members[1].begin("allreduce", [array], None, dtype="float32", shape=[5]))
    assert inside.wait(10.0)
"""


@pytest.fixture
def coordinator() -> Iterator[str]:
    native = _native.GroupCoordinator("shm://")
    yield native.address
    native.stop(0.0)


def on_ranks(address: str, size: int, run: Callable[[_native.ProcessGroup], None]) -> None:
    """Form a group and call ``run`` for each member, which then closes; raise what any of them raised."""
    errors: list[BaseException] = []

    def member(rank: int) -> None:
        try:
            group = _native.ProcessGroup(address, "world", rank, size, 20.0, "auto")
            try:
                run(group)
                group.close()
            finally:
                group.abandon()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def begin(group: _native.ProcessGroup, kind: str = "allreduce", **changes: Any) -> _native.Work:
    arguments: dict[str, Any] = {"inputs": [TEN], "outputs": None, "dtype": "float32", "shape": (10,), **changes}
    return group.begin(kind, arguments.pop("inputs"), arguments.pop("outputs"), **arguments)


def names_of_threads() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append((task / "comm").read_text().strip())
    return names


def done(work: _native.Work) -> _native.Work:
    work.wait(20.0)
    return work


def values(work: _native.Work) -> npt.NDArray[np.float32]:
    output = done(work).output
    assert output is not None
    return output.view(np.float32).reshape(work.shape)


@pytest.mark.parametrize("address", ["shm://", "tcp://127.0.0.1:0"])
def test_a_parameter_server_hosts_the_groups_of_its_workers(address: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        assert (values(begin(group)) == 2 * TEN).all()

    with distnet.ParameterServer([TEN], servers=2, address=address) as server:
        on_ranks(server.address, 2, run)


def test_a_result_without_outputs_is_memory_of_its_own(coordinator: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        work = begin(group, "allgather", shape=(5, 2))
        gathered = values(work)
        assert (work.dtype, work.shape, work.rows) == ("float32", (10, 2), [5, 5])
        del work
        assert (gathered == np.concatenate([TEN, TEN]).reshape(10, 2)).all()
        gathered += 1  # nobody else has it
        assert done(begin(group, "barrier", inputs=[], shape=())).output is None

    on_ranks(coordinator, 2, run)


def test_outputs_are_filled_in_place_and_held_until_the_operation_is_done(coordinator: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        outs = [np.zeros(10, np.float32) for _ in range(50)]
        for out in outs:
            begin(group, inputs=[TEN.copy()], outputs=[out])  # nobody keeps the input, or the handle
        done(begin(group, "barrier", inputs=[], shape=(), inline=True))
        assert all((out == 2 * TEN).all() for out in outs)

    on_ranks(coordinator, 2, run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": [TEN[::2]], "shape": (5,)}, "input 0 of type ndarray is no C-contiguous memory"),
        ({"inputs": [7]}, "input 0 of type int is no C-contiguous memory"),
        ({"outputs": [b"1234567890"]}, "output 1 of type bytes is no C-contiguous, writable memory"),
        ({"shape": (11,)}, "11"),
        ({"dtype": "complex64"}, "dtype 'complex64' is unknown"),
        ({"reduction": "median"}, "reduction 'median' is unknown"),
        ({"kind": "allmean"}, "operation 'allmean' is unknown"),
        ({"name": "x" * 257}, "has 257 bytes; it has at most 256"),
        ({"kind": "send", "root": 0}, "cannot send with rank 0"),
    ],
)
def test_what_cannot_be_is_refused_before_the_others_hear_of_it(
    coordinator: str, changes: dict[str, Any], says: str
) -> None:
    def run(group: _native.ProcessGroup) -> None:
        with pytest.raises(distnet.ConfigError) as raised:
            begin(group, **changes)
        assert says in str(raised.value)
        assert values(begin(group))[1] == 1.0

    on_ranks(coordinator, 1, run)


def test_a_mismatch_is_raised_as_such(coordinator: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        with pytest.raises(distnet.CollectiveMismatch, match="float32"):
            done(begin(group, root=0, reduction=["sum", "max"][group.rank]))
        assert values(begin(group))[1] == 2.0

    on_ranks(coordinator, 2, run)


def test_a_callback_is_called_once_the_operation_is_done(coordinator: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        heard = threading.Event()
        work = begin(group, name="a")
        work.add_done_callback(heard.set)
        assert heard.wait(20)
        assert work.done()

    on_ranks(coordinator, 2, run)


def test_a_callback_may_hold_the_last_reference_to_the_group(coordinator: str) -> None:
    heard = threading.Event()
    joined = threading.Barrier(2)

    def let_go() -> None:
        group = _native.ProcessGroup(coordinator, "world", 0, 2, 20.0, "auto")
        work = begin(group)

        def hear(held: _native.Work = work) -> None:
            heard.set()

        work.add_done_callback(hear)
        joined.wait(20)

    thread = threading.Thread(target=let_go)
    thread.start()
    other = _native.ProcessGroup(coordinator, "world", 1, 2, 20.0, "auto")
    joined.wait(20)
    thread.join(20)
    assert values(begin(other))[1] == 2.0
    assert heard.wait(20)
    with pytest.raises(distnet.PeerClosed, match="rank 0"):  # its group was ended, on a thread that could
        values(begin(other))
    other.abandon()
    del other
    deadline = time.monotonic() + 20
    while "runs operations" in names_of_threads():
        assert time.monotonic() < deadline, names_of_threads()


def test_a_callback_may_not_close_the_group_whose_thread_it_runs_on(coordinator: str) -> None:
    def run(group: _native.ProcessGroup) -> None:
        refused: list[BaseException] = []
        heard = threading.Event()

        def close() -> None:
            try:
                group.close()
            except distnet.ConfigError as error:
                refused.append(error)
            heard.set()

        work = begin(group, name="a")
        work.add_done_callback(close)
        assert heard.wait(20)
        assert "close the group elsewhere" in str(refused[0])
        assert values(begin(group))[1] == 2.0

    on_ranks(coordinator, 2, run)


def test_a_wait_that_is_too_short_leaves_the_operation_going(coordinator: str) -> None:
    waited = threading.Event()

    def run(group: _native.ProcessGroup) -> None:
        if group.rank == 1:
            assert waited.wait(20)
        work = begin(group)
        if group.rank == 0:
            with pytest.raises(distnet.DeadlineExceeded, match="it goes on"):
                work.wait(0.01)
            waited.set()
        assert values(work)[1] == 2.0

    on_ranks(coordinator, 2, run)


def test_a_child_of_fork_may_not_use_the_group_and_ends_nothing(coordinator: str) -> None:
    group = _native.ProcessGroup(coordinator, "world", 0, 1, 20.0, "auto")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            begin(group)
        except distnet.ConfigError as error:
            status = 0 if "before a fork" in str(error) else 2
        group.close()
        del group
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert values(begin(group))[1] == 1.0
    group.close()


def test_a_wait_that_lasts_says_for_whom(coordinator: str) -> None:
    texts: list[str] = []
    told = [threading.Event(), threading.Event()]

    class Hears:
        def heard(self, why: str) -> None:
            texts.append(why)
            told[len(texts) - 1].set()

    def late() -> None:
        assert told[0].wait(20)
        other = _native.ProcessGroup(coordinator, "world", 1, 2, 20.0, "auto")
        assert told[1].wait(20)
        begin(other).wait(20.0)
        other.close()

    thread = threading.Thread(target=late)
    thread.start()
    group = _native.ProcessGroup(coordinator, "world", 0, 2, 20.0, "auto", Hears())
    begin(group).wait(20.0)
    group.close()
    thread.join(20)
    assert texts == [
        "rank 0 of group 'world' has waited 10 s for rank 1",
        "rank 0 of group 'world' has waited 10 s for rank 1 in allreduce (sum) of float32 (10,)",
    ]


@pytest.mark.parametrize("met", [False, True])
def test_messages_with_a_rank_that_has_left_are_refused_and_the_others_go_on(coordinator: str, met: bool) -> None:
    left = threading.Event()

    def message(group: _native.ProcessGroup, kind: str, peer: int) -> None:
        array = [TEN.copy()]
        begin(group, kind, inputs=array if kind == "send" else [], outputs=array, root=peer).wait(20.0)

    def run(group: _native.ProcessGroup) -> None:
        begin(group).wait(20.0)
        if met and group.rank < 2:
            message(group, ["send", "receive"][group.rank], 1 - group.rank)
        if group.rank == 0:
            group.close()
            left.set()
            return
        assert left.wait(20)
        for kind in ("receive", "send") if group.rank == 1 else ():
            with pytest.raises(
                distnet.PeerClosed, match=r"rank 0 of (group 'world' has left|the group: the peer closed)"
            ):
                message(group, kind, 0)
        message(group, ["", "send", "receive"][group.rank], 3 - group.rank)

    on_ranks(coordinator, 3, run)


def test_a_callback_that_waits_for_its_own_group_is_refused(coordinator: str) -> None:
    refused: list[BaseException] = []
    begun: list[_native.Work] = []
    heard = threading.Event()

    def run(group: _native.ProcessGroup) -> None:
        def hear() -> None:
            begun.append(begin(group))
            for wait in (lambda: begun[0].wait(20.0), lambda: begin(group, inline=True)):
                try:
                    wait()
                except distnet.ConfigError as error:
                    refused.append(error)
            heard.set()

        if group.rank == 0:
            begin(group, name="a").add_done_callback(hear)
        else:
            begin(group, name="a")
        assert heard.wait(20)
        assert ["wait for it elsewhere" in str(error) for error in refused] == [True, True]
        assert values(begun[0] if group.rank == 0 else begin(group))[1] == 2.0

    on_ranks(coordinator, 2, run)


def test_a_group_whose_callback_does_not_return_says_so_and_ends_with_it(coordinator: str) -> None:
    returns, called = threading.Event(), threading.Event()
    texts: list[str] = []

    class Hears:
        def heard(self, why: str) -> None:
            texts.append(why)
            returns.set()

    def hear() -> None:
        called.set()
        assert returns.wait(60)

    others: list[_native.ProcessGroup] = []
    other = threading.Thread(
        target=lambda: others.append(_native.ProcessGroup(coordinator, "world", 1, 2, 20.0, "auto"))
    )
    other.start()
    group = _native.ProcessGroup(coordinator, "world", 0, 2, 20.0, "auto", Hears())
    other.join(20)
    begin(group).add_done_callback(hear)
    values(begin(others[0]))
    assert called.wait(20)
    del group
    assert texts == ["rank 0 of group 'world' has ended, but a callback of an operation has not; let callbacks return"]
    others[0].abandon()


def test_texts_of_peers_that_are_no_utf_8_are_shown_as_far_as_they_are() -> None:
    listener = socket.socket(socket.AF_UNIX)
    name = f"distnet/odd-{os.getpid()}"
    listener.bind(b"\0" + name.encode())
    listener.listen()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            text = b"no \xff entry"
            payload = struct.pack("<HI", 1, len(text)) + text
            connection.sendall(b"DNET" + struct.pack("<HHI", _native.PROTOCOL_VERSION, 7, len(payload)) + payload)
            connection.recv(4096)

    thread = threading.Thread(target=refuse)
    thread.start()
    with listener, pytest.raises(distnet.ConfigError, match="no \ufffd entry"):
        _native.ProcessGroup("shm://" + name.partition("/")[2], "world", 0, 1, 20.0, "auto")
    thread.join(20)


def test_a_program_that_ends_while_a_callback_goes_on_ends_in_order() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS_IN_A_CALLBACK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
