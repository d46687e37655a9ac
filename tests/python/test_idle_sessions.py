"""A session that asks for nothing costs its server one thread and 64 KiB, and is served at once when it goes on."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from raw_protocol import WELCOME, endpoint_of, hello, message, raw_worker
from worker_processes import WAIT_S, Worker, over_transports, serve, wait_until

import distnet

SESSIONS = 200
SIZE = 1000
SLOTS_BYTES = 3 * 4096  # of a worker of this model: two gradients and a replica, in whole pages
MOST_IDLE_BYTES = 64 << 10
ROLES = ["worker", "observer"]
LONG_S = 60.0


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def resident_bytes(pid: int) -> int:
    """Private and shared memory of a process, as the system counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


@contextlib.contextmanager
def serving_process(transport: str) -> Iterator[tuple[distnet.ParameterServer, int]]:
    """Yield a server and the process id of its one shard."""
    with serve([np.zeros(SIZE, np.float32)], "async-lockfree", transport, processes=True, workers=SESSIONS) as server:
        yield server, server._shards[0].pid


def until_idle(pid: int, threads: int) -> None:
    wait_until(lambda: threads_of(pid) <= threads, f"{threads} threads or fewer")


@pytest.mark.parametrize("role", ROLES)
@over_transports
def test_an_idle_session_costs_one_thread_and_64_kib(transport: str, role: str) -> None:
    with serving_process(transport) as (server, pid), contextlib.ExitStack() as stack:

        def connect(rank: int) -> distnet.Client:
            client = distnet.connect(server.address, rank=rank if role == "worker" else None, transport=transport)
            return stack.enter_context(contextlib.closing(client))

        first = connect(SESSIONS - 1)
        first.pull()  # what is there once for all is there now
        until_idle(pid, threads_of(pid) - 1)
        threads, resident = threads_of(pid), resident_bytes(pid)
        clients = [connect(rank) for rank in range(SESSIONS - 1)]
        until_idle(pid, threads + len(clients))
        fresh = (resident_bytes(pid) - resident) / len(clients)
        for client in clients:
            client.pull()
            if role == "worker":
                client.push_pull([np.zeros(SIZE, np.float32)])
        until_idle(pid, threads + len(clients))
        used = (resident_bytes(pid) - resident) / len(clients)
        slots = SLOTS_BYTES if role == "worker" else 0
        assert fresh - slots <= MOST_IDLE_BYTES, f"{fresh / 1024:.0f} KiB"
        assert used - slots <= MOST_IDLE_BYTES, f"{used / 1024:.0f} KiB"


@over_transports
def test_an_idle_session_goes_on_at_once(transport: str) -> None:
    with serving_process(transport) as (server, pid):
        client = distnet.connect(server.address, rank=0, transport=transport, timeout=LONG_S)
        client.pull()
        until_idle(pid, threads_of(pid) - 1)
        idle = threads_of(pid)
        for _ in range(3):
            before = time.monotonic()
            client.push([np.ones(SIZE, np.float32)])
            assert time.monotonic() - before < 0.5
            assert threads_of(pid) > idle
            until_idle(pid, idle)
        client.close()
        assert set(server.parameters()[0]) == {-3.0}


@over_transports
def test_the_end_of_an_idle_worker_is_noticed_at_once(
    transport: str, start_workers: Callable[[int], list[Worker]]
) -> None:
    with serving_process(transport) as (server, pid):
        (worker,) = start_workers(1)
        worker.connect(server.address, 0, transport, timeout=LONG_S)
        worker.do("pull")
        threads = threads_of(pid)
        until_idle(pid, threads - 1)
        worker.kill()
        wait_until(lambda: server.stats()["workers_died"] == 1, "its death is counted", within_s=WAIT_S / 4)


def test_the_end_of_an_idle_data_connection_ends_its_session() -> None:
    with serve([np.zeros(SIZE, np.float32)], "async-apply", "tcp") as server, raw_worker(server) as worker:
        worker.data.close()
        wait_until(lambda: server.stats()["workers_died"] == 1, "its death is counted", within_s=WAIT_S / 4)


def test_a_push_cut_off_in_an_idle_session_is_counted() -> None:
    """Whichever is noticed first: the bytes that arrived, the end of their connection, or that of the other."""
    with serve([np.zeros(SIZE, np.float32)], "async-apply", "tcp") as server:
        for count in range(1, 21):
            with raw_worker(server) as worker:
                worker.send_push(np.ones(SIZE + 8, np.float32), sent_bytes=100)
                worker.control.close()
                worker.data.close()

            def is_counted(count: int = count) -> bool:
                return server.stats().cut_off == count

            wait_until(is_counted, "the push is counted", WAIT_S / 4)


@over_transports
@pytest.mark.parametrize(("asked_s", "taken_s"), [(0.25, 1.0), (7.5, 7.5), (1e8, 3600.0)])
def test_a_deadline_is_taken_between_a_second_and_an_hour(transport: str, asked_s: float, taken_s: float) -> None:
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", transport) as server,
        distnet.connect(server.address, rank=0, transport=transport, timeout=asked_s) as client,
    ):
        assert client.timeout == taken_s


@pytest.mark.parametrize(("asked_s", "taken_s"), [(1e-9, 1.0), (1e9, 3600.0), (float("inf"), 3600.0)])
def test_a_welcome_says_which_timeout_counts(asked_s: float, taken_s: float) -> None:
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", "tcp") as server,
        socket.create_connection(endpoint_of(server.address), timeout=WAIT_S) as control,
    ):
        control.sendall(hello(timeout_s=asked_s))
        kind, welcome = message(control)
        assert kind == WELCOME
        session_secret_and_grant = 16 + 3 * 4 + 3 * 8
        assert struct.unpack_from("<d", welcome, session_secret_and_grant) == (taken_s,)
