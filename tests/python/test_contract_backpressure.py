"""What is accepted and not yet applied is bounded: a pusher waits for a free slot, and memory does not grow."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from worker_processes import Worker, changed, over_semantics_and_shards, over_transports, serve

import distnet

LARGE = 1_000_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
REPLY_FIRST = [("async-locked", 1), ("async-locked", 2), ("async-lockfree", 1), ("async-sharded", 2)]


def resident_bytes() -> int:
    """How much memory this process, and with it the server, has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@over_transports
@pytest.mark.parametrize(("semantics", "shards"), REPLY_FIRST)
@pytest.mark.parametrize("max_inflight", [1, 2, 4])
def test_the_queue_never_holds_more_than_max_inflight_a_session(
    workers: list[Worker], semantics: str, shards: int, transport: str, max_inflight: int
) -> None:
    chosen = changed(semantics, max_inflight=max_inflight)
    pushes, pushers = 8, 3
    with serve(
        [np.zeros(LARGE, np.float32)], chosen, transport, shards, workers=pushers, optimizer=distnet.Adam()
    ) as server:
        for rank, worker in enumerate(workers[:pushers]):
            worker.connect(server.address, rank, transport)
        for worker in workers[:pushers]:
            worker.begin("push_many", value=1.0, pushes=pushes)
        deepest = 0
        while not all(worker.has_answered() for worker in workers[:pushers]):
            for shard in server.stats()["shards"]:
                deepest = max(deepest, shard["queue_depth"])
                behind = [session["accepted"] - session["applied"] for session in shard["sessions"]]
                assert max(behind, default=0) <= max_inflight
        for worker in workers[:pushers]:
            worker.result()
            worker.do("close")
        assert deepest <= pushers * max_inflight
        stats = server.stats()
        assert stats["applied"] == pushes * pushers
        assert stats["queue_depth"] == 0


@over_transports
@over_semantics_and_shards
def test_handles_are_answered_in_the_order_they_were_begun(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros(50_000, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        gradient = [np.full(50_000, -1.0, np.float32)]
        waiting = [client.begin_push_pull(gradient), client.begin_push_pull(gradient)]
        for push in range(3, 20):
            client_before = client.accepted
            cells = waiting.pop(0).wait()[0]
            assert client.accepted > client_before or client.accepted == push
            may_lack = distnet.SEMANTICS[semantics].replies == "before-apply"
            assert cells.min() >= push - 2 - may_lack
            waiting.append(client.begin_push_pull(gradient))
        for handle in waiting:
            handle.wait()
        assert client.accepted == 19
        client.close()
        assert set(server.parameters()[0]) == {19.0}


@over_transports
@over_semantics_and_shards
def test_more_handles_than_max_inflight_are_refused_and_nothing_is_lost(
    semantics: str, shards: int, transport: str
) -> None:
    with serve([np.zeros(100, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        gradient = [np.full(100, -1.0, np.float32)]
        handles = [client.begin_push_pull(gradient), client.begin_push_pull(gradient)]
        with pytest.raises(distnet.ConfigError, match="max_inflight"):
            client.begin_push_pull(gradient)
        for handle in handles:
            handle.wait()
        client.push_pull(gradient)
        client.close()
        assert set(server.parameters()[0]) == {3.0}


@pytest.mark.parametrize("semantics", ["async-apply", "async-locked", "async-lockfree"])
@over_transports
def test_memory_does_not_grow_with_pushes(semantics: str, transport: str) -> None:
    with serve([np.zeros(LARGE, np.float32)], semantics, transport, optimizer=distnet.Adam()) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        gradient = [np.ones(LARGE, np.float32)]
        for _ in range(8):
            client.push_pull(gradient)
        before = resident_bytes()
        for _ in range(40):
            client.push_pull(gradient)
        assert resident_bytes() - before < 3 * gradient[0].nbytes
        client.close()


@over_transports
@over_semantics_and_shards
def test_the_staleness_histogram_counts_every_applied_push(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    pushers, pushes = 3, 30
    with serve([np.zeros(20_000, np.float32)], semantics, transport, shards, workers=pushers) as server:
        for rank, worker in enumerate(workers[:pushers]):
            worker.connect(server.address, rank, transport)
        for worker in workers[:pushers]:
            worker.begin("push_many", value=1.0, pushes=pushes, call="push_pull")
        for worker in workers[:pushers]:
            worker.result()
        states = [worker.do("state") for worker in workers[:pushers]]
        for worker in workers[:pushers]:
            worker.begin("close")
        for worker in workers[:pushers]:
            worker.result()
        stats = server.stats()
        for shard in stats["shards"]:
            assert sum(shard["staleness"]["counts"]) == shard["applied"] == pushers * pushes
        if semantics == "sync":
            assert stats["staleness"]["max"] == 0
        for state in states:
            assert state["accepted"] == pushes
            assert pushes - 2 <= state["applied"] <= pushes
            assert 0 <= state["staleness"] <= stats["staleness"]["max"]
            assert state["version"] == min(state["versions"])


def test_staleness_is_the_updates_between_base_and_application(workers: list[Worker]) -> None:
    first, second = workers[:2]
    with serve([np.zeros(100, np.float32)], "async-apply", "shm") as server:
        first.connect(server.address, 0, "shm")
        second.connect(server.address, 1, "shm")
        first.do("pull")
        second.do("push_many", value=1.0, pushes=5, call="push_pull")
        assert second.do("state")["staleness"] == 0
        first.do("push_full", value=1.0)
        assert first.do("state")["staleness"] == 5
        first.do("push_full", value=1.0)
        assert first.do("state")["staleness"] == 0
        assert server.stats()["staleness"]["max"] == 5
