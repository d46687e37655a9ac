"""A worker that is there before its server, or before rank 0: it waits, says so, and stops at what cannot heal."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import pytest
from network_proxy import Proxy
from raw_protocol import header
from worker_processes import over_transports, serve, stop_process, wait_until

import distnet
from distnet._private import waiting

MODEL = [np.full(100_000, 4.0, np.float32)]
_names = itertools.count()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Have the first line come at once, and return a function that returns the lines so far."""
    monkeypatch.setattr(waiting, "_FIRST_LINE_S", 0.02)
    caplog.set_level(logging.WARNING, logger="distnet")
    return lambda: [record.getMessage() for record in list(caplog.records) if record.name == "distnet"]


def absent(transport: str) -> str:
    """Return an address where nobody listens yet."""
    if transport == "shm":
        return f"shm://late-{os.getpid()}-{next(_names)}"
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def connecting(*arguments: Any, **more: Any) -> Iterator[Future[distnet.Client]]:
    """Connect on another thread, and leave in the end."""
    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(distnet.connect, *arguments, **more)
        try:
            yield client
        finally:
            if client.exception(60) is None:
                client.result().close()


@over_transports
def test_a_worker_waits_for_a_server_that_starts_later_and_says_so(
    transport: str, impatient: Callable[[], list[str]]
) -> None:
    address = absent(transport)
    with connecting(address, rank=3) as client:
        wait_until(lambda: bool(impatient()), "the worker says what it waits for")
        assert all(part in impatient()[0] for part in ("rank 3 waits", address, "of at most 300 s"))
        with distnet.ParameterServer(MODEL, address=address, semantics="async-apply", workers=4):
            assert set(client.result(60).pull()[0]) == {4.0}
            client.result().close()


def test_a_late_rank_0_is_waited_for_far_longer_than_the_timeout(impatient: Callable[[], list[str]]) -> None:
    with (
        serve(None, "sync", "tcp", 2, workers=2) as server,
        connecting(server.address, rank=1, timeout=1.0) as late,
    ):
        # The lines come after 0.02 s times 1, 3, 9 and so on: the sixth after 4.9 s, when the server has refused the
        # client, and taken it up anew, five times.
        wait_until(lambda: len(impatient()) >= 6, "the worker has waited for several timeouts")
        assert "rank 1 waits" in impatient()[-1]
        assert "has no model yet: rank 0 brings it" in impatient()[-1]
        with distnet.connect(server.address, rank=0, parameters=MODEL) as first:
            assert set(late.result(60).pull()[0]) == set(first.pull()[0]) == {4.0}
            late.result().close()


def test_a_connection_that_breaks_off_in_the_handshake_is_tried_again() -> None:
    address = absent("shm")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0distnet/" + address.removeprefix("shm://"))
        listener.listen()
        with connecting(address, rank=0) as client:
            listener.accept()[0].close()
            listener.close()
            with distnet.ParameterServer(MODEL, address=address):
                client.result(60).close()


def test_a_model_that_is_on_its_way_is_waited_for_beyond_the_connect_timeout() -> None:
    with (
        serve(None, "async-apply", "tcp", workers=2) as server,
        Proxy(server.address, bytes_per_s=MODEL[0].nbytes / 2) as proxy,
        connecting(proxy.address, rank=0, transport="tcp", parameters=MODEL) as first,
    ):
        proxy.links("control", 2)  # the first asks for the other shards
        wait_until(lambda: proxy.links("control", 2)[0].forwarded_bytes > 100_000, "the model is on its way")
        with distnet.connect(server.address, rank=1, connect_timeout=0.05) as other:
            assert set(other.pull()[0]) == {4.0}
        first.result(60)._native.abandon()  # its parameters would take as long again


@contextlib.contextmanager
def stranger(answer: bytes) -> Iterator[str]:
    """A server that says `answer` to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        connection.recv(1 << 12)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve_all)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:7400", r"did you mean tcp://127\.0\.0\.1:7400\?"),
        ("tcp://127.0.0.1", "neither shm://name nor tcp://host:port"),
        ("tcp://127.0.0.1:0", "names no server"),
        ("shm://", "names no server"),
    ],
)
def test_an_address_that_is_none_is_refused_at_once(address: str, words: str) -> None:
    with pytest.raises(distnet.ConfigError, match=words):
        distnet.connect(address, rank=0)


@pytest.mark.parametrize("answer", [header(2, 0, version=999), b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_server_that_speaks_something_else_is_refused_at_once(answer: bytes) -> None:
    with stranger(answer) as address, pytest.raises(distnet.ProtocolError):
        distnet.connect(address, rank=0)


def test_what_the_server_refuses_for_good_is_raised_at_once() -> None:
    with serve({"w": MODEL[0], "b": np.zeros(3, np.float32)}, "sync", "shm", workers=2) as server:
        with pytest.raises(distnet.ConfigError, match="rank"):
            distnet.connect(server.address, rank=2)
        with pytest.raises(distnet.ManifestMismatch, match=r"'b' of shape \(3,\), and `parameters` have 'b' of shape"):
            distnet.connect(server.address, rank=1, parameters={"b": np.zeros(4, np.float32), "w": MODEL[0]})
        with pytest.raises(distnet.ManifestMismatch, match="`parameters` are a list"):
            distnet.connect(server.address, rank=1, parameters=MODEL)
        reordered = {"b": np.zeros(3, np.float32), "w": MODEL[0]}
        distnet.connect(server.address, rank=1, parameters=reordered).close()


def test_a_client_that_cannot_stay_is_no_worker_that_died() -> None:
    """Neither where a shard does not answer, nor where its model is another one: those who wait for ranks wait on."""
    with (
        serve(MODEL, "async-apply", "tcp", 2, workers=2, processes=True) as server,
        distnet.connect(server.address, rank=0) as waiting_rank,
    ):
        pid = server._shards[1].pid
        stop_process(pid)
        try:
            with pytest.raises(distnet.DeadlineExceeded):
                distnet.connect(server.address, rank=1, timeout=1.0, connect_timeout=0)
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(distnet.ManifestMismatch):
            distnet.connect(server.address, rank=1, parameters=[np.zeros(3, np.float32)])
        assert [shard.workers_died for shard in server.stats().shards] == [0, 0]
        waiting_rank.barrier(timeout=30.0)


@pytest.mark.parametrize("connect_timeout", [0, 0.2])
def test_the_error_at_the_end_says_what_was_waited_for(connect_timeout: float) -> None:
    how_long = r"; rank 0 waited \d s, its connect_timeout$" if connect_timeout else "printed$"
    address = absent("tcp")
    with pytest.raises(distnet.ConnectError, match=f"no server at {address}.*{how_long}"):
        distnet.connect(address, rank=0, connect_timeout=connect_timeout)


def test_a_model_that_nobody_brings_is_named_at_the_end() -> None:
    with serve(None, "sync", "shm", workers=2) as server:
        words = r"has no model yet: rank 0 brings it.*; rank 1 waited \d s, its connect_timeout$"
        with pytest.raises(distnet.DeadlineExceeded, match=words):
            distnet.connect(server.address, rank=1, connect_timeout=0.2)


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    yield absent("tcp")


@contextlib.contextmanager
def nobody_answers() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def nobody_brings_the_model() -> Iterator[str]:
    with serve(None, "sync", "shm", workers=2) as server:
        yield server.address


@pytest.mark.parametrize("where", [nobody_listens, nobody_answers, nobody_brings_the_model])
def test_the_error_at_the_end_says_once_how_long_it_took(
    where: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    with where() as address, pytest.raises(distnet.TransportError) as raised:
        distnet.connect(address, rank=1, connect_timeout=0.3)
    assert str(raised.value).count("its connect_timeout") == 1, str(raised.value)


@pytest.mark.parametrize("where", [nobody_listens, nobody_answers, nobody_brings_the_model])
def test_ctrl_c_ends_the_wait(where: Callable[[], contextlib.AbstractContextManager[str]]) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with where() as address:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                distnet.connect(address, rank=1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
