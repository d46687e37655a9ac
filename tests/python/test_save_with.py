"""Bytes that a worker has the server keep with a push are in exactly those snapshots that have the push."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raw_protocol import NON_FINITE_GRADIENT, REFUSED, header, message, raw_worker
from worker_processes import (
    changed,
    over_semantics,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet

Array = npt.NDArray[np.float32]
SIZE = 3000  # floats, more than a page: several shards have some each
SAVE, SAVE_ANSWER = 52, 53
MOST_BYTES = 65_536


def start() -> list[Array]:
    return [np.zeros(SIZE, np.float32)]


def gradient(value: float = -1.0) -> list[Array]:
    return [np.full(SIZE, value, np.float32)]


def saved_in(server: distnet.ParameterServer) -> dict[int, bytes]:
    return dict(server.snapshot().saved)


class Counting(threading.Thread):
    """A worker that adds 1 to its own element with each push, and saves how often it has."""

    def __init__(self, server: distnet.ParameterServer, transport: str, rank: int, stop: threading.Event) -> None:
        super().__init__()
        self._server, self._transport, self._rank, self._stop_event = server, transport, rank, stop
        self.count = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            mine = gradient(0.0)
            mine[0][self._rank] = -1.0
            with distnet.connect(self._server.address, rank=self._rank, transport=self._transport) as client:
                while not self._stop_event.is_set():
                    client.save_with(str(self.count + 1).encode())
                    client.push_pull(mine)
                    self.count += 1
        except BaseException as error:
            self.error = error


@over_transports
@over_semantics_and_shards
def test_beside_workers_that_push_saved_bytes_and_parameters_are_of_the_same_push(
    semantics: str, shards: int, transport: str
) -> None:
    options: dict[str, Any] = {"workers": 2, "optimizer": distnet.SGD(2.0 if semantics == "sync" else 1.0)}
    stop = threading.Event()
    with serve(start(), semantics, transport, shards, **options) as server:
        workers = [Counting(server, transport, rank, stop) for rank in range(2)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(5):
                seen = workers[0].count
                wait_until(lambda seen=seen: workers[0].count > seen or not workers[0].is_alive(), "it pushes")  # type: ignore[misc]
                snapshot = server.snapshot()
                for rank, worker in enumerate(workers):
                    count = int(snapshot.parameters[0][rank])
                    assert snapshot.saved.get(rank, b"0") == str(count).encode(), worker.error
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        assert [worker.error for worker in workers] == [None, None]
        assert saved_in(server) == {rank: str(worker.count).encode() for rank, worker in enumerate(workers)}


@over_transports
@over_shards
def test_an_open_rounds_bytes_are_not_in_the_cut(shards: int, transport: str) -> None:
    with (
        serve(start(), "sync", transport, shards, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        second.save_with(b"of round 0")
        handle = second.begin_push_pull(gradient())
        wait_until(lambda: server.stats().awaited == [0], "the round waits for rank 0 alone")
        assert saved_in(server) == {}
        first.push(gradient())
        handle.wait()
        assert saved_in(server) == {1: b"of round 0"}


@over_transports
@over_semantics
def test_bytes_ride_on_the_next_push_alone(semantics: str, transport: str) -> None:
    shards = distnet.SEMANTICS[semantics].minimum_servers
    with serve(start(), semantics, transport, shards) as server:
        with distnet.connect(server.address, rank=0, transport=transport) as client:
            assert client.saved is None
            client.save_with(b"replaced before the push")
            client.save_with(bytearray(b"one"))  # type: ignore[arg-type]
            assert saved_in(server) == {}
            client.push_pull(gradient())
            assert saved_in(server) == {0: b"one"}
            with pytest.raises(distnet.ManifestMismatch):
                client.push([np.zeros(3, np.float32)])  # never begun: the bytes below are for the next
            client.save_with(memoryview(b"lost with its push"))  # type: ignore[arg-type]
            with pytest.raises(distnet.NonFiniteGradient):
                client.push(gradient(np.nan))
            client.push(gradient())
            assert saved_in(server) == {0: b"one"}
            client.save_with(b"")
            client.push(gradient())
            assert saved_in(server) == {0: b""}
            client.save_with(b"of a push that never comes")
        with distnet.connect(server.address, rank=0, transport=transport) as client:
            assert client.saved == b""
            client.push(gradient())
        assert saved_in(server) == {0: b""}


def test_several_pushes_on_the_way_have_their_own_bytes() -> None:
    with (
        serve(start(), changed("async-lockfree", max_inflight=3), "tcp") as server,
        distnet.connect(server.address, rank=0, transport="tcp") as client,
    ):
        for number in range(8):
            handles = []
            for part in range(3):
                client.save_with(b"%d.%d" % (number, part))
                handles.append(client.begin_push_pull(gradient()))
            for handle in handles:
                handle.wait()
            assert saved_in(server) == {0: b"%d.2" % number}


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("semantics", ["sync", "async-apply"])
def test_a_resumed_worker_finds_what_it_saved(semantics: str, processes: bool) -> None:
    options: dict[str, Any] = {"workers": 3}
    most = bytes(range(256)) * 256
    assert len(most) == MOST_BYTES
    with serve(start(), semantics, "shm", 2, **options) as server:
        with (
            distnet.connect(server.address, rank=0) as first,
            distnet.connect(server.address, rank=2) as third,
            distnet.connect(server.address, rank=1) as second,
        ):
            first.save_with(most)
            third.save_with(b"third")
            handles = [client.begin_push_pull(gradient()) for client in (first, second, third)]
            for handle in handles:
                handle.wait()
        snapshot = server.snapshot()
    assert dict(snapshot.saved) == {0: most, 2: b"third"}
    with serve(None, semantics, "tcp", 1, **options, restore=snapshot, processes=processes) as server:
        found = {}
        for rank in range(3):
            with distnet.connect(server.address, rank=rank) as client:
                found[rank] = client.saved
        assert found == {0: most, 1: None, 2: b"third"}
        with distnet.connect(server.address) as observer:
            assert observer.saved is None
        assert dict(server.snapshot().saved) == dict(snapshot.saved)


def test_what_cannot_be_saved_is_refused_and_the_client_goes_on() -> None:
    with (
        serve(start(), "async-apply", "shm", workers=65) as other_server,
        distnet.connect(other_server.address, rank=64) as expected,
    ):
        expected.save_with(b"x")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve(start(), "async-apply", "shm"))
        client = stack.enter_context(distnet.connect(server.address, rank=0))
        observer = stack.enter_context(distnet.connect(server.address))
        with pytest.warns(distnet.DistNetWarning, match="rank 64"):
            beyond = stack.enter_context(distnet.connect(server.address, rank=64))
        with pytest.raises(distnet.ConfigError, match="65537 bytes; at most 65536"):
            client.save_with(bytes(MOST_BYTES + 1))
        with pytest.raises(distnet.ConfigError, match="got str; expected bytes"):
            client.save_with("text")  # type: ignore[arg-type]
        with pytest.raises(distnet.ConfigError, match="observer"):
            observer.save_with(b"x")
        with pytest.raises(
            distnet.ConfigError, match="rank 64 cannot save bytes: the server keeps them for ranks below 64"
        ):
            beyond.save_with(b"x")
        for pushing in (client, beyond):
            pushing.push(gradient())
        client.finish()
        with pytest.raises(distnet.ConfigError, match="finish"):
            client.save_with(b"no push will come to take it along")
        assert saved_in(server) == {}


def save(push: int, data: bytes) -> bytes:
    payload = struct.pack("<QI", push, len(data)) + data
    return header(SAVE, len(payload)) + payload


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-locked", "async-lockfree"])
def test_bytes_of_a_push_that_the_server_refuses_are_dropped(semantics: str) -> None:
    with serve(start(), semantics, "tcp") as server, raw_worker(server) as worker:
        worker.control.sendall(save(1, b"bad"))
        assert message(worker.control)[0] == SAVE_ANSWER
        bad = np.full(-(-SIZE // 16) * 16, np.nan, np.float32)
        worker.send_push(bad)
        first = worker.reply()
        wait_until(lambda: server.stats().refused == 1, "the first push is refused")
        assert saved_in(server) == {}
        worker.control.sendall(save(2, b"good"))
        assert message(worker.control)[0] == SAVE_ANSWER
        worker.send_push(np.full_like(bad, -1.0), round_number=first.round)
        assert NON_FINITE_GRADIENT in (first.status, worker.reply().status)
        assert saved_in(server) == {0: b"good"}


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (save(1, bytes(MOST_BYTES + 1)), "control message of 65549 bytes"),
        (header(SAVE, 12) + struct.pack("<QI", 1, 5), "ends before its fields"),
        (save(0, b"x"), "has come already"),
        (b"".join(save(push, b"x") for push in range(1, 40)), "more pushes than a session may have on the way"),
    ],
)
def test_a_client_that_saves_more_than_it_may_is_refused(messages: bytes, why: str) -> None:
    with serve(start(), "async-apply", "tcp") as server, raw_worker(server) as worker:
        worker.control.sendall(messages)
        kind, answer = message(worker.control)
        while kind == SAVE_ANSWER:
            kind, answer = message(worker.control)
        assert (kind, why in answer.decode(errors="replace")) == (REFUSED, True), answer


@pytest.mark.parametrize(("semantics", "ranks"), [("sync", 3), ("async-apply", 64)])
def test_the_memory_bound_counts_saved_bytes_at_shard_0(semantics: str, ranks: int) -> None:
    """One is saved for each rank, a snapshot keeps another, and a worker has some on the way to their pushes."""
    options: dict[str, Any] = {"workers": 3}
    with serve(start(), changed(semantics, max_inflight=2), "shm", 2, **options) as server:
        one, two = (server.memory(workers=workers, observers=0) for workers in (1, 2))
        assert two["sessions"] - one["sessions"] == 2 * (640 << 10) + (2 + 4) * MOST_BYTES
        for term in ("tables", "snapshot"):
            assert one[term] > ranks * MOST_BYTES


@pytest.mark.parametrize("saved", [{-1: b""}, {True: b""}, {"0": b""}, {0: "text"}, {0: bytes(MOST_BYTES + 1)}])
def test_a_snapshot_with_saved_bytes_that_cannot_be_is_refused(saved: Any) -> None:
    with serve(start(), "sync", "shm") as server:
        snapshot = server.snapshot()
    with pytest.raises(distnet.ConfigError, match="saved"):
        dataclasses.replace(snapshot, saved=saved)
