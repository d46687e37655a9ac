"""Deaths and silence at any moment: nothing is half applied, nobody hangs, every failure has a name."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from worker_processes import (
    Worker,
    WorkerError,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    stop_process,
    wait_until,
)

import distnet
from distnet.stats import ServerStatistics

Array = npt.NDArray[np.float32]
SIZE = 200_003


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def settled_state(server: distnet.ParameterServer) -> tuple[ServerStatistics, Array]:
    """Return counters and the first tensor as they were at one moment: a dead worker's last push may still come."""
    while True:
        stats, cells, after = server.stats(), server.parameters()[0], server.stats()
        if [shard.applied + shard.refused for shard in stats.shards] == [shard.accepted for shard in after.shards]:
            return stats, cells


@over_transports
@over_semantics_and_shards
def test_a_worker_killed_at_any_moment_pushes_all_or_nothing(
    start_workers: Callable[[int], list[Worker]], semantics: str, shards: int, transport: str
) -> None:
    random_moment = random.Random(f"{semantics}{shards}{transport}")
    victims = start_workers(2)
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards, workers=1) as server:
        for number, victim in enumerate(victims, 1):
            victim.connect(server.address, 0, transport)
            victim.begin("kill_during_push", pushes=1_000_000, seconds=random_moment.uniform(0.02, 0.1))
            assert victim.wait_dead() == -signal.SIGALRM

            def is_seen(number: int = number) -> bool:
                return server.stats().workers_died == number

            wait_until(is_seen, "the server sees the death")
            wait_until(lambda: server.stats()["queue_depth"] == 0, "what was accepted is applied")
        stats, cells = settled_state(server)
        # One value a shard, and it is the number of pushes that the shard applied.
        borders = np.flatnonzero(cells[1:] != cells[:-1]) + 1
        values = [int(cells[start]) for start in (0, *borders)]
        expected = [shard["applied"] for shard in stats["shards"]]
        assert values == expected or (len(set(expected)) == 1 and values == expected[:1])
        assert all(shard["accepted"] == shard["applied"] + shard["refused"] for shard in stats["shards"])
        survivor = distnet.connect(server.address, rank=0, transport=transport)
        survivor.push([np.full(SIZE, -1.0, np.float32)])
        survivor.close()
        np.testing.assert_array_equal(server.parameters()[0], cells + 1)


@over_transports
@over_shards
def test_a_killed_server_is_a_closed_peer_well_before_the_deadline(
    workers: list[Worker], transport: str, shards: int
) -> None:
    with serve([np.zeros(SIZE, np.float32)], "async-locked", transport, shards, processes=True) as server:
        worker = workers[0]
        worker.connect(server.address, 0, transport, timeout=30.0)
        worker.begin("push_until_told")
        os.kill(server._shards[-1].pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="PeerClosed") as raised:
            worker.result(within_s=20)
        assert raised.value.seconds < 20
        wait_until(lambda: "SIGKILL" in "; ".join(server.failures()), "the server names how its process died")
        assert not server.running
        with pytest.raises(distnet.DistNetError, match="SIGKILL"):
            server.parameters()


@over_transports
def test_a_stopped_server_is_a_closed_peer(workers: list[Worker], transport: str) -> None:
    with serve([np.zeros(SIZE, np.float32)], "async-apply", transport) as server:
        workers[0].connect(server.address, 0, transport)
        workers[0].begin("push_until_told")
        wait_until(lambda: server.stats()["applied"] > 3, "pushes arrive")
    with pytest.raises(WorkerError, match="PeerClosed"):
        workers[0].result(within_s=20)


@over_transports
def test_a_silent_server_ends_a_call_after_the_deadline_and_never_applies_twice(
    workers: list[Worker], transport: str
) -> None:
    worker = workers[0]
    with serve([np.zeros(3000, np.float32)], "async-apply", transport, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=2.0)
        worker.do("push_full", value=-1.0)
        stop_process(server._shards[0].pid)
        try:
            with pytest.raises(WorkerError, match="DeadlineExceeded") as raised:
                worker.do("push_full", value=-1.0, within_s=30)
            assert 1.0 < raised.value.seconds < 12
        finally:
            os.kill(server._shards[0].pid, signal.SIGCONT)
        worker.begin("push_full", value=-1.0)
        with contextlib.suppress(WorkerError):
            worker.result(within_s=30)
        failure = worker.failure
        assert failure in {"", "PeerClosed", "DeadlineExceeded", "ConnectError"}
        total = server.parameters()[0]
        assert total.min() == total.max()
        assert 1 <= total[0] <= (2 if failure else 3)


def test_a_server_slower_than_the_deadline_but_alive_is_waited_for(
    workers: list[Worker],
) -> None:
    patient, late = workers[:2]
    with serve([np.zeros(3000, np.float32)], "sync", "shm", workers=2) as server:
        patient.connect(server.address, 0, "shm", timeout=1.0)
        late.connect(server.address, 1, "shm")
        patient.begin("push_full", value=-1.0)
        with pytest.raises(TimeoutError):
            patient.result(within_s=2.5)  # a round that takes longer than the deadline, of a server that is alive
        late.do("push_full", value=-1.0)
        assert set(patient.result()) == {1.0}


@over_transports
@pytest.mark.parametrize("call", ["push_full", "connect"])
def test_ctrl_c_ends_a_blocked_call_promptly(workers: list[Worker], transport: str, call: str) -> None:
    worker = workers[0]
    parameters = None if call == "connect" else [np.zeros(3000, np.float32)]
    with serve(parameters, "sync", transport, workers=2) as server:
        if call == "connect":  # rank 1 waits for rank 0 to bring the parameters
            worker.begin("connect", address=server.address, rank=1, transport=transport)
            wait_until(lambda: is_waiting_in_native_code(worker.pid), "the worker blocks")
        else:
            worker.connect(server.address, 0, transport)
            worker.begin("push_full", value=-1.0)
            wait_until(lambda: server.stats()["queue_depth"] == 1, "the push arrives")
        worker.signal(signal.SIGINT)
        pressed = time.monotonic()
        with pytest.raises(WorkerError, match="KeyboardInterrupt"):
            worker.result(within_s=10)
        assert time.monotonic() - pressed < 5


def is_waiting_in_native_code(pid: int) -> bool:
    """Whether the process has a connection and sleeps."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile: the process is still importing, say
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    with open(f"/proc/{pid}/stat") as stat:
        sleeps = stat.read().rpartition(") ")[2][0] == "S"
    return sleeps and any(link.startswith("socket:") for link in links)


@over_transports
def test_a_machine_that_stood_still_is_no_silence(workers: list[Worker], transport: str) -> None:
    """As where a virtual machine is paused: neither end ran, so neither takes the other for dead."""
    worker = workers[0]
    with serve([np.zeros(3000, np.float32)], "async-apply", transport, processes=True) as server:
        worker.connect(server.address, 0, transport, timeout=1.0)
        pids = [worker.pid, server._shards[0].pid]
        for pid in pids:
            stop_process(pid)
        time.sleep(2.5)  # what is tested: more than two timeouts pass
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
        worker.do("push_full", value=-1.0)
        assert server.stats().updates == 1
        assert server.stats().workers_silent == 0


@over_transports
@over_shards
def test_servers_in_processes_end_with_the_with_statement(transport: str, shards: int) -> None:
    with serve([np.zeros(3000, np.float32)], "async-apply", transport, shards, processes=True) as server:
        pids = [shard.pid for shard in server._shards]
        assert all(is_alive(pid) for pid in pids)
        client = distnet.connect(server.address, rank=0, transport=transport)
        client.push([np.full(3000, -1.0, np.float32)])
        client.close()
        assert set(server.parameters()[0]) == {1.0}
    assert not any(is_alive(pid) for pid in pids)


@over_transports
@over_shards
def test_a_stranded_push_of_a_dead_client_does_not_keep_a_server_from_stopping(
    start_workers: Callable[[int], list[Worker]], transport: str, shards: int
) -> None:
    (worker,) = start_workers(1)
    with serve([np.zeros(SIZE, np.float32)], "sync", transport, shards, workers=2) as server:
        worker.connect(server.address, 0, transport)
        worker.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        worker.kill()
        began = time.monotonic()
    assert time.monotonic() - began < 20
