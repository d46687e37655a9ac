"""A peer that is idle, or stalls anywhere in its conversation, costs the server no processor time."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from raw_protocol import RawSharedWorker, RawWorker, raw_shared_worker, raw_worker
from worker_processes import over_transports, serve, wait_until

import distnet

FLOATS = 2_000_000  # more than the buffers of a socket hold
PIECE_BYTES = 64 << 10
WATCHED_S = 1.5
MOST_S = 0.3  # a spinning thread takes all of the time that is watched


def processor_seconds(server: distnet.ParameterServer) -> float:
    """Return what the processes of a server's shards have taken so far."""
    total = 0.0
    for shard in server._shards:
        fields = Path(f"/proc/{shard.pid}/stat").read_text().rpartition(") ")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def awake_threads(server: distnet.ParameterServer) -> set[str]:
    """Return the threads of a server's shards that run, or would where a core were free."""
    awake = set()
    for shard in server._shards:
        for stat in Path(f"/proc/{shard.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                if stat.read_text().rpartition(") ")[2].split()[0] == "R":
                    awake.add(stat.parent.name)
    return awake


def assert_sleeps(server: distnet.ParameterServer) -> None:
    """Fail where a thread spins: it takes a core, or is ready whenever one looks, where others take the cores."""
    looks: collections.Counter[str] = collections.Counter()
    before, until = processor_seconds(server), time.monotonic() + WATCHED_S
    count = 0
    while time.monotonic() < until:
        select.select([], [], [], 0.03)  # the time that is watched; nothing is waited for
        looks.update(awake_threads(server))
        count += 1
    taken_s = processor_seconds(server) - before
    assert taken_s < MOST_S, f"the server took {taken_s:.2f} s of {WATCHED_S} s"
    assert max(looks.values(), default=0) < count / 2, f"a thread was awake in {looks.most_common(1)} of {count} looks"


@contextlib.contextmanager
def stalling_worker(
    server: distnet.ParameterServer, transport: str, rank: int = 0
) -> Iterator[RawWorker | RawSharedWorker]:
    with raw_worker(server, rank) if transport == "tcp" else raw_shared_worker(server, FLOATS, rank) as worker:
        yield worker


def serve_apart(semantics: str, transport: str, workers: int = 1) -> distnet.ParameterServer:
    return serve([np.zeros(FLOATS, np.float32)], semantics, transport, workers=workers, processes=True)


def push_half(worker: RawWorker | RawSharedWorker, gradient: np.ndarray) -> None:
    if isinstance(worker, RawWorker):
        worker.send_push(gradient, sent_bytes=10 * PIECE_BYTES + 100)
    else:
        worker.send_push(gradient, pieces=10)


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-locked", "async-lockfree"])
@over_transports
def test_a_worker_that_stalls_in_the_middle_of_a_push(transport: str, semantics: str) -> None:
    gradient = np.full(FLOATS, -1.0, np.float32)
    with serve_apart(semantics, transport) as server, stalling_worker(server, transport) as worker:
        push_half(worker, gradient)
        assert_sleeps(server)


@pytest.mark.parametrize("semantics", ["async-apply", "async-lockfree"])
@over_transports
def test_a_worker_that_does_not_read_its_reply(transport: str, semantics: str) -> None:
    gradient = np.full(FLOATS, -1.0, np.float32)
    with serve_apart(semantics, transport) as server, stalling_worker(server, transport) as worker:
        worker.send_push(gradient)
        wait_until(lambda: server.stats().applied == 1, "the push is applied")
        assert_sleeps(server)


@over_transports
def test_a_worker_that_waits_for_the_others_of_its_round(transport: str) -> None:
    gradient = np.full(FLOATS, -1.0, np.float32)
    with serve_apart("sync", transport, workers=2) as server, stalling_worker(server, transport) as worker:
        worker.send_push(gradient)
        wait_until(lambda: server.stats().accepted == 1, "the push arrives")
        assert_sleeps(server)


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
@over_transports
def test_idle_workers_and_observers(transport: str, semantics: str) -> None:
    with serve_apart(semantics, transport, workers=2) as server, contextlib.ExitStack() as stack:
        for rank in (0, 1, None):
            client = distnet.connect(server.address, rank=rank, transport=transport)
            stack.callback(client.close)
            client.pull()
        assert_sleeps(server)


@over_transports
def test_others_are_served_beside_a_worker_that_stalls_in_the_middle_of_a_push(transport: str) -> None:
    gradient = np.full(FLOATS, -1.0, np.float32)
    with serve_apart("async-apply", transport, 2) as server, stalling_worker(server, transport) as worker:
        push_half(worker, gradient)
        with distnet.connect(server.address, rank=1, transport=transport) as client:
            for _ in range(3):
                client.push([gradient])
            np.testing.assert_array_equal(client.pull()[0][:10], np.full(10, 3.0, np.float32))
        assert_sleeps(server)
