"""What strangers and other versions may send: a typed error or a closed connection, and a server that serves on."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from raw_protocol import (
    ABSTENTION,
    GRADIENT,
    GROUP_RATES,
    HELLO,
    LEARNING_RATE,
    MAGIC,
    PROBE,
    REFUSED,
    VERSION,
    WEIGHT,
    endpoint_of,
    header,
    hello,
    message,
    raw_worker,
    received,
    request,
)
from worker_processes import serve, wait_until

import distnet

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
FLOATS_OF_A_SHARD = 1024


def answer_to(server: distnet.ParameterServer, message: bytes, finish: bool = True) -> bytes:
    """Send bytes to the server, and return all that it says until it closes the connection."""
    with socket.create_connection(endpoint_of(server.address), timeout=30) as stranger:
        with contextlib.suppress(OSError):  # the server may have closed it by then
            stranger.sendall(message)
            if finish:
                stranger.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionError):
            while chunk := stranger.recv(1 << 16):
                said += chunk
        return said


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@contextlib.contextmanager
def unharmed_server() -> Iterator[distnet.ParameterServer]:
    """A server that must serve its next client as if nothing had been, with no more memory."""
    with serve([np.zeros(5, np.float32)], "async-apply", "tcp") as server:
        before = resident_bytes()
        yield server
        assert resident_bytes() - before < 64 << 20
        client = distnet.connect(server.address, rank=0, transport="tcp")
        assert set(client.push_pull([np.full(5, -1.0, np.float32)])[0]) == {1.0}
        client.close()
        assert server.stats()["applied"] == 1


STRANGERS = {
    "nothing": b"",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS greeting": bytes.fromhex("16030102000100 01fc0303") + bytes(500),
    "noughts": bytes(4096),
    "a header cut off": header(HELLO, 100)[:7],
    "a payload cut off": header(HELLO, 100) + b"short",
    "a probe with a payload": header(PROBE, 4) + b"xxxx",
    "an unknown kind": header(999, 0),
    "a huge claim": header(HELLO, 0xFFFFFFFF) + bytes(100),
    "a huge claim of an initial model": header(5, 0xFFFFFFFF) + bytes(100),
    "a hello of noise": header(HELLO, 64) + bytes(range(64)),
    "a hello as long as a true one, of noise": header(HELLO, 91) + bytes(range(91)),
    "a hello of no client": hello()[:39] + bytes(16) + hello()[55:],
    "an attach to no session": header(8, 16) + bytes(16),
    "a round's end from nobody": header(20, 12) + bytes(12),
    "a goodbye from nobody": header(12, 0),
    "a buffer request from nobody": header(13, 4) + bytes(4),
    "a model that nobody asked for": header(25, 40) + bytes(40),
    "the end of a model that nobody asked for": header(27, 0),
    "a shard of another job": header(28, 20) + b"\1" + bytes(19),
}


@pytest.mark.parametrize("message", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_strangers_bytes_harm_nobody(message: bytes) -> None:
    with unharmed_server() as server:
        answer_to(server, message)


def test_random_bytes_harm_nobody() -> None:
    random = np.random.default_rng(11)
    with unharmed_server() as server:
        for length in (1, 11, 12, 13, 100, 5000):
            for _ in range(5):
                answer_to(server, random.bytes(length))
                answer_to(server, header(int(random.integers(0, 32)), length) + random.bytes(length))


def test_connections_that_say_nothing_do_not_keep_others_out() -> None:
    with unharmed_server() as server, contextlib.ExitStack() as held:
        for number in range(300):
            silent = held.enter_context(socket.create_connection(endpoint_of(server.address), timeout=30))
            if number % 2:
                silent.sendall(header(HELLO, 100)[: number % 12])
        client = distnet.connect(server.address, rank=0, transport="tcp")
        client.pull()
        client.close()


def test_a_thousand_connections_one_after_another_leave_nothing() -> None:
    with unharmed_server() as server:
        for _ in range(1000):
            with socket.create_connection(endpoint_of(server.address), timeout=30) as stranger:
                stranger.sendall(b"x")


@pytest.mark.parametrize("version", [1, 2, 999])
@pytest.mark.parametrize("kind", [PROBE, HELLO])
def test_a_client_of_another_version_is_answered_with_both_numbers(kind: int, version: int) -> None:
    with unharmed_server() as server:
        said = answer_to(server, header(kind, 0, version=version), finish=False)
        assert said[:4] == struct.pack("<I", MAGIC)
        assert struct.unpack_from("<H", said, 6) == (REFUSED,)
        reason = said[12 + 2 + 4 :].decode()  # after the header, the error's code and the text's length
        assert f"version {version}" in reason
        assert f"version {VERSION}" in reason


@pytest.mark.parametrize(
    ("fields", "value", "name"),
    [
        (LEARNING_RATE, math.nan, "learning rate"),
        (LEARNING_RATE, math.inf, "learning rate"),
        (LEARNING_RATE, -1e-9, "learning rate"),
        (WEIGHT, math.nan, "weight"),
        (WEIGHT, 0.0, "weight"),
        (WEIGHT, 1.0, "weight"),  # where no mean is taken
        (GROUP_RATES, 0.0, "group's learning rate"),  # of a server without groups
        (128, 0.0, "unknown field"),
    ],
)
def test_a_setting_of_a_push_that_cannot_be_is_refused_by_name_and_nothing_is_applied(
    fields: int, value: float, name: str
) -> None:
    gradient = np.full(FLOATS_OF_A_SHARD, -1.0, np.float32)
    with serve([np.zeros(FLOATS_OF_A_SHARD, np.float32)], "async-apply", "tcp") as server:
        with raw_worker(server) as worker:
            worker.send_push(gradient, fields=fields, learning_rate=value, weight=value)
            kind, refusal = message(worker.control)
            assert (kind, name in refusal.decode(errors="replace")) == (REFUSED, True)
        wait_until(lambda: server.stats()["workers_died"] == 1, "the session ends")
        assert server.stats()["updates"] == 0
        np.testing.assert_array_equal(server.parameters()[0], np.zeros(FLOATS_OF_A_SHARD))


@pytest.mark.parametrize(
    ("rates", "words"), [([1.0, math.nan], ""), ([1.0, math.inf], "group's learning rate"), ([1.0], "")]
)
def test_rates_by_groups_are_checked_and_may_end_in_the_middle(rates: list[float], words: str) -> None:
    model = [np.zeros(FLOATS_OF_A_SHARD, np.float32)]
    groups = {"0": distnet.Group(), "1": distnet.Group()}
    with serve(model, "async-apply", "tcp", groups=groups) as server:
        with raw_worker(server) as worker:
            payload = np.full(FLOATS_OF_A_SHARD, -1.0, np.float32).tobytes()
            form = {"push": 1, "payload_bytes": len(payload), "incarnation": worker.incarnation, "fields": GROUP_RATES}
            worker.data.sendall(request(GRADIENT, **form) + struct.pack(f"<{len(rates)}d", *rates))
            if len(rates) == 2:
                with contextlib.suppress(ConnectionError):
                    worker.data.sendall(payload + bytes(8))
                if words:
                    kind, refusal = message(worker.control)
                    assert (kind, words in refusal.decode(errors="replace")) == (REFUSED, True)
                else:
                    assert worker.reply().applied == 1
            else:  # the control connection stays open: its end could be seen before these bytes, and nothing be cut off
                worker.data.shutdown(socket.SHUT_WR)
                wait_until(lambda: server.stats().cut_off == 1, "the push is cut off")
        wait_until(lambda: server.stats()["sessions"] == [], "the session ends")
        applies = len(rates) == 2 and not words
        assert (server.stats().updates, server.stats().cut_off) == (int(applies), int(len(rates) == 1))


def test_an_abstention_with_a_gradient_is_refused_and_one_without_is_not() -> None:
    with serve([np.zeros(FLOATS_OF_A_SHARD, np.float32)], "async-apply", "tcp") as server:
        with raw_worker(server) as worker:
            worker.data.sendall(request(ABSTENTION, push=1, incarnation=worker.incarnation))
            assert worker.reply().applied == 1
            payload = bytes(4 * FLOATS_OF_A_SHARD)
            form = {"number": 2, "push": 2, "payload_bytes": len(payload), "incarnation": worker.incarnation}
            with contextlib.suppress(ConnectionError):
                worker.data.sendall(request(ABSTENTION, **form) + payload + bytes(8))
            kind, refusal = message(worker.control)
            assert (kind, "without the gradient of its kind" in refusal.decode(errors="replace")) == (REFUSED, True)
        wait_until(lambda: server.stats()["workers_died"] == 1, "the session ends")
        stats = server.stats()
        assert (stats.abstained, stats.accepted, stats.updates) == (1, 1, 0)


@pytest.mark.parametrize("incarnation", [0, 77])
def test_a_request_of_another_incarnation_changes_nothing(incarnation: int) -> None:
    with serve([np.zeros(FLOATS_OF_A_SHARD, np.float32)], "async-apply", "tcp") as server:
        with raw_worker(server) as worker, contextlib.suppress(ConnectionError, EOFError):
            assert worker.incarnation != incarnation
            payload = np.full(FLOATS_OF_A_SHARD, -1.0, np.float32).tobytes()
            head = request(GRADIENT, push=1, payload_bytes=len(payload), incarnation=incarnation)
            worker.data.sendall(head + payload + bytes(8))
            received(worker.data, 1)
        wait_until(lambda: server.stats()["sessions"] == [], "the session ends")
        assert server.stats()["updates"] == 0


@contextlib.contextmanager
def fake_server(answer: bytes) -> Iterator[str]:
    """A server that says `answer` to whoever connects, whatever was asked, and closes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve_all() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(answer)
                        connection.shutdown(socket.SHUT_WR)
                        connection.settimeout(5)
                        connection.recv(1 << 16)

        thread = threading.Thread(target=serve_all)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def test_a_server_of_another_version_is_a_protocol_error_that_names_it() -> None:
    with fake_server(header(2, 0, version=999)) as address, pytest.raises(distnet.ProtocolError, match="999"):
        distnet.connect(address, rank=0, timeout=5.0)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", header(2, 0xFFFFFFFF), header(2, 50) + bytes(50), bytes(100)],
    ids=["nothing", "HTTP", "a huge claim", "noise", "noughts"],
)
def test_a_server_that_is_none_ends_in_a_typed_error(answer: bytes) -> None:
    with fake_server(answer) as address, pytest.raises((distnet.ProtocolError, distnet.TransportError)):
        distnet.connect(address, rank=0, timeout=5.0, connect_timeout=0)
