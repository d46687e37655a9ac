"""The other end of a bare exchange over loopback: takes so many bytes and sends them back, again and again.

``python -m distnet.launch.echo BYTES`` prints its port, serves one connection and ends with it.
"""

from __future__ import annotations

import contextlib
import socket
import sys

__all__ = ["exchange", "main", "prepare_socket"]


def prepare_socket(connection: socket.socket) -> None:
    """Set what an honest rival sets: no delay, and a congestion control that does not pace on loopback."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def exchange(connection: socket.socket, outgoing: memoryview, incoming: memoryview) -> None:
    """Send all bytes, then receive as many."""
    connection.sendall(outgoing)
    receive(connection, incoming)


def receive(connection: socket.socket, incoming: memoryview) -> bool:
    """Fill ``incoming``; False where the other end closed instead."""
    received = 0
    while received < len(incoming):
        count = connection.recv_into(incoming[received:])
        if count == 0:
            return False
        received += count
    return True


def main(size_bytes: int) -> None:
    """Serve one connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        connection, _ = listener.accept()
    with connection:
        prepare_socket(connection)
        buffer = memoryview(bytearray(size_bytes))
        while receive(connection, buffer):
            connection.sendall(buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
