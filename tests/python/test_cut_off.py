"""A push that is cut off before its last byte changes nothing, and is counted."""

from __future__ import annotations

import socket
import struct
import time

import numpy as np
from test_strangers import HELLO, MAGIC, endpoint_of, header
from worker_processes import serve

WELCOME, ATTACH, ATTACHED = 6, 8, 9
WORKER, TCP, PUSH = 1, 2, 1
FLOATS = 1024


def received(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += connection.recv(count - len(data))
    return data


def message(connection: socket.socket) -> tuple[int, bytes]:
    _, _, kind, count = struct.unpack("<IHHI", received(connection, 12))
    return kind, received(connection, count)


def test_half_a_push_changes_nothing_and_is_counted() -> None:
    with serve([np.zeros(FLOATS, np.float32)], "async-apply", "tcp") as server:
        with (
            socket.create_connection(endpoint_of(server), timeout=30) as control,
            socket.create_connection(endpoint_of(server), timeout=30) as data,
        ):
            hello = struct.pack("<BBIdB", WORKER, TCP, 0, 30.0, 0)
            control.sendall(header(HELLO, len(hello)) + hello)
            kind, welcome = message(control)
            assert kind == WELCOME
            data.sendall(header(ATTACH, 16) + welcome[:16])
            assert message(control)[0] == ATTACHED
            push = struct.pack("<IHHQQQQQ", MAGIC, PUSH, 1, 1, 1, 0, 0, 4 * FLOATS)
            data.sendall(push + np.ones(FLOATS // 2, np.float32).tobytes())
        give_up_s = time.monotonic() + 30
        while server.stats()["cut_off"] == 0:
            assert time.monotonic() < give_up_s, server.stats()
        stats = server.stats()
        assert (stats["cut_off"], stats["accepted"], stats["updates"], stats["workers_died"]) == (1, 0, 0, 1)
        np.testing.assert_array_equal(server.parameters()[0], np.zeros(FLOATS))


def test_a_server_without_parameters_has_counted_nothing_yet() -> None:
    with serve(None, "async-apply", "tcp") as server:
        stats = server.stats()
        assert (stats["updates"], stats["sessions"], stats["workers_done"]) == (0, [], 0)
