"""Every wait ends: where a process is stopped, a host does not answer, or the one that is waited for has gone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from raw_protocol import REFUSED, WELCOME, endpoint_of, hello, message, raw_worker
from worker_processes import over_transports, serve, stop_process, wait_until

import distnet
from distnet.shards import owner as shard_process

MODEL = [np.zeros(1000, np.float32)]


@contextlib.contextmanager
def stopped_shard(server: distnet.ParameterServer) -> Iterator[None]:
    """Within the block the server's last shard is a process that does nothing."""
    pid = server._shards[-1].pid
    stop_process(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_stats_of_a_stopped_shard_end_by_the_deadline(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_process, "ANSWER_SECONDS", 1.0)
    with serve(MODEL, "async-apply", "shm", shards, processes=True) as server:
        client = distnet.connect(server.address, rank=0, timeout=2.0)
        with stopped_shard(server):
            begun_s = time.monotonic()
            with pytest.raises(distnet.DeadlineExceeded, match="stopped"):
                server.stats()
            with pytest.raises(distnet.DeadlineExceeded):
                client.stats()
            assert time.monotonic() - begun_s < 20
        wait_until(lambda: server.stats()["updates"] == 0, "the shard answers again, and in order")
        with contextlib.suppress(distnet.TransportError):
            client.close()


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port at ::1 where nobody answers: its listener takes nobody in, and its queue is full."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket(socket.AF_INET6))
        listener.bind(("::1", 0))
        listener.listen(0)
        while True:
            waiting = held.enter_context(socket.socket(socket.AF_INET6))
            waiting.settimeout(0.3)
            try:
                waiting.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener.getsockname()[1]


def has_two_addresses(host: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return len({family for family, *_ in socket.getaddrinfo(host, 1)}) == 2
    return False


@pytest.mark.skipif(not has_two_addresses("localhost"), reason="localhost is not both ::1 and 127.0.0.1 here")
def test_a_first_address_that_does_not_answer_costs_a_moment() -> None:
    with black_hole() as port:
        address = f"tcp://127.0.0.1:{port}"
        with distnet.ParameterServer(MODEL, semantics="async-apply", address=address) as server:
            assert server.address == address
            begun_s = time.monotonic()
            with distnet.connect(f"tcp://localhost:{port}", rank=0, transport="tcp", timeout=20.0) as client:
                client.pull()
            assert time.monotonic() - begun_s < 10


def sessions_of(server: distnet.ParameterServer) -> list[dict[str, object]]:
    sessions: list[dict[str, object]] = server.stats()["sessions"]
    return sessions


def test_a_client_that_leaves_between_its_two_connections_is_forgotten_at_once() -> None:
    with serve(MODEL, "async-apply", "tcp") as server:
        begun_s = time.monotonic()
        with socket.create_connection(endpoint_of(server.address), timeout=30) as control:
            control.sendall(hello(rank=0))
            assert message(control)[0] == WELCOME
            assert len(sessions_of(server)) == 1
        wait_until(lambda: sessions_of(server) == [], "the session has ended")
        assert time.monotonic() - begun_s < 8  # it would be waited for ten


def test_a_worker_that_breaks_a_rule_ends_and_is_not_away() -> None:
    with serve(MODEL, "async-apply", "tcp", reconnect_timeout=20.0) as server:
        with raw_worker(server) as worker:
            begun_s = time.monotonic()
            worker.send_push(MODEL[0], fields=1)
            assert message(worker.control)[0] == REFUSED
            wait_until(lambda: server.stats()["workers_died"] == 1, "its session has ended")
            assert time.monotonic() - begun_s < 15
        assert sessions_of(server) == []


def repeat(call_it: Callable[[], object]) -> None:
    """Call it until it raises."""
    while True:
        call_it()


@over_transports
def test_every_call_of_a_client_says_which_shard_it_lost(transport: str) -> None:
    with serve(MODEL, "async-apply", transport, 2, processes=True, workers=2) as server:
        lost = server.address.split(",")[1]
        clients = [distnet.connect(server.address, rank=rank, transport=transport) for rank in range(2)]
        os.kill(server._shards[1].pid, signal.SIGKILL)
        calls = [clients[0].stats, clients[1].close]
        for client, call_it in zip(clients, calls, strict=True):
            with pytest.raises(distnet.TransportError, match=lost):
                repeat(call_it)
            with contextlib.suppress(distnet.DistNetError):
                client.close()
