"""What a client may ask over its control connection: little of it at a time, and no more than the answers are worth."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import time
from pathlib import Path

import numpy as np
from raw_protocol import (
    ATTACHED,
    HEADER,
    HEARTBEAT,
    OBSERVER,
    REFUSED,
    SHM,
    TIMEOUT_S,
    WELCOME,
    endpoint_of,
    header,
    hello,
    message,
    raw_worker,
    received,
)
from worker_processes import over_transports, serve, wait_until

import distnet

SIZE = 1000
BUFFER, BUFFER_REPLY, STATS = 13, 14, 15
AT_ONCE, PER_SECOND = 256, 64
PROGRESS_BYTES = HEADER.size + 17


def test_a_question_is_short() -> None:
    with serve([np.zeros(SIZE, np.float32)], "async-apply", "tcp") as server, raw_worker(server) as worker:
        worker.control.sendall(header(HEARTBEAT, 65))
        kind, said = message(worker.control)
        assert kind == REFUSED
        assert b"at most 64 are taken here" in said


def test_a_client_that_asks_on_and_on_is_answered_slowly() -> None:
    """Its questions wait, and nobody else's do."""
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", "tcp", workers=2) as server,
        raw_worker(server) as flood,
        distnet.connect(server.address, rank=1, transport="tcp") as other,
    ):
        start = time.monotonic()
        flood.control.sendall(header(HEARTBEAT, 0) * 4000)
        for _ in range(AT_ONCE):
            received(flood.control, PROGRESS_BYTES)
        more, until = 0, time.monotonic() + 1.0
        while (left_s := until - time.monotonic()) > 0:
            if select.select([flood.control], [], [], left_s)[0]:
                received(flood.control, PROGRESS_BYTES)
                more += 1
        assert 0 < more <= PER_SECOND * (time.monotonic() - start) + 2
        other.push([np.zeros(SIZE, np.float32)])
        assert other.stats()[0]["accepted"] == 1


@over_transports
def test_clients_that_never_read_their_answers_keep_nobody_waiting(transport: str) -> None:
    model = [np.zeros(SIZE, np.float32)]
    with serve(model, "async-lockfree", "tcp", workers=9) as server, contextlib.ExitStack() as stack:
        for rank in range(8):
            worker = stack.enter_context(raw_worker(server, rank=rank))
            worker.control.sendall(header(STATS, 0) * 500)
        client = stack.enter_context(distnet.connect(server.address, rank=8, transport=transport))
        for _ in range(20):
            client.push_pull([np.zeros(SIZE, np.float32)])
        assert len(client.stats()[0]["sessions"]) == 9


def receive_with_descriptors(connection: socket.socket) -> tuple[int, bytes, list[int]]:
    """Return kind, payload and descriptors of the next control message."""
    descriptors = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(HEADER.size, socket.CMSG_SPACE(8 * 4))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % 4])
    head += received(connection, HEADER.size - len(head))
    _, _, kind, count = HEADER.unpack(head)
    return kind, received(connection, count), list(descriptors)


def test_a_buffer_is_not_passed_on_and_on() -> None:
    """Descriptors that nobody receives count against what the server's user may have on their way."""
    with (
        serve([np.zeros(SIZE, np.float32)], "async-apply", "shm") as server,
        socket.socket(socket.AF_UNIX) as control,
        contextlib.ExitStack() as stack,
    ):
        control.settimeout(TIMEOUT_S)
        control.connect("\0distnet/" + server.address.removeprefix("shm://"))
        control.sendall(hello(role=OBSERVER, transport=SHM))
        kinds = []
        for _ in range(2):
            kind, _, descriptors = receive_with_descriptors(control)
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            kinds.append(kind)
        assert kinds == [WELCOME, ATTACHED]
        control.sendall((header(BUFFER, 4) + struct.pack("<I", 0)) * 3)
        kinds = []
        for _ in range(3):
            kind, said, descriptors = receive_with_descriptors(control)
            for descriptor in descriptors:
                stack.callback(os.close, descriptor)
            kinds.append(kind)
        assert kinds == [BUFFER_REPLY, BUFFER_REPLY, REFUSED]
        assert b"again and again" in said


def test_a_hello_costs_no_copy_of_the_manifest() -> None:
    tensors, strangers = 50_000, 30
    names = {f"backbone.stage3.block{i:06d}.attention.projection.bias": np.zeros(1, np.float32) for i in range(tensors)}
    manifest_bytes = tensors * (4 + 53 + 1 + 8)

    def resident_bytes(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) << 10

    with (
        serve(names, "async-lockfree", "tcp", processes=True, workers=strangers) as server,
        contextlib.ExitStack() as stack,
    ):
        pid = server._shards[0].pid
        distnet.connect(server.address, transport="tcp").close()
        before = resident_bytes(pid)
        for rank in range(strangers):
            stranger = stack.enter_context(socket.create_connection(endpoint_of(server.address), timeout=TIMEOUT_S))
            stranger.sendall(hello(rank=rank))  # and reads nothing of the answer
        wait_until(lambda: len(server.stats()["sessions"]) == strangers, "all are admitted")
        # A quarter of what a copy for each would take.
        assert resident_bytes(pid) - before < strangers * manifest_bytes / 4
