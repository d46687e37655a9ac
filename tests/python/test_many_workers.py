"""Hundreds of workers on one server: at once and in waves, and on a server that has not the descriptors for all."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from limited_server import LimitedServer, end_by_closing

CROWD = Path(__file__).parent / "workers" / "crowd.py"
USUAL_LIMIT = 1024
PROCESSES = 4
WAIT_S = 300.0
how_many = pytest.mark.parametrize(
    "count", [pytest.param(150, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.long)]
)


class Crowd:
    """A part of the workers, in a process of their own."""

    def __init__(self, address: str, transport: str, count: int, first_rank: int) -> None:
        arguments = [address, transport, str(count), str(first_rank)]
        self._process = subprocess.Popen(
            [sys.executable, str(CROWD), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def begin(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(what.encode() + b"\n")

    def result(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], WAIT_S)[0], "the workers have not answered"
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        end_by_closing(self._process, WAIT_S)


@contextlib.contextmanager
def crowds(address: str, transport: str, count: int) -> Iterator[list[Crowd]]:
    share = count // PROCESSES
    started = [Crowd(address, transport, share, share * number) for number in range(PROCESSES)]
    try:
        yield started
    finally:
        for crowd in started:
            crowd.end()


def all_do(started: list[Crowd], what: str) -> list[Any]:
    """Have all parts of the workers do something at once."""
    for crowd in started:
        crowd.begin(what)
    return [crowd.result() for crowd in started]


@contextlib.contextmanager
def serve_command(workers: int) -> Iterator[str]:
    """`distnet serve`, started under the usual soft limit of descriptors; yields its address."""
    command = [sys.executable, "-m", "distnet", "serve", "--address", "tcp://127.0.0.1:0"]
    options = ["--workers", str(workers), "--semantics", "async-apply", "--learning-rate", "1.0", "--json"]
    limited = ["bash", "-c", f'ulimit -Sn {USUAL_LIMIT}; exec "$@"', "bash"]
    process = subprocess.Popen([*limited, *command, *options], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.wait(WAIT_S)
        process.stdout.close()


@how_many
@pytest.mark.timeout(600)
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_hundreds_of_workers_come_at_once_and_in_waves(count: int, transport: str) -> None:
    waves = 3
    with serve_command(waves * count) as address, crowds(address, transport, count) as started:
        for _ in range(waves):
            came = all_do(started, "connect")
            assert [one["why"] for one in came] == [[]] * PROCESSES
            assert sum(one["admitted"] for one in came) == count // PROCESSES * PROCESSES
            assert sum(all_do(started, "train")) == 2 * (count // PROCESSES * PROCESSES)
            all_do(started, "close")


@how_many
@pytest.mark.timeout(600)
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_workers_beyond_the_limit_are_refused_by_name_and_the_rest_train(count: int, transport: str) -> None:
    limit = USUAL_LIMIT * count // 600  # so that it is reached by fewer, too
    with (
        LimitedServer(limit, semantics="async-apply", address="tcp://127.0.0.1:0", workers=count) as server,
        crowds(server.address, transport, count) as started,
    ):
        came = all_do(started, "connect")
        admitted, refused = sum(one["admitted"] for one in came), sum(one["refused"] for one in came)
        assert admitted >= count // 5
        assert refused > 0
        assert all("no file descriptor is left" in why for one in came for why in one["why"])
        assert sum(all_do(started, "train")) == 2 * admitted
        assert server.ask("stats")["applied"] == 2 * admitted
        all_do(started, "close")
