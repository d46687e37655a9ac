"""Every accepted push is settled exactly once: sums of ones come out exact, from real processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from worker_processes import (
    Worker,
    changed,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
)

import distnet
from distnet._private.arrays import Arrays

WORKERS = 3
PUSHES = 40
SIZE = 40_001  # several chunks of a lock-free store, and several pages for each shard
SHARED = SIZE - 1


def model() -> list[np.ndarray]:
    """Zeros in several tensors, one of them empty and one a scalar."""
    return [np.zeros(shape, np.float32) for shape in ((100, 200), (0, 3), (19_000,), (), (1000,))]


def cells_of(rank: int) -> list[int]:
    """Cells that only this rank's pushes touch, one a push, spread over the whole vector."""
    return [(rank + WORKERS * push) * (SIZE // (WORKERS * PUSHES)) for push in range(PUSHES)]


def flattened(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def push_all(workers: list[Worker], server: distnet.ParameterServer, transport: str, call: str) -> list[dict[str, int]]:
    """Have all workers push once to each of their cells at the same time; return what each saw."""
    for rank, worker in enumerate(workers):
        worker.connect(server.address, rank, transport)
    for rank, worker in enumerate(workers):
        worker.begin("push_cells", cells=cells_of(rank), shared=SHARED, call=call)
    return [worker.result() for worker in workers]


def close_all(workers: list[Worker]) -> None:
    """Close at the same time, as the workers of a job do."""
    for worker in workers:
        worker.begin("close")
    for worker in workers:
        worker.result()


def assert_sums(server: distnet.ParameterServer, share: float = 1.0) -> None:
    """Each cell was pushed to once, the shared one by all, a rank's part of a round counting `share`."""
    result = flattened(server.parameters())
    expected = np.zeros(SIZE, np.float32)
    expected[[cell for rank in range(WORKERS) for cell in cells_of(rank)]] = share
    expected[SHARED] = np.round(WORKERS * PUSHES * share)
    np.testing.assert_array_equal(result, expected)


@over_transports
@over_semantics_and_shards
@pytest.mark.parametrize("call", ["push_pull", "push"])
def test_every_push_is_applied_exactly_once(
    workers: list[Worker], semantics: str, shards: int, transport: str, call: str
) -> None:
    sync = semantics == "sync"
    chosen = changed("sync", reduction="sum") if sync else semantics
    with serve(model(), chosen, transport, shards, workers=WORKERS) as server:
        saw = push_all(workers[:WORKERS], server, transport, call)
        newest_may_lack = distnet.SEMANTICS[semantics].replies == "before-apply"
        assert all(each["lag"] <= newest_may_lack for each in saw), "a reply lacks its worker's own pushes"
        assert [each["accepted"] for each in saw] == [PUSHES] * WORKERS
        close_all(workers[:WORKERS])
        assert_sums(server)
        stats = server.stats()
        pushes = WORKERS * PUSHES
        assert (stats["accepted"], stats["applied"], stats["refused"]) == (pushes, pushes, 0)
        assert stats["queue_depth"] == 0
        assert stats["workers_done"] == WORKERS
        assert stats["updates"] == (PUSHES if sync else pushes)
        for shard in stats["shards"]:
            assert (shard["applied"], sum(shard["staleness"]["counts"])) == (pushes, pushes)


@over_transports
@over_shards
def test_a_synchronous_mean_counts_each_push_for_its_share(workers: list[Worker], transport: str, shards: int) -> None:
    with serve(model(), "sync", transport, shards, workers=2) as server:
        for rank, worker in enumerate(workers[:2]):
            worker.connect(server.address, rank, transport)
        for rank, worker in enumerate(workers[:2]):
            worker.begin("push_cells", cells=cells_of(rank), shared=SHARED)
        assert [worker.result()["lag"] for worker in workers[:2]] == [0, 0]
        close_all(workers[:2])
        result = flattened(server.parameters())
    expected = np.zeros(SIZE, np.float32)
    expected[[cell for rank in range(2) for cell in cells_of(rank)]] = 0.5
    expected[SHARED] = PUSHES
    np.testing.assert_array_equal(result, expected)


@over_transports
@over_semantics_and_shards
def test_a_closed_client_has_all_its_pushes_in_the_parameters(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards) as server:
        for rank in range(5):
            client = distnet.connect(server.address, rank=0, transport=transport)
            for _ in range(3):
                client.push([np.full(SIZE, -1.0, np.float32)])
            client.close()
            np.testing.assert_array_equal(server.parameters()[0], np.full(SIZE, 3.0 * (rank + 1), np.float32))


@over_transports
@over_semantics_and_shards
def test_parameters_hold_every_push_accepted_before_the_call(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros(SIZE, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        for push in range(1, 11):
            client.push([np.full(SIZE, -1.0, np.float32)])
            assert client.accepted == push
            assert set(server.parameters()[0]) == {np.float32(push)}
        client.close()


@over_transports
@pytest.mark.parametrize("semantics", ["async-locked", "async-lockfree", "async-sharded"])
def test_a_stop_drains_what_was_accepted(workers: list[Worker], semantics: str, transport: str) -> None:
    shards = distnet.SEMANTICS[semantics].minimum_servers
    store = np.zeros(300_001, np.float32)
    server = serve([store], semantics, transport, shards, optimizer=distnet.Adam(0.001), workers=2).start()
    try:
        for rank, worker in enumerate(workers[:2]):
            worker.connect(server.address, rank, transport)
        for worker in workers[:2]:
            worker.do("push_full", value=-1.0, call="push")
            worker.do("push_full", value=-1.0, call="push")
        natives = [shard._native for shard in server._shards]
    finally:
        server.stop()
    for native in natives:
        stats = json.loads(native.stats_json())
        assert stats["accepted"] == stats["applied"] == stats["updates"] == 4
        assert stats["queue_depth"] == 0
