"""A rank that joins a synchronous job that runs: its first push counts, and shards never part."""

from __future__ import annotations

import os

import numpy as np
import pytest
from worker_processes import Worker, changed, over_shards, over_transports, serve, wait_until

import distnet


def join_again_and_again(
    busy: Worker, transport: str, shards: int, *, size: int = 100, joins: int = 30, on_loss: str = "shrink"
) -> None:
    """Have rank 1 join a job that rank 0 keeps running, push once and leave, and check that every push counts."""
    semantics = changed("sync", reduction="sum", on_loss=on_loss)
    with serve([np.zeros(size, np.float32)], semantics, transport, shards, workers=2) as server:
        with distnet.connect(server.address, rank=1, transport=transport):
            busy.connect(server.address, 0, transport)
        busy.begin("push_until_told", value=-1.0)  # does not wait for rank 1, which has been there and is done
        wait_until(lambda: server.stats()["updates"] > 3, "rounds go on")
        for _ in range(joins):
            with distnet.connect(server.address, rank=1, transport=transport) as client:
                client.push([np.full(size, -1.0, np.float32)])
                assert client.applied == 1
        busy.begin_stop()
        pushes = busy.stopped()
        assert set(server.parameters()[0]) == {float(pushes + joins)}
        stats = server.stats()
        assert stats["refused"] == 0
        assert len({shard["updates"] for shard in stats["shards"]}) == 1


@over_transports
@over_shards
def test_the_first_push_of_a_rank_that_joins_is_never_refused(
    workers: list[Worker], transport: str, shards: int
) -> None:
    join_again_and_again(workers[0], transport, shards)


@pytest.mark.slow
@over_transports
@over_shards
def test_the_first_push_to_a_large_model_is_not_refused_either(
    workers: list[Worker], transport: str, shards: int
) -> None:
    join_again_and_again(workers[0], transport, shards, size=4_000_000, joins=8)


@over_transports
@over_shards
@pytest.mark.parametrize("on_loss", ["abort", "wait"])
def test_the_orderly_end_of_a_session_is_no_loss_of_the_next(
    workers: list[Worker], transport: str, shards: int, on_loss: str
) -> None:
    join_again_and_again(workers[0], transport, shards, on_loss=on_loss)


@over_transports
@over_shards
def test_ranks_that_come_and_go_all_the_time_are_never_refused(
    workers: list[Worker], transport: str, shards: int
) -> None:
    times = 20
    semantics = changed("sync", reduction="sum")
    with serve([np.zeros(100, np.float32)], semantics, transport, shards, workers=3) as server:
        for rank, worker in enumerate(workers[:3]):
            arguments = {"address": server.address, "rank": rank, "transport": transport}
            worker.begin("come_and_go", times=times, value=-1.0, **arguments)
        for worker in workers[:3]:
            worker.result()
        assert set(server.parameters()[0]) == {3.0 * times}
        assert server.stats()["refused"] == 0


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_shards_count_the_same_rounds_also_for_a_client_that_was_there_first(
    workers: list[Worker], processes: bool
) -> None:
    """A round that ended before the shards knew each other would part them for good."""
    eager = workers[0]
    for attempt in range(5):
        address = f"shm://early-{os.getpid()}-{processes}-{attempt}"
        server = distnet.ParameterServer(
            [np.zeros(100, np.float32)],
            semantics="sync",
            optimizer=distnet.SGD(1.0),
            servers=2,
            address=address,
            processes=processes,
        )
        eager.begin("push_as_soon_as_possible", address=address, rank=0, transport="shm", push_value=-1.0, pushes=5)
        with server:
            assert eager.result() == [[float(push), push, push] for push in range(1, 6)]
