"""Processes that a server's or a worker's process forked: they hold nothing open and keep nobody waiting."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from worker_processes import TRANSPORTS, over_shards, over_transports, serve, wait_until

import distnet
from distnet._private.spawn import python_command
from distnet.shards.owner import ShardProcess

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
SIZE = 1000
# A host of their own: a port that is free for a moment is not taken by another test that runs beside these.
OWN_HOST = "tcp://127.0.0.2:0"
SOON_S = 2.0
WAIT_S = 30.0
over_processes = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])


@contextlib.contextmanager
def forked_child() -> Iterator[int]:
    """A process that this one forked, as multiprocessing does by default, alive within the block."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def model() -> list[np.ndarray]:
    return [np.zeros(SIZE, np.float32)]


def use(server: distnet.ParameterServer, transport: str) -> None:
    """Check that a server serves."""
    with distnet.connect(server.address, rank=0, transport=transport) as client:
        assert set(client.push_pull([np.full(SIZE, -1.0, np.float32)])[0]) <= {0.0, 1.0}


def again_at(address: str, shards: int) -> distnet.ParameterServer:
    """Return a server (not started) at the address of one that is gone."""
    first = address.split(",")[0]
    return distnet.ParameterServer(model(), optimizer=distnet.SGD(1.0), servers=shards, address=first)


def wait_until_gone(pids: list[int], within_s: float) -> list[int]:
    """Wait for the end of processes that are not this one's children; return those still there."""
    until, left = time.monotonic() + within_s, []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
                left.append(pid)
        finally:
            os.close(descriptor)
    return left


@over_transports
@over_shards
@over_processes
def test_a_server_stops_at_once_and_frees_its_address_while_a_forked_child_lives(
    transport: str, shards: int, processes: bool
) -> None:
    with serve(model(), "async-lockfree", transport, shards, processes=processes) as server:
        use(server, transport)
        address = server.address
        with forked_child():
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < SOON_S
            if transport == "shm":
                return  # a name of its own each time
            for endpoint in address.split(","):  # each by itself: ports beside them may be anybody's by now
                with again_at(endpoint, 1) as successor:
                    use(successor, transport)


@over_shards
@over_processes
def test_a_name_is_free_again_while_a_forked_child_lives(shards: int, processes: bool) -> None:
    address = f"shm://forked-{os.getpid()}-{shards}-{processes}"
    first = distnet.ParameterServer(model(), servers=shards, address=address, processes=processes).start()
    with forked_child():
        first.stop()
        with again_at(address, shards) as successor:
            use(successor, "shm")


@over_transports
@over_shards
@over_processes
def test_a_forked_child_ends_nothing_of_its_parents_server(transport: str, shards: int, processes: bool) -> None:
    with serve(model(), "async-lockfree", transport, shards, processes=processes) as server:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                server.stop()
                del server
                gc.collect()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.failures() == []
        assert server.stats()["updates"] == 0
        use(server, transport)


def test_a_forked_child_is_told_that_the_servers_shards_are_not_its_own() -> None:
    with serve(model(), "async-lockfree", "shm", 2, processes=True) as server:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with pytest.raises(distnet.ConfigError, match="fork"):
                    server.stats()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.stats()["updates"] == 0


OWNER = """
import os, signal, sys, numpy as np, distnet
server = distnet.ParameterServer([np.zeros(1000, np.float32)], servers=int(sys.argv[2]), address=sys.argv[1],
                                 processes=sys.argv[3] == "True").start()
client = distnet.connect(server.address, rank=0)
client.push([np.ones(1000, np.float32)])
forked, told = os.pipe()
child = os.fork()
if child == 0:
    os.write(told, b"x")
    signal.alarm(120)
    while True:
        signal.pause()
os.read(forked, 1)  # the child has run, and closed what it closes after a fork
print(server.address, child, *(shard.pid for shard in server._shards if hasattr(shard, "pid")), flush=True)
signal.pause()
"""


@contextlib.contextmanager
def killed_owner(address: str, shards: int, processes: bool) -> Iterator[tuple[str, list[int]]]:
    """The address and the shards' processes of a server whose owner was killed, and whose forked child lives."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, address, str(shards), str(processes)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner.stdout as output:
        said = output.readline()
        owner.kill()
        owner.wait()
        address, child, *pids = said.split()
        try:
            yield address, [int(pid) for pid in pids]
        finally:
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("address", [OWN_HOST, "shm://"], ids=["tcp", "shm"])
@over_shards
def test_shards_end_with_their_owner_while_its_forked_child_lives(address: str, shards: int) -> None:
    if address == "shm://":
        address = f"shm://owned-{os.getpid()}-{shards}"
    with killed_owner(address, shards, processes=True) as (address, pids):
        assert len(pids) == shards
        assert wait_until_gone(pids, SOON_S) == []
        with again_at(address, shards) as successor:
            use(successor, "auto")


@pytest.mark.parametrize("transport", TRANSPORTS)
@over_shards
def test_the_address_of_a_killed_server_is_free_while_its_forked_child_lives(transport: str, shards: int) -> None:
    address = OWN_HOST if transport == "tcp" else f"shm://killed-{os.getpid()}-{shards}"
    with (
        killed_owner(address, shards, processes=False) as (address, _),
        again_at(address, shards) as successor,
    ):
        use(successor, transport)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_of_a_job_is_its_owners_to_act_on(number: signal.Signals) -> None:
    with serve(model(), "async-lockfree", "shm", 2, processes=True) as server:
        for shard in server._shards:
            os.kill(shard.pid, number)
        use(server, "shm")
        assert server.failures() == []
        assert server.parameters()[0].shape == (SIZE,)
        pids = [shard.pid for shard in server._shards]
    assert wait_until_gone(pids, SOON_S) == []


def test_a_shard_whose_owner_died_before_it_could_be_watched_ends() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with subprocess.Popen(python_command("distnet.shards.main", str(dead.pid)), stdin=subprocess.PIPE) as orphan:
        assert orphan.wait(WAIT_S) == 0


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next() -> None:
    with serve(model(), "async-lockfree", "shm", 1, processes=True) as server:
        (shard,) = server._shards
        assert isinstance(shard, ShardProcess)
        shard._process.stdin.write(b'{"stats": true, "number": -1}\n')  # as of a call that Ctrl-C broke off
        wait_until(lambda: bool(select.select([shard._process.stdout.fileno()], [], [], 0)[0]), "the shard answers")
        use(server, "shm")
        assert server.stats()["accepted"] == 1
