"""Clients that harm a server, many at once: ``python hostile.py ADDRESS COUNT``.

``go`` on stdin begins, and ``rest`` ends all their connections; each is answered by a line. It ends with its stdin.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from raw_protocol import (
    ATTACH,
    ATTACHED,
    GRADIENT,
    HEARTBEAT,
    HELLO,
    NONE,
    WANT_PARAMETERS,
    WELCOME,
    endpoint_of,
    header,
    hello,
    message,
    request,
)

FIRST_RANK = 100
PAUSE_S = 0.25
NEVER_S = 3600.0


class Client:
    """One hostile client: what it does until it is told to rest."""

    def __init__(self, address: str, number: int, floats: int) -> None:
        self._endpoint = endpoint_of(address)
        self._rank = FIRST_RANK + number
        self._payload_bytes = 4 * floats
        self._open: list[socket.socket] = []
        self._resting = threading.Event()
        self._kind = KINDS[number % len(KINDS)]

    def run(self) -> None:
        while not self._resting.is_set():
            with contextlib.suppress(OSError, EOFError, AssertionError):
                self._kind(self)
            self._end()
            self.wait(PAUSE_S)

    def rest(self) -> None:
        self._resting.set()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float = NEVER_S) -> None:
        self._resting.wait(seconds)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self._endpoint, timeout=30)
        self._open.append(connection)
        return connection

    def session(self) -> tuple[socket.socket, socket.socket, int]:
        """Return both connections of a session, and its incarnation."""
        control, data = self.connect(), self.connect()
        control.sendall(hello(rank=self._rank))
        kind, welcome = message(control)
        assert kind == WELCOME
        data.sendall(header(ATTACH, 16) + welcome[:16])
        while message(control)[0] != ATTACHED:
            pass
        return control, data, struct.unpack_from("<II", welcome, 16)[1]

    def _end(self) -> None:
        while self._open:
            self._open.pop().close()

    def never_reading(self) -> None:
        _, data, incarnation = self.session()
        pull = request(NONE, flags=WANT_PARAMETERS, incarnation=incarnation)
        for _ in range(64):
            data.sendall(pull)
        self.wait()

    def stopped_in_a_frame(self) -> None:
        _, data, incarnation = self.session()
        head = request(GRADIENT, push=1, payload_bytes=self._payload_bytes, incarnation=incarnation)
        data.sendall(head + bytes(self._payload_bytes // 2))
        self.wait()

    def slow(self) -> None:
        for byte in hello(rank=self._rank):
            self.connect() if not self._open else None
            self._open[0].sendall(bytes([byte]))
            self.wait(0.05)

    def flooding(self) -> None:
        control, _, _ = self.session()
        control.setblocking(False)
        while not self._resting.is_set():
            with contextlib.suppress(BlockingIOError):
                control.send(header(HEARTBEAT, 0) * 1000)
            select.select([], [control], [], PAUSE_S)

    def hello_and_leave(self) -> None:
        self.connect().sendall(hello(rank=self._rank, timeout_s=3600.0))

    def claim_and_silence(self) -> None:
        self.connect().sendall(hello(rank=0, brings=True, timeout_s=3600.0, start=0))
        self.wait()

    def huge_claims(self) -> None:
        self.connect().sendall(header(HELLO, 0xFFFFFFFF) + bytes(1000))
        self._open[0].recv(1000)

    def reconnecting(self) -> None:
        _, data, incarnation = self.session()
        data.sendall(request(NONE, flags=WANT_PARAMETERS, incarnation=incarnation))
        data.recv(1000)


KINDS = [
    Client.never_reading,
    Client.stopped_in_a_frame,
    Client.slow,
    Client.flooding,
    Client.hello_and_leave,
    Client.claim_and_silence,
    Client.huge_claims,
    Client.reconnecting,
]


def main() -> None:
    address, count, floats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.nice(19)  # the processor time that they take themselves is not the server's doing
    clients: list[Client] = []
    threads: list[threading.Thread] = []
    for line in itertools.chain(sys.stdin, ["rest"]):
        if line.strip() == "go":
            clients = [Client(address, number, floats) for number in range(count)]
            threads = [threading.Thread(target=client.run) for client in clients]
            for thread in threads:
                thread.start()
        else:
            for client in clients:
                client.rest()
            for thread in threads:
                thread.join()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
