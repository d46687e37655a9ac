"""Worker processes for the contract tests: started, told what to do, killed; and the cases that tests run over."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import distnet

PUPPET = Path(__file__).parent / "workers" / "puppet.py"
WAIT_S = 60.0
POOL = 4

TRANSPORTS = ["shm", "tcp"]
ADDRESSES = {"shm": "shm://", "tcp": "tcp://127.0.0.1:0"}
# Every semantics with every number of shards that it allows.
SEMANTICS_AND_SHARDS = [
    (name, shards)
    for name in distnet.SEMANTICS
    for shards in (1, 2)
    if shards >= distnet.SEMANTICS[name].minimum_servers
]
over_transports = pytest.mark.parametrize("transport", TRANSPORTS)
over_shards = pytest.mark.parametrize("shards", [1, 2])
over_semantics_and_shards = pytest.mark.parametrize(("semantics", "shards"), SEMANTICS_AND_SHARDS)
over_semantics = pytest.mark.parametrize("semantics", list(distnet.SEMANTICS))
over_async_semantics_and_shards = pytest.mark.parametrize(
    ("semantics", "shards"), [pair for pair in SEMANTICS_AND_SHARDS if distnet.SEMANTICS[pair[0]].joins == "one"]
)


class WorkerError(Exception):
    """What a worker's call raised: its type's name and its message."""

    def __init__(self, name: str, message: str, seconds: float) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.seconds = seconds


class Worker:
    """One worker process, which runs a script of ``workers/``."""

    def __init__(self, script: Path = PUPPET) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._received = b""
        self.seconds = 0.0  # that the last call took
        self.failure = ""  # the name of what it raised
        self.busy = True  # until it says that it is ready

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, call: str, /, **arguments: Any) -> None:
        """Tell it to do something, and return at once."""
        assert self._process.stdin is not None
        if self.busy:
            self.result()
        self._process.stdin.write(json.dumps({"do": call, **arguments}).encode() + b"\n")
        self.busy = True

    def result(self, within_s: float = WAIT_S) -> Any:
        """Wait for what it was told last, and return its result.

        Raises:
            WorkerError: the call raised.
            EOFError: the process is dead.
            TimeoutError: no result in time.
        """
        answer = json.loads(self._line(within_s))
        self.busy = False
        self.seconds = answer.get("seconds", 0.0)
        self.failure = answer.get("error", "")
        if "error" in answer:
            raise WorkerError(answer["error"], answer["message"], self.seconds)
        return answer["result"]

    def do(self, call: str, /, *, within_s: float = WAIT_S, **arguments: Any) -> Any:
        """Tell it to do something, and wait for the result."""
        self.begin(call, **arguments)
        return self.result(within_s)

    def begin_stop(self) -> None:
        """Tell a call that runs until told to end."""
        assert self._process.stdin is not None
        self._process.stdin.write(b'{"do": "nothing"}\n')

    def stopped(self, within_s: float = WAIT_S) -> Any:
        """Return the result of a call that was told to end."""
        result = self.result(within_s)
        self.busy = True
        self.result(within_s)
        return result

    def connect(self, address: str, rank: int | None, transport: str, **arguments: Any) -> dict[str, Any]:
        """Connect, and check that the transport is the one asked for."""
        connected: dict[str, Any] = self.do("connect", address=address, rank=rank, transport=transport, **arguments)
        assert connected["transport"] == transport
        return connected

    def wait_until_it_blocks_in(self, call: str, mark: Path, /, **arguments: Any) -> None:
        """Tell it to do something that waits, and return when it does; a file at `mark` says that the call is next."""
        self.begin(call, mark=str(mark), **arguments)
        wait_until(lambda: mark.exists() and self._sleeps(), f"{call} waits")

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2][0] == "S"

    def has_answered(self) -> bool:
        """Whether the result is there."""
        assert self._process.stdout is not None
        return b"\n" in self._received or bool(select.select([self._process.stdout], [], [], 0)[0])

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, and return when it is dead."""
        self._process.kill()
        self._process.wait(WAIT_S)

    def ended(self) -> bool:
        """Whether the process is dead."""
        return self._process.poll() is not None

    def wait_dead(self) -> int:
        return self._process.wait(WAIT_S)

    def end(self) -> None:
        """End it, by force where it is busy."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self.busy and self._process.poll() is None:
            self._process.kill()
        self._process.stdin.close()
        try:
            self._process.wait(WAIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _line(self, within_s: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + within_s
        while b"\n" not in self._received:
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"worker {self.pid} did not answer within {within_s} s")
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                self.busy = False
                raise EOFError(f"worker {self.pid} is dead")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line


def started(count: int, script: Path = PUPPET) -> list[Worker]:
    """Start workers, and return when they are ready."""
    workers = [Worker(script) for _ in range(count)]
    for worker in workers:
        worker.result()
    return workers


@pytest.fixture(scope="module")
def worker_pool() -> Iterator[list[Worker]]:
    """Workers that the tests of a module use one after another: starting Python takes longer than most of the tests."""
    pool = started(POOL)
    yield pool
    for worker in pool:
        worker.end()


@pytest.fixture
def workers(worker_pool: list[Worker]) -> Iterator[list[Worker]]:
    """Four worker processes; a test does not kill them."""
    yield worker_pool
    for index, worker in enumerate(worker_pool):
        if worker.busy:  # the test failed
            worker.end()
            worker_pool[index] = started(1)[0]
        else:
            worker.do("abandon")


@pytest.fixture
def start_workers() -> Iterator[Callable[[int], list[Worker]]]:
    """Start workers that the test may kill."""
    all_of_them: list[Worker] = []

    def start(count: int) -> list[Worker]:
        new = started(count)
        all_of_them.extend(new)
        return new

    yield start
    for worker in all_of_them:
        worker.end()


def serve(
    parameters: Any, semantics: str | distnet.Semantics, transport: str, shards: int = 1, **arguments: Any
) -> distnet.ParameterServer:
    """Return a server (not started) for one transport, that subtracts what is pushed unless told otherwise."""
    arguments.setdefault("optimizer", distnet.SGD(1.0))
    return distnet.ParameterServer(
        parameters, semantics=semantics, servers=shards, address=ADDRESSES[transport], **arguments
    )


def changed(semantics: str, **changes: Any) -> distnet.Semantics:
    """Return a named semantics with other settings."""
    return dataclasses.replace(distnet.SEMANTICS[semantics], **changes)


def stop_process(pid: int) -> None:
    """Send SIGSTOP and wait until it has taken effect: a thread that is awake runs on for a moment."""

    def all_stopped() -> bool:
        states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(state in "Tt" for state in states)

    os.kill(pid, signal.SIGSTOP)
    wait_until(all_stopped, f"process {pid} is stopped")


def wait_until(condition: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
    """Poll a counter that nobody announces (the server's), and fail where it never becomes what is expected."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {within_s} s")
        select.select([], [], [], 0.002)
