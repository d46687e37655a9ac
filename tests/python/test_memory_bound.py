"""What ``server.memory()`` says is a bound: over semantics, transports, max_inflight, formats and both roles."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_processes import changed, over_semantics, over_transports, serve

import distnet

SIZE = 300_000  # floats: what is bounded outweighs what is not
WORKERS = 3
OBSERVERS = 2
RSS_SLACK_BYTES = 16 << 20  # that the allocator keeps of what was freed


def held_bytes(server: distnet.ParameterServer) -> int:
    """What the shards hold now, by their own count."""
    return sum(json.loads(shard.memory_json())["held"] for shard in server._shards)


def resident_bytes(server: distnet.ParameterServer) -> int:
    def of(pid: int) -> int:
        (line,) = (text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmRSS:"))
        return int(line.split()[1]) << 10

    pids: list[int] = [shard.pid for shard in server._shards]
    return sum(of(pid) for pid in pids)


def gradient(shards: int = 1) -> list[Any]:
    return [np.full(SIZE, 1e-3, np.float32)] * shards


@contextlib.contextmanager
def everything_at_once(server: distnet.ParameterServer, transport: str, calls: int) -> Iterator[None]:
    """Have every session ask for as much as it may, and let nothing of it go."""
    with contextlib.ExitStack() as stack:

        def connect(rank: int | None) -> distnet.Client:
            client = distnet.connect(server.address, rank=rank, transport=transport)
            stack.callback(client._native.abandon)
            return client

        workers = [connect(rank) for rank in range(WORKERS)]
        observers = [connect(None) for _ in range(OBSERVERS)]
        for client in [*workers, *observers]:
            client.pull(alias=True)  # kept until the next reply is read
        for _ in range(calls):
            for worker in workers:
                worker._native.begin("push_pull", gradient(), False, False)
            for observer in observers:
                observer._native.begin("pull", None, False, False)
        yield


@pytest.mark.parametrize("max_inflight", [1, 2, 16])
@over_transports
@over_semantics
def test_what_is_held_stays_within_the_bound(semantics: str, transport: str, max_inflight: int) -> None:
    with serve(
        gradient(),
        changed(semantics, max_inflight=max_inflight),
        transport,
        shards=max(1, distnet.SEMANTICS[semantics].minimum_servers),
        workers=WORKERS,
        optimizer=distnet.Adam(0.1),
        ema_decay=0.9,
    ) as server:
        with everything_at_once(server, transport, max_inflight):
            bound = server.memory()
            assert held_bytes(server) <= bound["total"] - bound["rest"]
        observers = server.memory(workers=WORKERS, observers=OBSERVERS + 1)  # parameters() is one
        server.parameters(ema=True)
        assert held_bytes(server) <= observers["total"] - observers["rest"]


@pytest.mark.parametrize("formats", [("topk", "float32"), ("int8", "int8"), ("bfloat16", "float16")])
@pytest.mark.parametrize("semantics", ["async-apply", "async-lockfree"])
def test_formats_stay_within_the_bound(semantics: str, formats: tuple[str, str]) -> None:
    push_format, pull_format = formats
    with (
        serve(
            gradient(),
            changed(semantics, max_inflight=4),
            "tcp",
            workers=WORKERS,
            push_format=push_format,
            pull_format=pull_format,
        ) as server,
        everything_at_once(server, "tcp", 4),
    ):
        bound = server.memory()
        assert held_bytes(server) <= bound["total"] - bound["rest"]


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
@over_transports
def test_a_shards_process_stays_within_the_bound(semantics: str, transport: str) -> None:
    with serve(
        gradient(),
        changed(semantics, max_inflight=16),
        transport,
        workers=WORKERS,
        optimizer=distnet.Adam(0.1),
        processes=True,
    ) as server:
        rest = server.memory()["rest"]
        assert resident_bytes(server) <= server.memory()["total"]
        with everything_at_once(server, transport, 16):
            bound = server.memory()
            assert resident_bytes(server) <= bound["total"]
            assert bound["total"] - rest > 17 * 4 * SIZE * WORKERS  # else the test holds nothing


def test_the_bound_follows_the_sessions() -> None:
    with serve(gradient(), "async-apply", "shm", workers=WORKERS) as server:
        alone = server.memory()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(distnet.connect(server.address, transport="shm"))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", distnet.DistNetWarning)  # ranks beyond workers=
            for rank in range(WORKERS + 2):
                stack.enter_context(distnet.connect(server.address, rank=rank, transport="shm"))
            assert server.memory() == server.memory(workers=WORKERS + 2, observers=4)
        assert server.memory()["total"] > alone["total"]  # what was needed once is kept
        assert server.memory(workers=WORKERS, observers=1) == alone
