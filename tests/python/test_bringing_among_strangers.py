"""A server without a model among those who keep it from getting one: the silent, the slow, the leaving, the dying."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from limited_server import LimitedServer
from network_proxy import Proxy
from raw_protocol import NEED_PARAMETERS, REFUSED, endpoint_of, hello, initial, message
from worker_processes import over_shards, serve, wait_until

import distnet

SIZE = 300_000
MODEL = [np.full(SIZE, 4.0, np.float32)]
SHORT_S = 3.0  # the deadline of an honest client, below the ten seconds that a claim may be silent


@contextlib.contextmanager
def claim(server: distnet.ParameterServer) -> Iterator[socket.socket]:
    """A stranger that was asked for the model."""
    with socket.create_connection(endpoint_of(server.address), timeout=30) as stranger:
        stranger.sendall(hello(brings=True, timeout_s=3600.0))
        assert message(stranger)[0] == NEED_PARAMETERS
        yield stranger


def fall_silent(stranger: socket.socket, ended: threading.Event) -> None:
    """Say nothing more."""


def send_a_little(stranger: socket.socket, ended: threading.Event) -> None:
    """Begin with a model of four terabytes, and send a few bytes of it each second."""
    with contextlib.suppress(OSError):
        stranger.sendall(initial(1 << 40))
        while not ended.wait(0.1):
            stranger.sendall(bytes(400))


def stop_in_the_manifest(stranger: socket.socket, ended: threading.Event) -> None:
    stranger.sendall(initial(SIZE)[:20])


@pytest.mark.slow
@pytest.mark.parametrize("behave", [fall_silent, send_a_little, stop_in_the_manifest])
def test_whoever_claims_to_bring_the_model_and_does_not_loses_the_claim_to_the_next(
    behave: Callable[[socket.socket, threading.Event], None],
) -> None:
    ended = threading.Event()
    with (
        serve(None, "async-apply", "tcp", workers=2) as server,
        claim(server) as stranger,
        ThreadPoolExecutor(3) as threads,
    ):
        threads.submit(behave, stranger, ended)
        # Neither the one who offers nor the one who waits gives up: they hear that the server waits for somebody.
        waiting = threads.submit(distnet.connect, server.address, rank=1, timeout=SHORT_S)
        try:
            with distnet.connect(server.address, rank=0, timeout=SHORT_S, parameters=MODEL) as client:
                assert set(client.pull()[0]) == {4.0}
            with waiting.result() as other:
                assert set(other.pull()[0]) == {4.0}
        finally:
            ended.set()
        stranger.settimeout(30)
        with contextlib.suppress(ConnectionError):
            kind = 0
            while kind != REFUSED:
                kind, _ = message(stranger)


def test_when_the_one_who_brings_it_dies_the_next_is_asked_at_once() -> None:
    with serve(None, "async-apply", "tcp") as server, ThreadPoolExecutor(1) as threads:
        with claim(server) as stranger:
            stranger.sendall(initial(SIZE) + bytes(100_000))
            begun_s = time.monotonic()
            honest = threads.submit(distnet.connect, server.address, rank=0, parameters=MODEL)
        with honest.result() as client:
            assert set(client.pull()[0]) == {4.0}
        assert time.monotonic() - begun_s < 8


def test_those_who_say_hello_and_leave_are_forgotten_at_once_and_a_job_starts() -> None:
    with LimitedServer(floats=0, semantics="sync", address="tcp://127.0.0.1:0", workers=2) as server:
        before = server.descriptors(), server.threads()
        for number in range(300):
            with socket.create_connection(endpoint_of(server.address), timeout=30) as stranger:
                stranger.sendall(hello(rank=1, timeout_s=3600.0, brings=number % 2 == 0))
        wait_until(lambda: (server.descriptors(), server.threads()) == before, "all are forgotten", 8.0)
        with distnet.connect(server.address, rank=0, parameters=MODEL, timeout=SHORT_S) as client:
            assert set(client.pull()[0]) == {4.0}


def test_a_client_that_waits_for_a_model_that_nobody_brings_is_told_before_its_deadline() -> None:
    with (
        serve(None, "sync", "tcp", workers=2) as server,
        pytest.raises(distnet.DeadlineExceeded, match="no parameters"),
    ):
        distnet.connect(server.address, rank=1, timeout=1.0, connect_timeout=0)


@pytest.mark.slow
@over_shards
def test_a_model_arrives_however_long_its_link_takes(shards: int) -> None:
    deadline_s = 2.0  # a quarter of what the model takes
    with (
        serve(None, "async-lockfree", "tcp", shards, workers=2) as server,
        Proxy(server.address, bytes_per_s=4 * SIZE / (4 * deadline_s)) as proxy,
        ThreadPoolExecutor(1) as threads,
    ):
        begun_s = time.monotonic()
        bringing = threads.submit(
            distnet.connect, proxy.address, rank=0, transport="tcp", timeout=deadline_s, parameters=MODEL
        )
        proxy.links("control", 2 if shards == 1 else 1)  # a client of one address asks there for the others first
        with distnet.connect(server.address, rank=1, timeout=deadline_s) as other:
            assert set(other.pull()[0]) == {4.0}
            assert time.monotonic() - begun_s > 2 * deadline_s
            bringing.result()._native.abandon()  # its parameters would take as long again
