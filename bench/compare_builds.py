"""Two builds of DistNet against each other, in turns: does a change cost speed?

Each build is a Python with that build installed (a virtual environment of its own). For every row and turn, a server
process and a client of each build start anew, live side by side, and are measured one after the other, a short group
each. What counts is the ratio of the two groups of a turn: what else the machine does hits both alike, and where the
kernel happens to place the processes differs from turn to turn. A row is slower where the 95 % interval of its ratio
lies wholly above the limit.

A row that names no optimizer has SGD. Rows whose call is ``apply`` measure a store by itself, in the build's own
process: one update with a gradient that the caller holds.

Example: ``python bench/compare_builds.py --old old/bin/python --new .venv/bin/python --rounds 20``
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT = 1.03
SIZES = {"4 KiB": 1_024, "AlexNet": 1_068_298, "ResNet-50": 25_557_032}
GROUP_SECONDS = {"4 KiB": 0.15, "AlexNet": 0.4, "ResNet-50": 0.8}
TRANSPORTS = {"shm": "shm://", "tcp": "tcp://127.0.0.1:0"}
STORES = {"mutex": "MutexStore", "lock-free": "LockFreeStore"}
# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal one is close enough.
T_95 = {14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086, 24: 2.064, 29: 2.045, 39: 2.023}


def rows(chosen: str) -> list[dict[str, str]]:
    """Return what is measured: semantics, transport, size and call."""
    every = [
        {"semantics": semantics, "transport": transport, "size": size, "call": call}
        for size in SIZES
        for semantics in ("sync", "async-apply", "async-locked", "async-lockfree", "async-sharded")
        for transport in TRANSPORTS
        for call in ("push_pull", "push", "pull")
        if call == "push_pull" or (size == "AlexNet" and semantics in ("async-apply", "async-lockfree"))
    ]
    # Adam keeps state, so a version is not begun before the whole gradient is known to be finite.
    every += [
        {"semantics": "async-apply", "transport": transport, "size": size, "call": "push_pull", "optimizer": "Adam"}
        for size in ("AlexNet", "ResNet-50")
        for transport in TRANSPORTS
    ]
    every += [
        {"size": size, "transport": guard, "semantics": optimizer, "call": "apply"}
        for size in ("AlexNet", "ResNet-50")
        for guard in STORES
        for optimizer in ("SGD", "Adam")
    ]
    return [row for row in every if chosen in name_of(row)]


def name_of(row: dict[str, str]) -> str:
    """Return a row's name as it is printed."""
    return " ".join(row[part] for part in ("size", "transport", "semantics", "call", "optimizer") if part in row)


def time_groups(row: dict[str, str], call: Callable[[], Any]) -> Iterator[int]:
    """Measure a group whenever a line comes in, and say its median in microseconds. Yields how many calls it made."""
    for _ in sys.stdin:
        until = time.perf_counter() + GROUP_SECONDS[row["size"]]
        taken: list[float] = []
        while time.perf_counter() < until or len(taken) < 5:
            before = time.perf_counter()
            call()
            taken.append(time.perf_counter() - before)
        yield len(taken)
        print(statistics.median(taken) * 1e6, flush=True)


def apply_groups(row: dict[str, str]) -> None:
    """Be one build's store."""
    import numpy as np

    import distnet

    floats = SIZES[row["size"]]
    store = getattr(distnet, STORES[row["transport"]])(
        np.zeros(floats, np.float32), getattr(distnet, row["semantics"])(1e-3)
    )
    gradient = np.full(floats, 1e-3, np.float32)
    updates = 0
    for calls in time_groups(row, lambda: store.apply(gradient)):
        updates += calls
        if store.version != updates:
            raise SystemExit(f"{store.version} updates were applied of {updates}")


def serve_groups(row: dict[str, str]) -> None:
    """Be one build's server and client."""
    import numpy as np

    import distnet

    floats = SIZES[row["size"]]
    with (
        distnet.ParameterServer(
            [np.zeros(floats, np.float32)],
            semantics=row["semantics"],
            optimizer=getattr(distnet, row.get("optimizer", "SGD"))(1e-3),
            address=TRANSPORTS[row["transport"]],
            processes=True,
        ) as server,
        distnet.connect(server.address, rank=0, transport=row["transport"]) as client,
    ):
        gradients = [np.full(floats, 1e-3, np.float32)]
        call: Callable[[], Any] = {
            "push_pull": lambda: client.push_pull(gradients),
            "push": lambda: client.push(gradients),
            "pull": client.pull,
        }[row["call"]]
        pushes = 0
        for calls in time_groups(row, call):
            pushes += calls if row["call"] != "pull" else 0
            accepted = client.accepted if row["call"] != "pull" else 0
            if accepted != pushes:
                raise SystemExit(f"{accepted} pushes were accepted of {pushes}")


class Build:
    """One build's process for one row."""

    def __init__(self, python: Path, row: dict[str, str]) -> None:
        command = [str(python), str(Path(__file__).resolve()), "--measure", json.dumps(row)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def group(self) -> float:
        """Measure a group; return its median in microseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """End it in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def compare(row: dict[str, str], old: Path, new: Path, rounds: int) -> dict[str, Any]:
    """Measure a row; return both medians, the ratio's geometric mean and its 95 % interval."""
    times: list[list[float]] = [[], []]
    for turn in range(rounds):
        builds = [Build(old, row), Build(new, row)]
        try:
            for build in builds:
                build.group()  # warm
            for which in (0, 1) if turn % 2 == 0 else (1, 0):
                times[which].append(builds[which].group())
        finally:
            for build in builds:
                build.end()
    logs = [math.log(new_us / old_us) for old_us, new_us in zip(*times, strict=True)]
    mean, spread = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(rounds)
    reach = T_95.get(rounds - 1, 2.0) * spread
    return {
        "row": name_of(row),
        "old_us": statistics.median(times[0]),
        "new_us": statistics.median(times[1]),
        "ratio": math.exp(mean),
        "low": math.exp(mean - reach),
        "high": math.exp(mean + reach),
    }


def main() -> int:
    """Compare, print a line a row, and return 1 where a row is slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="the Python of the build before")
    parser.add_argument("--new", type=Path, help="the Python of the build after")
    parser.add_argument("--rounds", type=int, default=16, help="turns of each row (at least 15)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        row = json.loads(arguments.measure)
        (apply_groups if row["call"] == "apply" else serve_groups)(row)
        return 0
    found = []
    for row in rows(arguments.only):
        result = compare(row, arguments.old, arguments.new, max(15, arguments.rounds))
        found.append(result)
        verdict = "SLOWER" if result["low"] > LIMIT else ""
        print(
            f"{result['row']:44} {result['old_us']:9.1f} {result['new_us']:9.1f} µs   "
            f"{result['ratio']:.3f} [{result['low']:.3f}, {result['high']:.3f}] {verdict}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(result["low"] > LIMIT for result in found))


if __name__ == "__main__":
    sys.exit(main())
