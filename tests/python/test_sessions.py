"""Who is who: a rank that two clients claim, a worker that is replaced, and connections that end by themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from network_proxy import Proxy
from raw_protocol import SAYS_ROUNDS_ENDED, SAYS_WARNING, notice
from worker_processes import (
    Worker,
    WorkerError,
    over_async_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    stop_process,
    wait_until,
)

import distnet

SIZE = 3000
SOON_S = 10.0  # far below the deadlines that these tests set
LONG_S = 90.0
GONE = r"^(PeerClosed|DeadlineExceeded)"


def model() -> list[np.ndarray]:
    return [np.zeros(SIZE, np.float32)]


def push_together(workers: list[Worker], value: float) -> list[set[float]]:
    """Have all push at the same time; return which cells each saw."""
    for worker in workers:
        worker.begin("push_full", value=value)
    return [set(worker.result(within_s=SOON_S)) for worker in workers]


def presences_of(server: distnet.ParameterServer) -> list[list[str]]:
    """Whether each shard's sessions are live or away."""
    return [[session["presence"] for session in shard["sessions"]] for shard in server.stats()["shards"]]


def ranks_of(server: distnet.ParameterServer) -> list[list[int]]:
    """Return the ranks that each shard has sessions of."""
    return [sorted(session["rank"] for session in shard["sessions"]) for shard in server.stats()["shards"]]


@contextlib.contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """Have a worker hang within the block."""
    stop_process(worker.pid)
    try:
        yield
    finally:
        worker.signal(signal.SIGCONT)


@contextlib.contextmanager
def forked_child_of(worker: Worker) -> Iterator[None]:
    """Have a process live within the block that the worker forked, and that holds all that the worker had."""
    child = worker.do("fork_a_child")
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)


# ---- synchronous jobs: the newer session of a rank wins --------------------------------------------------------------
@over_transports
@over_shards
def test_a_newer_session_of_a_rank_takes_over_in_sync(workers: list[Worker], transport: str, shards: int) -> None:
    older, newer, other = workers[:3]
    with serve(model(), "sync", transport, shards, workers=2) as server:
        older.connect(server.address, 0, transport)
        other.connect(server.address, 1, transport)
        assert push_together([older, other], -1.0) == [{1.0}, {1.0}]
        newer.connect(server.address, 0, transport)
        for call in ("push_full", "push_full"):
            with pytest.raises(WorkerError, match="Fenced"):
                older.do(call, value=-100.0, within_s=SOON_S)
        with pytest.raises(WorkerError, match="Fenced"):
            older.do("pull", within_s=SOON_S)
        assert push_together([newer, other], -1.0) == [{2.0}, {2.0}]
        with contextlib.suppress(WorkerError):
            older.do("close", within_s=SOON_S)
        assert older.do("closed")
        assert push_together([newer, other], -1.0) == [{3.0}, {3.0}]
        assert ranks_of(server) == [[0, 1]] * shards


@over_transports
@over_shards
def test_a_session_that_waits_for_its_round_is_fenced_while_it_waits(
    workers: list[Worker], transport: str, shards: int
) -> None:
    older, newer, other = workers[:3]
    with serve(model(), "sync", transport, shards, workers=2) as server:
        older.connect(server.address, 0, transport)
        other.connect(server.address, 1, transport)
        older.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        newer.connect(server.address, 0, transport)
        with pytest.raises(WorkerError, match="Fenced"):
            older.result(within_s=SOON_S)
        for worker in (newer, other):
            worker.begin("push_and_leave", value=-1.0, pushes=3)
        for worker in (newer, other):
            worker.result(within_s=SOON_S)
        wait_until(lambda: server.stats()["queue_depth"] == 0, "everything is settled")
        for shard in server.stats()["shards"]:
            assert shard["accepted"] == shard["applied"] + shard["refused"]


@over_transports
@over_shards
def test_a_worker_that_hangs_is_replaced_at_once_in_sync(workers: list[Worker], transport: str, shards: int) -> None:
    hanging, replacement, other = workers[:3]
    with serve(model(), "sync", transport, shards, workers=2) as server:
        hanging.connect(server.address, 0, transport, timeout=LONG_S)
        other.connect(server.address, 1, transport, timeout=LONG_S)
        assert push_together([hanging, other], -1.0) == [{1.0}, {1.0}]
        with stopped(hanging):
            began = time.monotonic()
            replacement.connect(server.address, 0, transport)
            assert push_together([replacement, other], -1.0) == [{2.0}, {2.0}]
            assert time.monotonic() - began < SOON_S
        with pytest.raises(WorkerError, match="Fenced"):
            hanging.do("push_full", value=-100.0, within_s=SOON_S)
        assert push_together([replacement, other], -1.0) == [{3.0}, {3.0}]


def test_a_rank_that_a_synchronous_job_lacks_is_still_refused(workers: list[Worker]) -> None:
    with (
        serve(model(), "sync", "shm", workers=2) as server,
        pytest.raises(WorkerError, match=r"^ConfigError: .*rank 2"),
    ):
        workers[0].connect(server.address, 2, "shm")


# ---- a worker whose forked child lives -------------------------------------------------------------------------------
@over_transports
@over_shards
def test_a_killed_worker_is_dead_also_while_a_child_that_it_forked_lives(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], transport: str, shards: int
) -> None:
    other, replacement, victim = *workers[:2], *start_workers(1)
    with serve(model(), "sync", transport, shards, workers=2) as server:
        victim.connect(server.address, 0, transport, timeout=LONG_S)
        other.connect(server.address, 1, transport, timeout=LONG_S)
        with forked_child_of(victim):
            other.begin("push_full", value=-1.0)
            victim.kill()
            assert set(other.result(within_s=SOON_S)) == {1.0}
            wait_until(lambda: server.stats()["workers_died"] == 1, "shard 0, too, has seen its death", within_s=SOON_S)
            replacement.connect(server.address, 0, transport)
            for worker in (replacement, other):
                worker.begin("push_and_leave", value=-1.0, pushes=2)
            for worker in (replacement, other):
                worker.result(within_s=SOON_S)


@over_transports
@over_async_semantics_and_shards
def test_a_dead_worker_is_replaced_without_a_warning(
    workers: list[Worker],
    start_workers: Callable[[int], list[Worker]],
    semantics: str,
    shards: int,
    transport: str,
) -> None:
    replacement, victim = workers[0], *start_workers(1)
    with serve(model(), semantics, transport, shards) as server:
        victim.connect(server.address, 0, transport, timeout=LONG_S)
        victim.do("push_full", value=-1.0)
        with forked_child_of(victim):
            victim.kill()
            wait_until(lambda: server.stats()["workers_died"] == 1, "the server sees the death", within_s=SOON_S)
            replacement.connect(server.address, 0, transport)
            replacement.do("push_full", value=-1.0)
            assert replacement.do("warned") == []
            replacement.do("close")
        assert set(server.parameters()[0]) == {2.0}


# ---- asynchronous jobs: a rank is a label ----------------------------------------------------------------------------
@over_transports
@over_async_semantics_and_shards
def test_two_live_workers_of_one_rank_both_go_on_and_are_both_warned_once(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    first, second = pair = workers[:2]
    with serve(model(), semantics, transport, shards) as server:
        for worker in pair:
            worker.connect(server.address, 0, transport)
        pushes = 0

        def are_warned() -> bool:
            nonlocal pushes
            pushes += 1
            for worker in pair:
                worker.do("push_full", value=-1.0)
            return all(worker.do("warned") for worker in pair)

        wait_until(are_warned, "both are warned", within_s=SOON_S)
        for _ in range(3):
            assert are_warned()
        for worker in pair:
            (warning,) = worker.do("warned")
            assert "rank 0" in warning
            worker.do("close")
        assert set(server.parameters()[0]) == {2.0 * pushes}
        assert (first.failure, second.failure) == ("", "")


@over_transports
@over_async_semantics_and_shards
def test_a_worker_that_was_started_again_replaces_its_rank(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    first, again = workers[:2]
    with serve(model(), semantics, transport, shards) as server:
        first.connect(server.address, 0, transport, start=0)
        first.do("push_full", value=-1.0)
        again.connect(server.address, 0, transport, start=1)
        with pytest.raises(WorkerError, match="Fenced"):
            first.do("push_full", value=-100.0, within_s=SOON_S)
        again.do("push_full", value=-1.0)
        assert again.do("warned") == []
        again.do("close")
        assert set(server.parameters()[0]) == {2.0}


@over_transports
def test_a_worker_that_was_silent_for_two_heartbeats_is_replaced(workers: list[Worker], transport: str) -> None:
    silent, replacement = workers[:2]
    with serve(model(), "async-apply", transport) as server:
        silent.connect(server.address, 0, transport, timeout=12.0)  # a heartbeat every 3 s
        silent.do("push_full", value=-1.0)
        with stopped(silent):
            silent.begin("nothing")
            with pytest.raises(TimeoutError):
                silent.result(within_s=7.0)
            replacement.connect(server.address, 0, transport)
            replacement.do("push_full", value=-1.0)
            assert replacement.do("warned") == []
        silent.result()
        with pytest.raises(WorkerError, match="Fenced"):
            silent.do("push_full", value=-100.0, within_s=SOON_S)
        replacement.do("close")
        assert set(server.parameters()[0]) == {2.0}


@over_transports
@over_async_semantics_and_shards
def test_a_rank_beyond_the_servers_workers_is_warned_once_and_goes_on(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    with serve(model(), semantics, transport, shards, workers=2) as server:
        workers[0].connect(server.address, 1, transport)
        assert workers[0].do("warned") == []
        workers[1].connect(server.address, 2, transport)
        for _ in range(3):
            workers[1].do("push_full", value=-1.0)
        (warning,) = workers[1].do("warned")
        assert "rank 2" in warning
        assert "workers" in warning
        workers[1].do("close")
        assert set(server.parameters()[0]) == {3.0}


def test_a_warning_names_the_line_that_called_distnet() -> None:
    with serve(model(), "async-apply", "shm") as server:
        with pytest.warns(distnet.DistNetWarning, match="rank 7") as caught:
            client = distnet.connect(server.address, rank=7)
        assert [warning.filename for warning in caught] == [__file__]
        client.close()


# ---- one of a session's two connections ------------------------------------------------------------------------------
LOSSES = {
    "ends": lambda link: link.cut(),
    "ends on the server's side": lambda link: link.end_on_the_side_of("server"),
    "ends on the client's side": lambda link: link.end_on_the_side_of("client"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("role", ["control", "data"])
@over_shards
def test_the_end_of_either_connection_ends_the_session_on_both_sides(
    workers: list[Worker], role: str, loss: str, shards: int
) -> None:
    victim, other, replacement = workers[:3]
    with serve(model(), "sync", "tcp", shards, workers=2) as server, Proxy(server.address) as proxy:
        victim.connect(proxy.address, 0, "tcp", timeout=LONG_S)
        other.connect(server.address, 1, "tcp", timeout=LONG_S)
        assert push_together([victim, other], -1.0) == [{1.0}, {1.0}]
        other.begin("push_full", value=-1.0)
        LOSSES[loss](proxy.links(role, shards)[-1])
        with pytest.raises(WorkerError, match=GONE):  # noqa: PT012
            victim.do("push_full", value=-1.0, within_s=SOON_S)  # the round may close before anybody sees the end
            victim.do("push_full", value=-1.0, within_s=SOON_S)
        other.result(within_s=SOON_S)
        wait_until(lambda: server.stats()["workers_died"] == 1, "the session ends", within_s=SOON_S)
        wait_until(lambda: ranks_of(server) == [[1]] * shards, "it ends at every shard", within_s=SOON_S)
        replacement.connect(server.address, 0, "tcp")
        for worker in (replacement, other):
            worker.begin("push_and_leave", value=-1.0, pushes=2)
        for worker in (replacement, other):
            worker.result(within_s=SOON_S)


@pytest.mark.parametrize("role", ["control", "data"])
@over_shards
def test_the_end_of_an_idle_workers_connection_frees_the_others(workers: list[Worker], role: str, shards: int) -> None:
    victim, other = workers[:2]
    with serve(model(), "sync", "tcp", shards, workers=2) as server, Proxy(server.address) as proxy:
        victim.connect(proxy.address, 0, "tcp", timeout=LONG_S)
        other.connect(server.address, 1, "tcp", timeout=LONG_S)
        assert push_together([victim, other], -1.0) == [{1.0}, {1.0}]
        other.begin("push_full", value=-1.0)
        proxy.links(role, shards)[-1].cut()
        assert set(other.result(within_s=SOON_S)) == {2.0}


@pytest.mark.parametrize("role", ["control", "data"])
@over_shards
def test_a_connection_that_falls_silent_ends_the_session_after_the_deadline(
    workers: list[Worker], role: str, shards: int
) -> None:
    victim, other = workers[:2]
    with serve(model(), "sync", "tcp", shards, workers=2) as server, Proxy(server.address) as proxy:
        victim.connect(proxy.address, 0, "tcp", timeout=2.0)
        other.connect(server.address, 1, "tcp", timeout=LONG_S)
        assert push_together([victim, other], -1.0) == [{1.0}, {1.0}]
        other.begin("push_until_told")
        proxy.links(role, shards)[-1].fall_silent()
        failure = "RoundAborted"  # another shard may have given the session up first
        while failure == "RoundAborted":
            with pytest.raises(WorkerError, match=f"^RoundAborted|{GONE}") as raised:
                victim.do("push_until_told", within_s=SOON_S)  # heartbeats or replies are missing within the deadline
            failure = str(raised.value).partition(":")[0]
        other.begin_stop()
        other.stopped()
        wait_until(lambda: ranks_of(server) == [[]] * shards, "it ends at every shard", within_s=SOON_S)
        assert server.stats()["workers_died"] + server.stats()["workers_silent"] == 1


@over_shards
def test_a_reply_that_is_lost_on_the_way_does_not_keep_a_client_for_ever(workers: list[Worker], shards: int) -> None:
    victim, other = workers[:2]
    with serve(model(), "sync", "tcp", shards, workers=2) as server, Proxy(server.address) as proxy:
        victim.connect(proxy.address, 0, "tcp", timeout=2.0)
        other.connect(server.address, 1, "tcp", timeout=LONG_S)
        victim.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        for link in proxy.links("data", shards):
            link.fall_silent()
        assert set(other.do("push_full", value=-1.0, within_s=SOON_S)) == {1.0}
        with pytest.raises(WorkerError, match=GONE):
            victim.result(within_s=SOON_S)
        other.do("push_full", value=-1.0, within_s=SOON_S)


# ---- away ------------------------------------------------------------------------------------------------------------
@over_shards
def test_a_round_waits_for_a_tcp_session_that_is_away(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], shards: int
) -> None:
    other, victim = workers[0], *start_workers(1)
    with serve(model(), "sync", "tcp", shards, workers=2, reconnect_timeout=2.0) as server:
        victim.connect(server.address, 0, "tcp")
        other.connect(server.address, 1, "tcp")
        other.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        killed = time.monotonic()
        victim.kill()
        assert set(other.result(within_s=2.0 + SOON_S)) == {1.0}
        assert time.monotonic() - killed > 1.9
        # Another shard may have told of the death, and so have ended the wait, before shard 0 has seen it itself.
        wait_until(lambda: server.stats()["workers_died"] == 1, "shard 0 has counted the death")


def test_a_worker_on_shared_memory_is_never_away(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]]
) -> None:
    other, victim = workers[0], *start_workers(1)
    with serve(model(), "sync", "shm", workers=2, reconnect_timeout=LONG_S) as server:
        victim.connect(server.address, 0, "shm", timeout=LONG_S)
        other.connect(server.address, 1, "shm")
        other.begin("push_full", value=-1.0)
        victim.kill()
        assert set(other.result(within_s=SOON_S)) == {1.0}


def test_a_session_is_away_for_no_longer_than_its_deadline(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]]
) -> None:
    other, victim = workers[0], *start_workers(1)
    with serve(model(), "sync", "tcp", workers=2, reconnect_timeout=LONG_S) as server:
        victim.connect(server.address, 0, "tcp", timeout=2.0)
        other.connect(server.address, 1, "tcp")
        other.begin("push_full", value=-1.0)
        victim.kill()
        assert set(other.result(within_s=2.0 + SOON_S)) == {1.0}


@over_shards
def test_a_session_that_is_away_is_replaced_at_once(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], shards: int
) -> None:
    other, replacement, victim = *workers[:2], *start_workers(1)
    with serve(model(), "sync", "tcp", shards, workers=2, reconnect_timeout=LONG_S) as server:
        victim.connect(server.address, 0, "tcp", timeout=LONG_S)
        other.connect(server.address, 1, "tcp")
        assert push_together([victim, other], -1.0) == [{1.0}, {1.0}]
        victim.kill()
        replacement.connect(server.address, 0, "tcp")
        assert push_together([replacement, other], -1.0) == [{2.0}, {2.0}]


@over_async_semantics_and_shards
def test_a_session_that_is_away_warns_nobody_of_its_rank(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], semantics: str, shards: int
) -> None:
    replacement, victim = workers[0], *start_workers(1)
    with serve(model(), semantics, "tcp", shards, reconnect_timeout=LONG_S) as server:
        victim.connect(server.address, 0, "tcp", timeout=LONG_S)
        victim.do("push_full", value=-1.0)
        victim.kill()
        wait_until(lambda: presences_of(server) == [["away"]] * shards, "its session is away", within_s=SOON_S)
        replacement.connect(server.address, 0, "tcp")
        replacement.do("push_full", value=-1.0)
        assert replacement.do("warned") == []
        replacement.do("close")
        assert set(server.parameters()[0]) == {2.0}


@over_shards
def test_what_all_clients_are_told_may_come_before_a_clients_welcome(shards: int) -> None:
    said = notice(SAYS_WARNING, "learning rates differ") + notice(SAYS_ROUNDS_ENDED, "so it is")
    with (
        serve(model(), "sync", "tcp", shards, workers=1) as server,
        Proxy(server.address, said_first=said) as proxy,
    ):
        with pytest.warns(distnet.DistNetWarning, match="learning rates differ"):
            client = distnet.connect(proxy.address, rank=0, transport="tcp")
        with client:
            assert client.push_pull([np.ones(SIZE, np.float32)])[0].shape == (SIZE,)
