"""Calls that are refused, dropped or broken off: the client goes on afterwards, or says that it is closed."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_proxy import Proxy
from worker_processes import (
    Worker,
    WorkerError,
    changed,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    stop_process,
    wait_until,
)

import distnet

SIZE = 3000
LARGE = 4_000_000  # floats: more than the buffers of a TCP connection hold
SOON_S = 10.0

Call = Callable[[distnet.Client], Any]


def gradient(value: float = -1.0, size: int = SIZE) -> list[np.ndarray]:
    return [np.full(size, value, np.float32)]


CALLS: dict[str, Call] = {
    "pull": lambda client: client.pull(),
    "pull(out=)": lambda client: client.pull(out=[np.empty(SIZE, np.float32)]),
    "pull(alias=True)": lambda client: client.pull(alias=True),
    "push": lambda client: client.push(gradient()),
    "push_pull": lambda client: client.push_pull(gradient()),
    "push_pull(alias=True)": lambda client: client.push_pull(gradient(), alias=True),
}


@contextlib.contextmanager
def served(semantics: str, shards: int, transport: str) -> Iterator[tuple[distnet.ParameterServer, distnet.Client]]:
    """A server, and a client of rank 0 that must work to the end of the test and leave in order."""
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        yield server, client
        before = server.stats()["accepted"]
        client.push(gradient(0.0))
        client.close()
        assert client.closed
        stats = server.stats()
        assert stats["accepted"] == before + 1
        assert all(shard["accepted"] == shard["applied"] + shard["refused"] for shard in stats["shards"])
        assert stats["workers_done"] == 1


# ---- handles ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", CALLS)
@over_transports
@over_semantics_and_shards
def test_a_call_that_waits_is_refused_while_a_handle_is_out_before_anything_is_sent(
    semantics: str, shards: int, transport: str, call: str
) -> None:
    with served(semantics, shards, transport) as (server, client):
        handle = client.begin_push_pull(gradient())
        for _ in range(3):
            with pytest.raises(distnet.ConfigError, match="handle"):
                CALLS[call](client)
        handle.wait()
        assert client.accepted == 1
        assert set(server.parameters()[0]) == {1.0}
        CALLS[call](client)


@over_transports
@over_semantics_and_shards
def test_a_dropped_handle_gives_up_its_reply_and_not_its_push(semantics: str, shards: int, transport: str) -> None:
    with served(semantics, shards, transport) as (server, client):
        for _ in range(5):  # more than may be on their way
            client.begin_push_pull(gradient())
        client.push_pull(gradient())
        client.begin_push_pull(gradient())
        (pulled,) = client.pull()
        assert client.accepted == 7
        assert set(server.parameters()[0]) == {7.0}
        assert set(pulled) <= {6.0, 7.0}


@over_transports
@over_semantics_and_shards
def test_another_thread_may_drop_a_handle(semantics: str, shards: int, transport: str) -> None:
    with served(semantics, shards, transport) as (server, client):
        handles = [client.begin_push_pull(gradient())]
        dropping = threading.Thread(target=handles.clear)
        dropping.start()
        dropping.join()
        client.push_pull(gradient())
        assert set(server.parameters()[0]) == {2.0}


def test_a_handle_in_a_cycle_is_dropped_when_it_is_collected() -> None:
    with served("async-apply", 1, "shm") as (server, client):
        cycle: list[Any] = [client.begin_push_pull(gradient())]
        cycle.append(cycle)
        del cycle
        gc.collect()
        client.push_pull(gradient())
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@over_semantics_and_shards
def test_a_handle_is_waited_for_once(semantics: str, shards: int, transport: str) -> None:
    with served(semantics, shards, transport) as (_, client):
        handle = client.begin_push_pull(gradient())
        handle.wait()
        for _ in range(2):
            with pytest.raises(distnet.ConfigError, match="already"):
                handle.wait()


@over_transports
@pytest.mark.parametrize("shards", [1, 2])
def test_handles_may_be_waited_for_in_any_order(shards: int, transport: str) -> None:
    with served("async-apply", shards, transport) as (server, client):
        first, second = (client.begin_push_pull(gradient()) for _ in range(2))
        assert set(second.wait()[0].tolist()) == {2.0}
        assert set(first.wait()[0].tolist()) == {1.0}, "the older reply was kept as it came"
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@pytest.mark.parametrize("semantics", ["async-apply", "async-lockfree"])
def test_a_dropped_handle_is_passed_over_by_the_next(semantics: str, transport: str) -> None:
    with served(semantics, 1, transport) as (server, client):
        handles = [client.begin_push_pull(gradient()) for _ in range(2)]
        del handles[0]
        handles[0].wait()
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@over_semantics_and_shards
def test_wrong_arrays_for_a_reply_leave_the_handle_as_it_was(semantics: str, shards: int, transport: str) -> None:
    with served(semantics, shards, transport) as (_, client):
        handle = client.begin_push_pull(gradient())
        with pytest.raises(distnet.ManifestMismatch):
            handle.wait(out=[np.empty(SIZE + 1, np.float32)])
        out = [np.full(SIZE, -9.0, np.float32)]
        handle.wait(out=out)
        assert set(out[0]) <= {0.0, 1.0}


@over_transports
@pytest.mark.parametrize("semantics", ["async-apply", "async-locked", "async-lockfree"])
def test_one_push_more_than_may_be_on_their_way_is_refused_and_not_sent(semantics: str, transport: str) -> None:
    with served(semantics, 1, transport) as (server, client):
        handles = [client.begin_push_pull(gradient()) for _ in range(2)]
        with pytest.raises(distnet.ConfigError):
            client.begin_push_pull(gradient())
        for handle in handles:
            handle.wait()
        client.begin_push_pull(gradient()).wait()
        assert set(server.parameters()[0]) == {3.0}


@over_transports
@over_semantics_and_shards
def test_close_settles_what_handles_are_out_for(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        handle = client.begin_push_pull(gradient())
        client.close()
        assert client.closed
        with pytest.raises(distnet.DistNetError):
            handle.wait()
        assert set(server.parameters()[0]) == {1.0}
        assert server.stats()["workers_done"] == 1


# ---- gradients that are refused --------------------------------------------------------------------------------------
@over_transports
@pytest.mark.parametrize("semantics", ["async-apply", "async-locked", "async-lockfree"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_nan_beside_a_push_on_its_way_takes_no_place(semantics: str, shards: int, transport: str) -> None:
    with served(semantics, shards, transport) as (server, client):
        handle = client.begin_push_pull(gradient())
        for _ in range(3):
            with pytest.raises(distnet.NonFiniteGradient):
                client.begin_push_pull(gradient(np.nan))
        another = client.begin_push_pull(gradient())
        handle.wait()
        another.wait()
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@over_shards
@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_worker_that_missed_rounds_goes_on(workers: list[Worker], transport: str, shards: int, overlap: bool) -> None:
    late, other = workers[:2]
    semantics = changed("sync", round_timeout=0.5)
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards, workers=2) as server:
        late.connect(server.address, 0, transport)
        other.connect(server.address, 1, transport)
        other.begin("push_until_told", value=-1.0)
        if overlap:
            late.do("begin_push", value=-1.0)
        else:
            late.do("push_full", value=-1.0)
        begun = server.stats()["round"]
        wait_until(lambda: server.stats()["round"] > begun + 3, "rounds go on without it", within_s=SOON_S)
        aborted, good = 0, 0
        while good < 5:
            with contextlib.suppress(WorkerError):
                if overlap:
                    late.do("begin_push", value=-1.0)
                    late.do("wait_for_push")
                else:
                    late.do("push_full", value=-1.0)
            assert late.failure in {"", "RoundAborted"}
            good += not late.failure
            aborted += bool(late.failure)
            assert aborted < 10, "it never comes back into the rounds"
        late.do("close")
        other.begin_stop()
        other.stopped()
        wait_until(lambda: server.stats()["queue_depth"] == 0, "everything is settled")
        assert server.stats()["workers_done"] == 2


# ---- calls that are broken off ---------------------------------------------------------------------------------------
@contextlib.contextmanager
def hanging(server: distnet.ParameterServer) -> Iterator[None]:
    """Have the processes of all shards hang within the block."""
    pids = [shard.pid for shard in server._shards]
    for pid in pids:
        stop_process(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def press_ctrl_c(worker: Worker) -> None:
    """Break off what a worker waits in."""
    worker.signal(signal.SIGINT)
    with pytest.raises(WorkerError, match="KeyboardInterrupt"):
        worker.result(within_s=SOON_S)


def rank_0_is_free(server: distnet.ParameterServer, replacement: Worker, other: Worker, transport: str) -> None:
    """Check that a round of two goes through without anybody who is gone."""
    other.connect(server.address, 1, transport)
    replacement.connect(server.address, 0, transport)
    for worker in (replacement, other):
        worker.begin("push_and_leave", value=-1.0, pushes=3)
    for worker in (replacement, other):
        worker.result(within_s=SOON_S)


@over_transports
@over_shards
@pytest.mark.parametrize("size", [SIZE, LARGE], ids=["small", "large"])
def test_close_closes_after_ctrl_c_broke_a_push_off(
    workers: list[Worker], tmp_path: Path, transport: str, shards: int, size: int
) -> None:
    worker, replacement, other = workers[:3]
    with serve([np.zeros(size, np.float32)], "sync", transport, shards, workers=2, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=60.0)
        with hanging(server):
            worker.wait_until_it_blocks_in("push_full", tmp_path / "mark", value=-1.0)
            press_ctrl_c(worker)
        with contextlib.suppress(WorkerError):
            worker.do("close", within_s=SOON_S)
        assert worker.do("closed")
        wait_until(lambda: server.stats()["sessions"] == [], "the session ends", within_s=SOON_S)
        rank_0_is_free(server, replacement, other, transport)


@over_transports
@over_shards
def test_close_closes_after_its_deadline_where_the_server_hangs(
    workers: list[Worker], tmp_path: Path, transport: str, shards: int
) -> None:
    worker, replacement, other = workers[:3]
    with serve([np.zeros(LARGE, np.float32)], "sync", transport, shards, workers=2, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=2.0)
        with hanging(server):
            with pytest.raises(WorkerError, match="DeadlineExceeded"):
                worker.do("push_full", value=-1.0, within_s=SOON_S)
            with contextlib.suppress(WorkerError):
                worker.do("close", within_s=SOON_S)
            assert worker.failure in {"", "DeadlineExceeded", "PeerClosed"}
            assert worker.do("closed")
            worker.do("close", within_s=SOON_S)
        wait_until(lambda: server.stats()["sessions"] == [], "the session ends", within_s=SOON_S)
        rank_0_is_free(server, replacement, other, transport)


@over_transports
@over_shards
def test_ctrl_c_breaks_close_off_and_the_client_is_closed(
    workers: list[Worker], tmp_path: Path, transport: str, shards: int
) -> None:
    worker, replacement, other = workers[:3]
    with serve([np.zeros(SIZE, np.float32)], "sync", transport, shards, workers=2, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=60.0)
        with hanging(server):
            worker.wait_until_it_blocks_in("close", tmp_path / "mark")
            press_ctrl_c(worker)
            assert worker.do("closed")
        wait_until(lambda: server.stats()["sessions"] == [], "the session ends", within_s=SOON_S)
        rank_0_is_free(server, replacement, other, transport)


@over_transports
@over_shards
def test_ctrl_c_in_a_round_leaves_a_client_that_goes_on_or_is_closed(
    workers: list[Worker], transport: str, shards: int
) -> None:
    worker, other = workers[:2]
    with serve([np.zeros(SIZE, np.float32)], "sync", transport, shards, workers=2) as server:
        worker.connect(server.address, 0, transport)
        worker.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        press_ctrl_c(worker)
        other.connect(server.address, 1, transport)
        other.begin("push_and_leave", value=-1.0, pushes=3)
        with contextlib.suppress(WorkerError):
            worker.do("push_and_leave", value=-1.0, pushes=2, within_s=SOON_S)
        if worker.failure:
            assert worker.do("closed"), f"neither goes on ({worker.failure}) nor is closed"
        other.result(within_s=SOON_S)
        for shard in server.stats()["shards"]:
            assert shard["accepted"] == shard["applied"] + shard["refused"]


@over_transports
def test_a_call_broken_off_between_two_shards_writes_no_more_to_its_callers_array(
    workers: list[Worker], transport: str
) -> None:
    worker = workers[0]
    with serve([np.zeros(SIZE, np.float32)], "async-apply", transport, shards=2, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=60.0)
        hung = server._shards[1].pid
        stop_process(hung)
        try:
            came = worker.do("break_off_halfway", value=-1.0, within_s=SOON_S)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert 0 < came < SIZE
        assert worker.do("push_once_more", value=-1.0, within_s=SOON_S) == [2.0]
        assert set(server.parameters()[0]) == {2.0}


@pytest.mark.parametrize("semantics", ["async-apply", "async-lockfree", "sync"])
def test_a_call_broken_off_within_a_reply_writes_no_more_to_its_callers_array(
    workers: list[Worker], semantics: str
) -> None:
    worker, size = workers[0], 1_000_000
    with (
        serve([np.zeros(size, np.float32)], semantics, "tcp") as server,
        Proxy(server.address, bytes_per_s=4e6) as proxy,
    ):
        worker.connect(proxy.address, 0, "tcp", timeout=60.0)
        assert 0 < worker.do("break_off_halfway", value=-1.0) < size
        seen = worker.do("push_once_more", value=-1.0)
        assert set(seen) <= {1.0, 2.0} if semantics == "async-lockfree" else seen == [2.0]
        worker.do("close")
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@pytest.mark.parametrize("semantics", ["async-apply", "async-lockfree"])
def test_after_a_deadline_a_client_goes_on_or_is_closed(workers: list[Worker], semantics: str, transport: str) -> None:
    worker = workers[0]
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=2.0)
        with hanging(server), pytest.raises(WorkerError, match="DeadlineExceeded"):
            worker.do("push_full", value=-1.0, within_s=SOON_S)
        with contextlib.suppress(WorkerError):
            worker.do("push_full", value=-1.0, within_s=SOON_S)
        failed = worker.failure
        assert not failed or worker.do("closed")
        with contextlib.suppress(WorkerError):
            worker.do("close", within_s=SOON_S)
        wait_until(lambda: server.stats()["queue_depth"] == 0, "everything is settled")
        (cell,) = set(server.parameters()[0])
        assert cell in ({0.0, 1.0} if failed else {1.0, 2.0})


@over_transports
@over_shards
@pytest.mark.parametrize("call", ["push_full", "close"])
def test_a_client_of_a_killed_server_is_closed(workers: list[Worker], transport: str, shards: int, call: str) -> None:
    worker = workers[0]
    with serve([np.zeros(SIZE, np.float32)], "async-apply", transport, shards, processes=True) as server:
        worker.connect(server.address, 0, transport)
        worker.do("push_full", value=-1.0)
        for shard in server._shards:
            os.kill(shard.pid, signal.SIGKILL)
        arguments = {"value": -1.0} if call == "push_full" else {}
        with contextlib.suppress(WorkerError):
            worker.do(call, within_s=SOON_S, **arguments)
        assert worker.failure in ({"PeerClosed"} if call == "push_full" else {"", "PeerClosed"})
        with contextlib.suppress(WorkerError):
            worker.do("close", within_s=SOON_S)
        assert worker.do("closed")
        worker.do("close")


# ---- a script's own view ---------------------------------------------------------------------------------------------
def test_a_with_statement_that_ctrl_c_ends_frees_the_rank() -> None:
    def interrupted(client: distnet.Client) -> None:
        with client:
            client.push(gradient())
            raise KeyboardInterrupt

    with serve([np.zeros(SIZE, np.float32)], "sync", "shm") as server:
        client = distnet.connect(server.address, rank=0)
        with pytest.raises(KeyboardInterrupt):
            interrupted(client)
        assert client.closed
        with distnet.connect(server.address, rank=0) as again:
            again.push(gradient())
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
def test_an_interrupt_between_sending_and_waiting_leaves_the_client_usable(semantics: str, transport: str) -> None:
    with served(semantics, 1, transport) as (server, client):
        for count in range(1, 4):
            client._native.begin("push_pull", gradient(), True, True)  # Ctrl-C comes as it returns
            client._native.begin("push_pull", gradient(), False, True)
            client.push(gradient())
            assert set(server.parameters()[0]) == {3.0 * count}


@over_transports
def test_a_reply_that_waits_for_its_handle_is_no_broken_connection(transport: str) -> None:
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", transport) as server,
        distnet.connect(server.address, rank=0, transport=transport, timeout=1.0) as client,
    ):
        handle = client.begin_push_pull(gradient())
        until = time.monotonic() + 2.5
        while time.monotonic() < until:  # questions look whether the server is alive
            client.stats()
        assert set(handle.wait()[0]) == {1.0}
        assert not client.closed
