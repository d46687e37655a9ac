"""Another user of this host who takes a server's name first is told nothing: no gradient, no model, no question."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

import numpy as np
import pytest
from network_proxy import Proxy
from raw_protocol import PROBE_REPLY, header
from worker_processes import serve

import distnet

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user")
WAIT_S = 60.0
MODEL = [np.zeros(1000, np.float32)]
# Takes the name, and prints what each of the first peers says.
SQUATTER = """
import os, socket, sys
os.setgid(65534), os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(b"\\0distnet/" + sys.argv[1].encode())
listener.listen()
print(flush=True)
for _ in range(int(sys.argv[2])):
    peer, _ = listener.accept()
    if len(sys.argv) > 3:
        peer.sendall(bytes.fromhex(sys.argv[3]))
    said = b""
    while chunk := peer.recv(1 << 16):
        said += chunk
    print(said.hex(), flush=True)
"""


class Squatter:
    """A process of another user that listens at a name, and answers whatever it is asked with `answer`."""

    def __init__(self, name: str, peers: int, answer: bytes = b"") -> None:
        arguments = [name, str(peers), *([answer.hex()] if answer else [])]
        self._process = subprocess.Popen([sys.executable, "-c", SQUATTER, *arguments], stdout=subprocess.PIPE)
        self.heard()

    def heard(self) -> bytes:
        """Return what the next peer said until it left."""
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], WAIT_S)[0]
        return bytes.fromhex(self._process.stdout.readline().decode())

    def __enter__(self) -> Squatter:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def directory_of(address: str) -> bytes:
    """Return the answer to a probe that sends the client elsewhere."""
    text = address.encode()
    payload = bytes(16) + (0).to_bytes(4, "little") + len(text).to_bytes(4, "little") + text
    return header(PROBE_REPLY, len(payload)) + payload


def test_a_client_says_nothing_to_another_users_server() -> None:
    name = f"squatted-{os.getpid()}"
    with Squatter(name, peers=1) as squatter:
        with pytest.raises(distnet.Unauthorized, match="another user"):
            distnet.connect(f"shm://{name}", rank=0, parameters=MODEL)
        assert squatter.heard() == b""


def test_a_client_does_not_go_where_another_users_server_sends_it() -> None:
    name = f"squatted-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        answer = directory_of(f"tcp://127.0.0.1:{elsewhere.getsockname()[1]}")
        with Squatter(name, peers=1, answer=answer), pytest.raises(distnet.Unauthorized):
            distnet.connect(f"shm://{name}", rank=0)
        assert select.select([elsewhere], [], [], 0)[0] == []


def test_a_client_of_two_addresses_brings_no_share_of_the_model_to_another_users_server() -> None:
    name = f"squatted-{os.getpid()}"
    with serve(None, "async-lockfree", "shm", 2) as server, Squatter(name, peers=1) as squatter:
        first = server.address.split(",")[0]
        with pytest.raises(distnet.Unauthorized):
            distnet.connect(f"{first},shm://{name}", rank=0, parameters=MODEL)
        assert squatter.heard() == b""


def test_a_client_of_a_tcp_server_whose_local_name_is_squatted_goes_on_by_tcp() -> None:
    name = f"squatted-{os.getpid()}"
    with (
        serve(MODEL, "async-apply", "tcp") as server,
        Squatter(name, peers=1) as squatter,
        Proxy(server.address, local_name=name) as proxy,
    ):
        with distnet.connect(proxy.address, rank=0) as client:
            assert client.transport == "tcp"
            client.pull()
        assert squatter.heard() == b""
