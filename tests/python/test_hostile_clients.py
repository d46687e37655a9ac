"""Clients of eight kinds that harm a server as they can, beside two honest workers that keep their rate."""

from __future__ import annotations

import contextlib
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from limited_server import LimitedServer, end_by_closing
from worker_processes import wait_until

PROGRAMS = Path(__file__).parent / "workers"
HOSTILE = 64
FLOATS = 250_000
WAIT_S = 60.0
MARGIN_BYTES = 64 << 20


class Program:
    """A process that answers each line with one."""

    def __init__(self, name: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / name), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def ask(self, what: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what.encode() + b"\n")
        assert select.select([self._process.stdout], [], [], WAIT_S)[0], f"no answer to {what}"
        return self._process.stdout.readline().decode().strip()

    def end(self) -> None:
        end_by_closing(self._process, WAIT_S)
        assert self._process.returncode == 0


@contextlib.contextmanager
def programs(name: str, *arguments: list[str]) -> Iterator[list[Program]]:
    with contextlib.ExitStack() as stack:
        started = [Program(name, *each) for each in arguments]
        for program in started:
            stack.callback(program.end)
        yield started


def watch(server: LimitedServer, workers: list[Program], seconds: float) -> tuple[float, int]:
    """Return the steps a second of both workers together, and the most bytes that the server held."""
    most, begun_s, before = 0, time.monotonic(), sum(int(worker.ask("steps")) for worker in workers)
    while time.monotonic() - begun_s < seconds:
        most = max(most, server.memory_bytes())
        select.select([], [], [], 0.1)
    steps = sum(int(worker.ask("steps")) for worker in workers) - before
    return steps / (time.monotonic() - begun_s), most


@pytest.mark.parametrize(
    ("turns", "turn_s", "kept"),
    [
        pytest.param(2, 2.5, 0.4, marks=pytest.mark.slow, id="10 s"),  # too short to say more on a busy machine
        pytest.param(12, 5.0, 0.9, marks=[pytest.mark.long, pytest.mark.timeout(600)], id="2 min"),
    ],
)
def test_hostile_clients_starve_nobody_and_leave_nothing(turns: int, turn_s: float, kept: float) -> None:
    address = "tcp://127.0.0.1:0"
    with LimitedServer(floats=FLOATS, semantics="async-apply", workers=2, address=address) as server:
        hostile = programs("hostile.py", [server.address, str(HOSTILE), str(FLOATS)])
        honest = programs("honest.py", *([server.address, str(rank)] for rank in range(2)))
        with hostile as (attackers,), honest as workers:
            watch(server, workers, 1.0)  # they have begun
            before = server.descriptors_of_peers(), server.threads()
            bound = server.ask("memory") + MARGIN_BYTES
            ratios, most = [], 0
            for _ in range(turns):
                alone, _ = watch(server, workers, turn_s)
                attackers.ask("go")
                beside, held = watch(server, workers, turn_s)
                attackers.ask("rest")
                ratios.append(beside / alone)
                most = max(most, held)
            print(f"rate kept {statistics.median(ratios):.3f}, most {most >> 20} MiB, bound {bound >> 20} MiB")
            wait_until(lambda: (server.descriptors_of_peers(), server.threads()) == before, "all is given back", 30.0)
            assert most <= bound
            assert statistics.median(ratios) >= kept
