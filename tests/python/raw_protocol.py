"""The protocol of docs/protocol.md spoken by hand, for what a client of DistNet would never say."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import distnet

MAGIC = 0x54454E44
VERSION = 3
PROBE, PROBE_REPLY, HELLO, NEED_PARAMETERS, INITIAL, WELCOME, REFUSED, ATTACH, ATTACHED, HEARTBEAT = range(1, 11)
WORKER, OBSERVER = 1, 2
SHM, TCP = 1, 2
GRADIENT, NONE = 1, 2
WANT_PARAMETERS = 1
LEARNING_RATE, WEIGHT = 1, 2
HEADER = struct.Struct("<IHHI")
REPLY_BYTES = 72
TIMEOUT_S = 30.0


def endpoint_of(address: str) -> tuple[str, int]:
    """Return host and port of the first of a server's endpoints."""
    host, _, port = address.split(",")[0].removeprefix("tcp://").rpartition(":")
    return host, int(port)


def header(kind: int, payload_bytes: int, version: int = VERSION, magic: int = MAGIC) -> bytes:
    return HEADER.pack(magic, version, kind, payload_bytes)


def hello(
    *,
    rank: int = 0,
    role: int = WORKER,
    transport: int = TCP,
    start: int = 0,
    timeout_s: float = TIMEOUT_S,
    brings: bool = False,
) -> bytes:
    """Return the whole hello of a new client; whether it offers to bring the model."""
    who = struct.pack("<QQ", secrets.randbits(64) | 1, secrets.randbits(64))
    no_grant = struct.pack("<IIIQQQ", 0, 0, 0, 0, 0, 0)
    payload = struct.pack("<BBIIdBQ", role, transport, rank, start, timeout_s, brings, 0) + who + no_grant
    return header(HELLO, len(payload)) + payload


def initial(floats: int) -> bytes:
    """Return the message that begins to bring a model of one unnamed tensor to a server of one shard."""
    manifest = struct.pack("<BII", 0, 1, 1) + b"0" + struct.pack("<BQ", 1, floats)
    padded = -(-floats // 16) * 16
    payload = manifest + struct.pack("<QQI", 0, padded, 0)
    return header(INITIAL, len(payload)) + payload


def request(
    kind: int,
    *,
    number: int = 1,
    push: int = 0,
    flags: int = 0,
    payload_bytes: int = 0,
    incarnation: int = 0,
    fields: int = 0,
    base_version: int = 0,
    round_number: int = 0,
) -> bytes:
    """Return the header of a request."""
    numbers = (number, push, base_version, round_number, payload_bytes)
    return struct.pack("<IHHQQQQQIIff", MAGIC, kind, flags, *numbers, incarnation, fields, 0.0, 0.0)


def received(connection: socket.socket, count: int) -> bytes:
    """Return exactly so many bytes.

    Raises:
        EOFError: the connection ended before.
    """
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise EOFError(f"the connection ended after {len(data)} of {count} bytes")
        data += chunk
    return data


def message(connection: socket.socket) -> tuple[int, bytes]:
    """Return kind and payload of the next control message."""
    _, _, kind, count = HEADER.unpack(received(connection, HEADER.size))
    return kind, received(connection, count)


class RawWorker:
    """A worker over TCP whose bytes are the test's to choose, at the first shard of a server.

    Attributes:
        control: the connection for control messages.
        data: the one for requests and replies.
        incarnation: what the welcome said.
    """

    def __init__(self, control: socket.socket, data: socket.socket, rank: int) -> None:
        self.control, self.data = control, data
        control.sendall(hello(rank=rank))
        kind, welcome = message(control)
        assert kind == WELCOME, (kind, welcome)
        session_and_secret = welcome[:16]
        _, self.incarnation = struct.unpack_from("<II", welcome, 16)
        data.sendall(header(ATTACH, 16) + session_and_secret)
        assert message(control)[0] == ATTACHED
        self._pushes = 0

    def send_push(self, gradient: npt.NDArray[np.float32], *, fields: int = 0, sent_bytes: int | None = None) -> None:
        """Push a gradient of the shard's size; or only its first bytes."""
        self._pushes += 1
        payload = gradient.tobytes()
        head = request(
            GRADIENT,
            number=self._pushes,
            push=self._pushes,
            flags=WANT_PARAMETERS,
            payload_bytes=len(payload),
            incarnation=self.incarnation,
            fields=fields,
        )
        verdict = struct.pack("<Q", 0)
        self.data.sendall(head + (payload + verdict if sent_bytes is None else payload[:sent_bytes]))


@contextlib.contextmanager
def raw_worker(server: distnet.ParameterServer, rank: int = 0) -> Iterator[RawWorker]:
    """Yield a worker whose connections end, without a goodbye, with the block."""
    endpoint = endpoint_of(server.address)
    with (
        socket.create_connection(endpoint, timeout=TIMEOUT_S) as control,
        socket.create_connection(endpoint, timeout=TIMEOUT_S) as data,
    ):
        yield RawWorker(control, data, rank)
