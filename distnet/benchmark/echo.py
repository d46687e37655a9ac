"""The other end of a bare exchange: takes so many bytes over a socket and sends them back, again and again.

``python -m distnet.benchmark.echo BYTES tcp|unix`` prints where it listens, serves one connection and ends with it.
"""

from __future__ import annotations

import contextlib
import socket
import sys

__all__ = ["connect", "exchange", "main", "prepare_socket", "receive"]


def prepare_socket(connection: socket.socket) -> None:
    """Set what an honest rival sets: no delay, and a congestion control that does not pace on loopback."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def connect(place: str) -> socket.socket:
    """Connect to what the other end printed: a port, or a name of Linux's abstract Unix sockets in hexadecimal."""
    kind, _, where = place.partition(" ")
    if kind == "tcp":
        connection = socket.create_connection(("127.0.0.1", int(where)), timeout=30.0)
    else:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30.0)
        connection.connect(bytes.fromhex(where))
    prepare_socket(connection)
    return connection


def exchange(connection: socket.socket, outgoing: memoryview, incoming: memoryview) -> None:
    """Send all bytes, then receive as many."""
    connection.sendall(outgoing)
    if not receive(connection, incoming):
        raise ConnectionError("the other end of the bare exchange closed it")


def receive(connection: socket.socket, incoming: memoryview) -> bool:
    """Fill ``incoming``; False where the other end closed instead."""
    received = 0
    while received < len(incoming):
        count = connection.recv_into(incoming[received:])
        if count == 0:
            return False
        received += count
    return True


def main(size_bytes: int, kind: str) -> None:
    """Serve one connection."""
    with _listener(kind) as listener:
        where = str(listener.getsockname()[1]) if kind == "tcp" else listener.getsockname().hex()
        sys.stdout.write(f"{kind} {where}\n")
        sys.stdout.flush()
        connection, _ = listener.accept()
    with connection:
        prepare_socket(connection)
        buffer = memoryview(bytearray(size_bytes))
        while receive(connection, buffer):
            connection.sendall(buffer)


def _listener(kind: str) -> socket.socket:
    if kind == "tcp":
        return socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # Linux chooses an abstract name, which leaves no file behind
    listener.listen(1)
    return listener


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
