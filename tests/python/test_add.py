"""Pushes of changes: what is added to the parameters, without an optimizer."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from worker_processes import (
    Worker,
    changed,
    over_async_semantics_and_shards,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
)

import distnet

Array = npt.NDArray[np.float32]
SIZE = 3000  # floats, more than a page: several shards have some each


def start() -> list[Array]:
    return [np.zeros(SIZE, np.float32)]


def full(value: float) -> list[Array]:
    return [np.full(SIZE, value, np.float32)]


def only_value(arrays: Any) -> float:
    """The value that all parameters have: then every shard has had the same updates."""
    (array,) = arrays
    assert np.array_equal(array, np.full(SIZE, array[0]))
    return float(array[0])


@over_transports
@over_semantics_and_shards
def test_a_change_is_added_as_it_is_whatever_the_optimizer(semantics: str, shards: int, transport: str) -> None:
    """It is neither stepped nor clipped, on the worker or at the server, and counts as an update."""
    optimizer = distnet.Adam(0.5, clip_value=0.25, clip_norm=1.0)
    with (
        serve(start(), semantics, transport, shards, workers=1, optimizer=optimizer, ema_decay=0.5) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        client.add(full(100.0))
        assert only_value(client.pull()) == 100.0
        average = only_value(client.pull(ema=True))
        assert 0.0 < average <= 100.0
        client.add_pull(full(-1.0))
        out = full(7.0)
        client.pull(out=out)
        assert only_value(out) == 99.0
        assert only_value(client.pull(ema=True)) != average
        client.push(full(-1.0))
        after_a_step = only_value(client.pull())
        step = 0.5 * (0.1 / (1 - 0.9**3)) / math.sqrt(0.001 / (1 - 0.999**3))  # Adam's first, as the third update
        assert after_a_step == pytest.approx(99.0 + step, abs=1e-4)
        client.add(None)
        assert (client.applied, client.version) == (4, 3)
        stats = server.stats()
        assert (stats.updates, stats.applied, stats.abstained) == (3, 3, 1)


@over_transports
@pytest.mark.parametrize("semantics", ["sync", "async-apply"])
def test_the_reply_to_add_pull_holds_the_change(semantics: str, transport: str) -> None:
    with (
        serve(start(), semantics, transport, workers=1) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        assert only_value(client.add_pull(full(2.0))) == 2.0
        out = full(0.0)
        assert only_value(client.add_pull(full(2.0), out=out)) == 4.0
        assert only_value(out) == 4.0
        assert only_value(client.add_pull(full(2.0), alias=True)) == 6.0


@over_transports
@over_shards
@pytest.mark.parametrize(("reduction", "sums_to"), [("mean", 2.0), ("sum", 6.0)])
def test_a_round_adds_the_mean_of_the_changes(
    workers: list[Worker], transport: str, shards: int, reduction: str, sums_to: float
) -> None:
    with serve(start(), changed("sync", reduction=reduction), transport, shards, workers=3) as server:
        for rank, worker in enumerate(workers[:3]):
            worker.connect(server.address, rank, transport)
        for rank, worker in enumerate(workers[:3]):
            worker.begin("push_full", value=float(rank + 1), call="add_pull")
        assert [worker.result()[0] for worker in workers[:3]] == [sums_to] * 3
        for worker in workers[:3]:
            worker.do("close")
        assert server.stats().updates == 1


@over_transports
@over_shards
def test_a_round_of_changes_and_gradients_takes_those_of_the_lowest_rank_and_refuses_the_others(
    transport: str, shards: int
) -> None:
    with (
        serve(start(), "sync", transport, shards, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        handle = second.begin_push_pull(full(-64.0))
        assert only_value(first.add_pull(full(1.0))) == 1.0
        with pytest.raises(distnet.ConfigError, match=r"add\(\).*the same in a round"):
            handle.wait()
        handle = first.begin_push_pull(full(-1.0))
        with pytest.raises(distnet.ConfigError, match=r"add\(\).*the same in a round"):
            second.add(full(64.0))
        assert only_value(handle.wait()) == 2.0
        handle = first.begin_push_pull(full(-1.0))
        assert only_value(second.push_pull(full(-3.0))) == 4.0
        handle.wait()
        stats = server.stats()
        assert [shard.refused for shard in stats.shards] == [2] * shards
        assert (stats.updates, stats.round) == (3, 3)


@over_async_semantics_and_shards
def test_a_change_with_nan_is_refused(semantics: str, shards: int) -> None:
    with (
        serve(start(), semantics, "shm", shards) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        bad = full(1.0)
        bad[0][SIZE // 2] = np.nan
        with pytest.raises(distnet.NonFiniteGradient):
            client.add(bad)
        client.add(full(1.0))
        assert only_value(client.pull()) == 1.0


def test_what_a_lossy_format_left_of_gradients_does_not_go_along_with_changes() -> None:
    with (
        serve(start(), "async-apply", "tcp", push_format="topk") as server,
        distnet.connect(server.address, rank=0, transport="tcp") as client,
    ):
        client.add([np.arange(SIZE, dtype=np.float32)])
        client.add([np.arange(SIZE, dtype=np.float32)])
        with pytest.raises(distnet.ConfigError, match=r"unsent.*restore_unsent"):
            client.push(full(1.0))
        client.restore_unsent(start())
        client.push(full(1.0))
        client.push(None)
        with pytest.raises(distnet.ConfigError, match=r"unsent.*restore_unsent"):
            client.add(full(1.0))


def test_local_steps_and_their_sum_are_those_of_one_process() -> None:
    """Two workers, each three steps of its own before a round: the mean of where they came, as local SGD has it."""
    random = np.random.default_rng(3)
    targets = [random.standard_normal(SIZE).astype(np.float32) for _ in range(2)]
    with serve(start(), "sync", "shm", workers=2) as server:
        clients = [distnet.connect(server.address, rank=rank) for rank in range(2)]
        expected = np.zeros(SIZE, np.float32)
        mine = [expected.copy(), expected.copy()]
        for _ in range(4):
            ends = []
            for rank in range(2):
                local = mine[rank].copy()
                for _ in range(3):
                    local -= np.float32(0.125) * (local - targets[rank])
                ends.append(local)
            changes = [ends[rank] - mine[rank] for rank in range(2)]
            expected += (changes[0] + changes[1]) / np.float32(2)
            with ThreadPoolExecutor(2) as pool:
                replies = list(pool.map(lambda client, change: client.add_pull([change]), clients, changes))
            for rank, (array,) in enumerate(replies):
                np.testing.assert_array_equal(array, expected)
                mine[rank] = array.copy()
        for client in clients:
            client.close()


def test_a_change_that_is_not_finite_is_refused_with_its_tensor_s_name() -> None:
    model = {"weight": np.zeros(4, np.float32), "bias": np.zeros(2, np.float32)}
    with distnet.ParameterServer(model) as server, distnet.connect(server.address, rank=0) as client:
        change = {"weight": np.ones(4, np.float32), "bias": np.array([1.0, np.nan], np.float32)}
        with pytest.raises(distnet.NonFiniteGradient, match=r"the change of push 1 .* first in tensor 'bias'"):
            client.add(change)
        client.add({**change, "bias": np.ones(2, np.float32)})
        fresh = client.pull()
        assert isinstance(fresh, dict)
        assert fresh["bias"].tolist() == [1.0, 1.0]
