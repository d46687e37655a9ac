"""What a reply may hold: one version where the contract says so, whole floats everywhere, the worker's own pushes.

Writers push -1 into every cell, so a cell's value is the number of updates that it saw: its shard's version.
"""

from __future__ import annotations

import numpy as np
import pytest
from worker_processes import SEMANTICS_AND_SHARDS, Worker, over_semantics_and_shards, over_transports, serve

import distnet

SMALL = 100
CHUNK = 16 * 1024
LARGE = 5 * CHUNK + 17
HUGE = 60 * CHUNK + 17  # updates long enough to be met half way, also on one busy core
ONE_VERSION = [case for case in SEMANTICS_AND_SHARDS if distnet.SEMANTICS[case[0]].guard == "mutex"]
MAY_MIX = [case for case in SEMANTICS_AND_SHARDS if distnet.SEMANTICS[case[0]].guard == "lock-free"]
WRITERS = READERS = 2
# (pulls a reader, size): up to twenty thousand pulls a case beside every commit, a million in all where there is time.
TIER = [(10_000, SMALL), (300, LARGE)]
LONG_TIER = [
    pytest.param(75_000, SMALL, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    pytest.param(5_000, LARGE, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


def start_writers(workers: list[Worker], address: str, transport: str, **arguments: object) -> None:
    """Have two workers push until told, as ranks 0 and 1."""
    for rank, worker in enumerate(workers[:WRITERS]):
        worker.connect(address, rank, transport)
    for worker in workers[:WRITERS]:
        worker.begin("push_until_told", **arguments)


def stop_writers(workers: list[Worker]) -> int:
    """End the writers of `start_writers` together, and return how often they pushed."""
    for worker in workers[:WRITERS]:
        worker.begin_stop()
    return sum(worker.stopped() for worker in workers[:WRITERS])


@over_transports
@pytest.mark.parametrize(("semantics", "shards"), ONE_VERSION)
@pytest.mark.parametrize(("pulls", "size"), [*TIER, *LONG_TIER])
def test_a_pull_is_one_version_of_each_shard(
    workers: list[Worker], semantics: str, shards: int, transport: str, pulls: int, size: int
) -> None:
    with serve([np.zeros(size, np.float32)], semantics, transport, shards, workers=WRITERS) as server:
        start_writers(workers, server.address, transport)
        for reader in workers[WRITERS:]:
            reader.connect(server.address, None, transport)
            reader.begin("pull_and_compare", pulls=pulls)
        seen = [reader.result(within_s=100) for reader in workers[WRITERS:]]
        pushes = stop_writers(workers)
        assert [each["mixed"] for each in seen] == [0] * READERS
        assert all(each["distinct"] > 20 for each in seen), "the writers hardly wrote: the test is blind"
        assert pushes > 20


@over_transports
@pytest.mark.parametrize(("semantics", "shards"), ONE_VERSION)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_reply_to_a_push_is_one_version_of_each_shard(
    workers: list[Worker], semantics: str, shards: int, transport: str, size: int
) -> None:
    with serve([np.zeros(size, np.float32)], semantics, transport, shards, workers=3) as server:
        for rank, worker in enumerate(workers[:3]):
            worker.connect(server.address, rank, transport)
        for worker in workers[:3]:
            worker.begin("push_and_compare", pushes=200)
        assert [worker.result()["mixed"] for worker in workers[:3]] == [0, 0, 0]


@over_transports
@pytest.mark.parametrize(("semantics", "shards"), MAY_MIX)
def test_where_versions_may_mix_some_do_and_no_float_is_torn(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    third = np.float32(1 / 3)
    allowed = {int((third * np.float32(k)).view(np.uint32)) for k in range(-WRITERS, WRITERS + 1)}
    allowed |= {0x80000000}  # minus nought
    with serve([np.zeros(HUGE, np.float32)], semantics, transport, shards, workers=WRITERS) as server:
        start_writers(workers, server.address, transport, value=float(third), toggle=True)
        for reader in workers[WRITERS:]:
            reader.connect(server.address, None, transport)
        mixed = 0
        patterns: set[int] = set()
        for _ in range(40):
            for reader in workers[WRITERS:]:
                reader.begin("pull_and_collect", pulls=50)
            for reader in workers[WRITERS:]:
                seen = reader.result()
                mixed += seen["mixed"]
                patterns.update(seen["patterns"])
            if mixed > 5:
                break
        pushes = stop_writers(workers)
        assert pushes > 20
        assert mixed > 0, "no reply mixed versions: the test is blind"
        assert patterns <= allowed, "a float was torn"
        assert len(patterns) > 1


@over_transports
@over_semantics_and_shards
def test_replies_hold_a_workers_own_pushes(semantics: str, shards: int, transport: str) -> None:
    may_lack = distnet.SEMANTICS[semantics].replies == "before-apply"
    with serve([np.zeros(LARGE, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        for push in range(1, 101):
            cells = client.push_pull([np.full(LARGE, -1.0, np.float32)])[0]
            assert push - may_lack <= cells.min() <= cells.max() <= push
            assert push - may_lack <= client.applied <= client.accepted == push
        client.close()


@over_transports
@pytest.mark.parametrize(("semantics", "shards"), ONE_VERSION)
def test_an_aliased_pull_is_one_version_until_the_next_call(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    with serve([np.zeros(LARGE, np.float32)], semantics, transport, shards, workers=WRITERS) as server:
        start_writers(workers, server.address, transport)
        for reader in workers[WRITERS:]:
            reader.connect(server.address, None, transport)
            reader.begin("pull_and_compare", pulls=300, alias=True)
        seen = [reader.result() for reader in workers[WRITERS:]]
        stop_writers(workers)
        assert [each["mixed"] for each in seen] == [0] * READERS
        assert all(each["distinct"] > 10 for each in seen)


@over_transports
@over_semantics_and_shards
def test_aliased_arrays_cannot_be_written(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros((4, 5), np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        for arrays in (client.pull(alias=True), client.push_pull([np.zeros((4, 5), np.float32)], alias=True)):
            assert not arrays[0].flags.writeable
            assert arrays[0].shape == (4, 5)
            with pytest.raises(ValueError, match="read-only"):
                arrays[0][0, 0] = 1.0
        client.close()


def test_many_aliased_versions_held_by_many_clients_stay_what_they_were() -> None:
    with serve([np.zeros(LARGE, np.float32)], "async-apply", "shm") as server:
        pusher = distnet.connect(server.address, rank=0, transport="shm")
        readers = [distnet.connect(server.address, transport="shm") for _ in range(8)]
        held = []
        for version, reader in enumerate(readers):
            held.append(reader.pull(alias=True)[0])
            assert reader.version == version
            pusher.push([np.full(LARGE, -1.0, np.float32)])
        for version, array in enumerate(held):
            assert array.min() == array.max() == version
        for client in (pusher, *readers):
            client.close()


@over_transports
@over_semantics_and_shards
def test_versions_count_each_shards_updates(semantics: str, shards: int, transport: str) -> None:
    with serve([np.zeros(LARGE, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        assert client.versions == [0] * shards
        for _ in range(7):
            client.push([np.full(LARGE, -1.0, np.float32)])
        client.close()
        assert server.stats()["versions"] == [7] * shards
        assert server.stats()["updates"] == 7
        late = distnet.connect(server.address, transport=transport)
        late.pull()
        assert (late.versions, late.version) == ([7] * shards, 7)
        late.close()
