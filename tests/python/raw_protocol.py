"""The protocol of docs/design/protocol.md spoken by hand, for what a client of DistNet would never say."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import secrets
import socket
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import distnet

MAGIC = 0x54454E44
VERSION = 5
PROBE, PROBE_REPLY, HELLO, NEED_PARAMETERS, INITIAL, WELCOME, REFUSED, ATTACH, ATTACHED, HEARTBEAT = range(1, 11)
WORKER, OBSERVER = 1, 2
SHM, TCP = 1, 2
NOTICE, WAKE = 24, 40
SAYS_WARNING, SAYS_ROUNDS_ENDED = 1, 2  # kinds of notices
GRADIENT, NONE, ABSTENTION = 1, 2, 3
WANT_PARAMETERS = 1
LEARNING_RATE, WEIGHT, GROUP_RATES = 1, 2, 4
HEADER = struct.Struct("<IHHI")
OF_PUSH_BEFORE = 64
REPLY = struct.Struct("<IHHQQQQQQQII")
REPLY_BYTES = REPLY.size
NON_FINITE_GRADIENT = 9  # an error code
TIMEOUT_S = 30.0


def endpoint_of(address: str) -> tuple[str, int]:
    """Return host and port of the first of a server's endpoints."""
    host, _, port = address.split(",")[0].removeprefix("tcp://").rpartition(":")
    return host, int(port)


def header(kind: int, payload_bytes: int, version: int = VERSION, magic: int = MAGIC) -> bytes:
    return HEADER.pack(magic, version, kind, payload_bytes)


def notice(kind: int, text: str) -> bytes:
    """Return a whole notice of the server's."""
    payload = struct.pack("<BI", kind, len(text)) + text.encode()
    return header(NOTICE, len(payload)) + payload


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
    learning_rate: float = 0.0,
    weight: float = 0.0,
) -> bytes:
    """Return the header of a request."""
    numbers = (number, push, base_version, round_number, payload_bytes)
    return struct.pack("<IBBHQQQQQIfd", MAGIC, kind, fields, flags, *numbers, incarnation, weight, learning_rate)


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


@dataclasses.dataclass(frozen=True)
class RawReply:
    """The header of a reply, but for its magic."""

    flags: int
    status: int
    number: int
    version: int
    accepted: int
    applied: int
    staleness: int
    round: int
    payload_bytes: int
    buffer: int
    delivered: int

    @classmethod
    def unpack(cls, data: bytes) -> RawReply:
        magic, *fields = REPLY.unpack(data)
        assert magic == MAGIC
        return cls(*fields)


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

    def send_push(
        self,
        gradient: npt.NDArray[np.float32] | bytes,
        *,
        fields: int = 0,
        round_number: int = 0,
        sent_bytes: int | None = None,
        learning_rate: float = 0.0,
        weight: float = 0.0,
    ) -> None:
        """Push a gradient of the shard's size, or the bytes of an encoded one; or only the first bytes of it."""
        self._pushes += 1
        payload = gradient if isinstance(gradient, bytes) else gradient.tobytes()
        head = request(
            GRADIENT,
            number=self._pushes,
            push=self._pushes,
            flags=WANT_PARAMETERS,
            payload_bytes=len(payload),
            incarnation=self.incarnation,
            fields=fields,
            round_number=round_number,
            learning_rate=learning_rate,
            weight=weight,
        )
        verdict = struct.pack("<Q", 0)
        self.data.sendall(head + (payload + verdict if sent_bytes is None else payload[:sent_bytes]))

    def reply(self) -> RawReply:
        """Return the header of the next reply, whose parameters are read and dropped."""
        reply = RawReply.unpack(received(self.data, REPLY_BYTES))
        received(self.data, reply.payload_bytes)
        return reply


class RawSharedWorker:
    """The same over shared memory. The server's futex is not woken: it looks a few times a second by itself.

    Attributes:
        control: the connection for control messages.
        incarnation: what the welcome said.
        slots: the memory of the gradients.
    """

    _EVENTS, _REQUESTS, _RELEASED, _STAGED = 64, 68, 76, 128
    _REPLIES, _REQUEST_RING, _REPLY_RING, _RING_ENTRIES = 260, 320, 2368, 32
    _PIECE_FLOATS = 16 * 1024
    _PAGE_BYTES = 4096

    def __init__(self, control: socket.socket, rank: int, floats: int) -> None:
        self.control = control
        self._floats = floats
        control.sendall(hello(rank=rank, transport=SHM))
        head, descriptors, _, _ = socket.recv_fds(control, HEADER.size, 3)
        _, _, kind, count = HEADER.unpack(head)
        welcome = received(control, count)
        assert kind == WELCOME, (kind, welcome)
        _, self.incarnation = struct.unpack_from("<II", welcome, 16)
        maps = []
        for descriptor in descriptors:
            maps.append(mmap.mmap(descriptor, os.fstat(descriptor).st_size))
            os.close(descriptor)
        self._region, self.slots = maps[:2]
        self._maps = maps
        self._slot_bytes = -(-4 * floats // self._PAGE_BYTES) * self._PAGE_BYTES
        self._slots = len(self.slots) // self._slot_bytes
        assert message(control)[0] == ATTACHED
        self._pushes = 0

    def send_push(self, gradient: npt.NDArray[np.float32], *, round_number: int = 0, pieces: int | None = None) -> None:
        """Push a gradient; or announce it, and stage only so many of its pieces of 64 KiB."""
        self._pushes += 1
        slot = (self._pushes - 1) % self._slots
        begin = slot * self._slot_bytes
        payload = gradient.tobytes()
        self.slots[begin : begin + len(payload)] = payload
        all_pieces = -(-self._floats // self._PIECE_FLOATS)
        self._write("<Q", self._STAGED + 8 * slot, self._pushes << 32 | (all_pieces if pieces is None else pieces))
        head = request(
            GRADIENT,
            number=self._pushes,
            push=self._pushes,
            flags=WANT_PARAMETERS,
            payload_bytes=len(payload),
            incarnation=self.incarnation,
            round_number=round_number,
        )
        at = self._REQUEST_RING + (self._pushes - 1) % self._RING_ENTRIES * len(head)
        self._region[at : at + len(head)] = head
        self._write("<I", self._REQUESTS, self._pushes)
        self._write("<I", self._EVENTS, self._pushes)
        self.control.sendall(header(WAKE, 0))  # a server without a thread for the session looks only then

    def has_reply(self) -> bool:
        """Return whether the reply to the newest push is here."""
        return bool(struct.unpack_from("<I", self._region, self._REPLIES)[0] == self._pushes)

    def reply(self) -> RawReply:
        """Return the header of the newest reply, whose parameters are let go."""
        at = self._REPLY_RING + (self._pushes - 1) % self._RING_ENTRIES * REPLY_BYTES
        self._write("<I", self._RELEASED, self._pushes)
        return RawReply.unpack(self._region[at : at + REPLY_BYTES])

    def _write(self, form: str, at: int, value: int) -> None:
        struct.pack_into(form, self._region, at, value)

    def close(self) -> None:
        """Let the memory go."""
        for memory in self._maps:
            memory.close()


@contextlib.contextmanager
def raw_worker(server: distnet.ParameterServer, rank: int = 0) -> Iterator[RawWorker]:
    """Yield a worker whose connections end, without a goodbye, with the block."""
    endpoint = endpoint_of(server.address)
    with (
        socket.create_connection(endpoint, timeout=TIMEOUT_S) as control,
        socket.create_connection(endpoint, timeout=TIMEOUT_S) as data,
    ):
        yield RawWorker(control, data, rank)


@contextlib.contextmanager
def raw_shared_worker(server: distnet.ParameterServer, floats: int, rank: int = 0) -> Iterator[RawSharedWorker]:
    """Yield a worker over shared memory, of a server with one shard of so many floats, that ends with the block."""
    name = server.address.removeprefix("shm://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(TIMEOUT_S)
        control.connect(f"\0distnet/{name}")
        worker = RawSharedWorker(control, rank, floats)
        try:
            yield worker
        finally:
            worker.close()
