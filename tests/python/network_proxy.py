"""A network that fails as a test wishes: stands between clients and the shards of a TCP server.

It forwards each connection, tells a client its own endpoints instead of the server's, and knows which connections carry
control messages and which carry data.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
from types import TracebackType

from raw_protocol import ATTACH, HEADER, HELLO, PROBE, PROBE_REPLY, endpoint_of, header, received

WAIT_S = 30.0


class Link:
    """One forwarded connection.

    Attributes:
        role: ``"control"``, or ``"data"``.
        shard: the shard it leads to.
        corruption: what the client's bytes are damaged by on their way: bytes to look for, and those in their place.
    """

    def __init__(
        self, role: str, shard: int, client: socket.socket, server: socket.socket, bytes_per_s: float | None
    ) -> None:
        self.role, self.shard = role, shard
        self._bytes_per_s = bytes_per_s
        self._client, self._server = client, server
        self._silent = False
        self.corruption: tuple[bytes, bytes] | None = None
        self.forwarded_bytes = 0  # of the client

    def cut(self) -> None:
        """End it on both sides."""
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def end_on_the_side_of(self, side: str) -> None:
        """End it for the ``"server"`` or the ``"client"`` only; the other side sees an open, silent connection."""
        self._silent = True
        with contextlib.suppress(OSError):
            (self._server if side == "server" else self._client).shutdown(socket.SHUT_RDWR)

    def fall_silent(self) -> None:
        """Keep it open, and lose what is sent from now on."""
        self._silent = True

    def forward(self, source: socket.socket) -> None:
        """Pass on what comes from one end, until it has no more to say."""
        target = self._server if source is self._client else self._client
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 13):
                if source is self._client and self.corruption is not None:
                    data = data.replace(*self.corruption)
                if not self._silent:
                    target.sendall(data)
                if source is self._client:
                    self.forwarded_bytes += len(data)
                if self._bytes_per_s is not None:
                    select.select([], [], [], len(data) / self._bytes_per_s)
            if not self._silent:
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._silent = True
        self.cut()
        self._client.close()
        self._server.close()


class Proxy:
    """Forwards to all shards of a server, in a ``with`` statement.

    Args:
        address: the server's.
        bytes_per_s: what each connection carries in either direction; None: as much as it can.
        local_name: what the servers are said to be called on their host; None: as they say.
        said_first: control messages that a client hears before the server's answer to its hello.

    Attributes:
        address: what a client connects to instead of the server's address.
    """

    def __init__(
        self, address: str, bytes_per_s: float | None = None, local_name: str | None = None, said_first: bytes = b""
    ) -> None:
        self._targets = address.split(",")
        self._local_name = local_name
        self._said_first = said_first
        self._bytes_per_s = bytes_per_s
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in self._targets]
        if bytes_per_s is not None:  # a slow link holds little
            for listener in self._listeners:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self.address = ",".join(f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in self._listeners)
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()

    def links(self, role: str, count: int) -> list[Link]:
        """Return the newest link of a role to each shard, in the order of shards, once there are so many of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._of(role)) >= count, WAIT_S), f"no {count} {role} links"
            newest = {link.shard: link for link in self._of(role)}
        return [newest[shard] for shard in sorted(newest)]

    def __enter__(self) -> Proxy:
        for shard in range(len(self._targets)):
            self._start(self._accept, shard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for started in itertools.count():  # a thread that is being joined may have started another
            if started == len(self._threads):
                break
            with self._changed:
                links = list(self._links)
            for link in links:
                link.cut()
            self._threads[started].join(WAIT_S)
        for link in self._links:
            link.close()

    def _of(self, role: str) -> list[Link]:
        return [link for link in self._links if link.role == role]

    def _start(self, run: object, *arguments: object) -> None:
        assert callable(run)
        thread = threading.Thread(target=run, args=arguments, name="proxy")
        self._threads.append(thread)
        thread.start()

    def _accept(self, shard: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listeners[shard].accept()
                self._start(self._connect, shard, client)

    def _connect(self, shard: int, client: socket.socket) -> None:
        try:
            first = received(client, HEADER.size)
            _, _, kind, count = HEADER.unpack(first)
            first += received(client, count)
            server = socket.create_connection(endpoint_of(self._targets[shard]), timeout=WAIT_S)
            server.settimeout(None)
        except (EOFError, OSError):
            client.close()
            return
        link = Link("data" if kind == ATTACH else "control", shard, client, server, self._bytes_per_s)
        with self._changed:
            self._links.append(link)
            self._changed.notify_all()
        with contextlib.suppress(OSError, EOFError):
            if kind == HELLO:
                client.sendall(self._said_first)
            server.sendall(first)
            if kind == PROBE:
                client.sendall(self._with_own_endpoints(server))
        self._start(link.forward, server)
        link.forward(client)

    def _with_own_endpoints(self, server: socket.socket) -> bytes:
        """Return the server's answer to a probe with the proxy's endpoints for its own."""
        head = received(server, HEADER.size)
        _, version, kind, count = HEADER.unpack(head)
        payload = received(server, count)
        if kind != PROBE_REPLY:
            return head + payload
        (name_bytes,) = struct.unpack_from("<I", payload, 16)
        directory = self.address.encode()
        kept = payload[: 20 + name_bytes]
        if self._local_name is not None:
            name = self._local_name.encode()
            kept = payload[:16] + struct.pack("<I", len(name)) + name
        changed = kept + struct.pack("<I", len(directory)) + directory
        return header(PROBE_REPLY, len(changed), version=version) + changed
