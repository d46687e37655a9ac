"""A learning rate that is set while a server runs: from which update it counts, at every shard, and what keeps it."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raw_protocol import REFUSED, header, message, raw_worker
from worker_processes import over_async_semantics_and_shards, over_shards, over_transports, serve

import distnet

Array = npt.NDArray[np.float32]
SIZE = 3000  # floats, more than a page: several shards have some each
SET_LEARNING_RATE = 50
over_processes = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])


def start() -> list[Array]:
    return [np.zeros(SIZE, np.float32)]


def gradient() -> list[Array]:
    """What adds the learning rate to every parameter."""
    return [np.full(SIZE, -1.0, np.float32)]


def in_column(column: int) -> list[Array]:
    """What adds the learning rate to one column of 10 in each row."""
    marks = np.zeros((SIZE // 10, 10), np.float32)
    marks[:, column] = -1.0
    return [marks.reshape(SIZE)]


def only_value(arrays: Any) -> float:
    """The value that all parameters have: then every shard has had the same updates with the same learning rates."""
    (array,) = arrays
    assert np.array_equal(array, np.full(SIZE, array[0]))
    return float(array[0])


@over_transports
@over_shards
def test_in_sync_it_counts_from_one_round_on_at_every_shard(shards: int, transport: str) -> None:
    with (
        serve(start(), "sync", transport, shards, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):

        def push_round(before_the_last_push: Any) -> float:
            handle = second.begin_push_pull(gradient())  # the round is open, and waits for rank 0
            before_the_last_push()
            arrays = first.push_pull(gradient())
            assert only_value(handle.wait()) == only_value(arrays)
            return only_value(arrays)

        assert push_round(lambda: None) == 1.0
        assert push_round(lambda: first.set_learning_rate(0.25)) == 1.25
        assert push_round(lambda: server.set_learning_rate(4)) == 5.25
        assert server.learning_rate == server.stats()["learning_rate"] == 4.0
        assert push_round(lambda: None) == 9.25
        assert [shard.learning_rate for shard in server.stats().shards] == [4.0] * shards


@over_transports
@over_async_semantics_and_shards
def test_without_rounds_it_counts_from_the_callers_next_push_on(semantics: str, shards: int, transport: str) -> None:
    """The push before it was answered, perhaps before it was applied: it has the former learning rate all the same."""
    with (
        serve(start(), semantics, transport, shards) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        client.push_pull(in_column(0))
        for column, learning_rate in enumerate([0.5, 0.0, 1e-7, 3.0], start=1):
            if column % 2:
                client.set_learning_rate(learning_rate)
            else:
                server.set_learning_rate(learning_rate)
            client.push_pull(in_column(column))
        (array,) = server.parameters()
        expected = np.array([1.0, 0.5, 0.0, 1e-7, 3.0, 0, 0, 0, 0, 0], np.float32)
        np.testing.assert_array_equal(array.reshape(-1, 10), np.tile(expected, (SIZE // 10, 1)))


@over_transports
@over_async_semantics_and_shards
def test_a_push_that_is_still_on_its_way_has_the_former_one_at_every_shard(
    semantics: str, shards: int, transport: str
) -> None:
    """Gradients and settings travel over different connections, and the one may overtake the other."""
    with (
        serve(start(), semantics, transport, shards) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        handle = client.begin_push_pull(gradient())
        with pytest.raises(distnet.ConfigError, match="handle"):
            client.set_learning_rate(0.5)
        handle.wait()
        del handle
        client.begin_push_pull(gradient())  # nobody waits for it
        client.set_learning_rate(0.5)
        client.push(gradient())
        assert only_value(server.parameters()) == 2.5


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
def test_it_replaces_the_schedule_and_groups_multiply_it(semantics: str) -> None:
    model = {"kernel": np.zeros(4, np.float32), "bias": np.zeros(4, np.float32)}
    step = {name: np.full(4, -1.0, np.float32) for name in model}
    options: dict[str, Any] = {
        "optimizer": distnet.SGD(distnet.PiecewiseConstant([1], [8.0, 16.0])),
        "groups": {"bias": distnet.Group(learning_rate_multiplier=0.5)},
    }
    with (
        serve(model, semantics, "shm", **options) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        assert server.learning_rate == 8.0
        client.push(step)
        client.set_learning_rate(2.0)
        client.push(step)
        client.push(step)
        arrays = server.parameters()
        assert isinstance(arrays, dict)
        assert (arrays["kernel"][0], arrays["bias"][0]) == (12.0, 6.0)


@over_processes
@pytest.mark.parametrize(("semantics", "shards", "later_shards"), [("sync", 2, 1), ("async-apply", 1, 2)])
def test_snapshots_keep_it(semantics: str, shards: int, later_shards: int, processes: bool) -> None:
    options: dict[str, Any] = {"optimizer": distnet.SGD(distnet.PiecewiseConstant([2], [8.0, 16.0]))}
    with (
        serve(start(), semantics, "shm", shards, **options) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        client.push(gradient())
        assert server.snapshot().learning_rate is None
        client.set_learning_rate(1 / 3)
        snapshot = server.snapshot()
    assert snapshot.learning_rate == 1 / 3
    with (
        serve(None, semantics, "shm", later_shards, **options, restore=snapshot, processes=processes) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        assert server.learning_rate == 1 / 3
        assert only_value(client.push_pull(gradient())) == np.float32(8.0) + np.float32(1 / 3)
        client.set_learning_rate(2.0)
        snapshot = server.snapshot()
    assert snapshot.learning_rate == 2.0
    without = dataclasses.replace(snapshot, learning_rate=None)
    with serve(None, semantics, "shm", later_shards, **options, restore=without) as server:
        assert server.learning_rate == 16.0  # the schedule's, at the position of the snapshot


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e-9, "0.1", True, None, distnet.CosineDecay(0.1, 9)])
def test_what_is_no_learning_rate_is_refused_and_changes_nothing(wrong: Any) -> None:
    with serve(start(), "sync", "shm") as server, distnet.connect(server.address, rank=0) as client:
        for setter in (server.set_learning_rate, client.set_learning_rate):
            with pytest.raises(distnet.ConfigError, match="learning_rate is"):
                setter(wrong)
        assert only_value(client.push_pull(gradient())) == 1.0


def test_only_rank_0_and_the_server_itself_may_set_it() -> None:
    with (
        serve(start(), "async-apply", "shm", workers=2) as server,
        distnet.connect(server.address, rank=1) as other,
        distnet.connect(server.address) as observer,
    ):
        for client, who in ((other, "rank 1"), (observer, "an observer")):
            with pytest.raises(distnet.ConfigError, match=f"{who} cannot set the learning rate"):
                client.set_learning_rate(0.5)
        assert only_value(other.push_pull(gradient())) == 1.0
        with pytest.raises(distnet.ConfigError, match="set_learning_rate"):
            server.optimizer = distnet.SGD(0.5)
        with pytest.raises(distnet.ConfigError, match="set_learning_rate"):
            server.learning_rate = 0.5
        assert server.optimizer == distnet.SGD(1.0)


@pytest.mark.parametrize(
    ("rank", "payload", "why"),
    [
        (1, struct.pack("<d", 0.5), "rank 0 or the owner"),
        (0, struct.pack("<d", float("nan")), "no number"),
        (0, struct.pack("<d", -1.0), "negative"),
        (0, b"", "ends before its fields"),
    ],
)
def test_a_client_that_says_what_it_may_not_is_refused(rank: int, payload: bytes, why: str) -> None:
    with serve(start(), "async-apply", "tcp", workers=2) as server:
        with raw_worker(server, rank) as worker:
            worker.control.sendall(header(SET_LEARNING_RATE, len(payload)) + payload)
            kind, answer = message(worker.control)
            assert (kind, why in answer.decode(errors="replace")) == (REFUSED, True), answer
        assert server.learning_rate == 1.0


def test_a_snapshot_with_a_learning_rate_that_cannot_be_is_refused() -> None:
    with serve(start(), "sync", "shm") as server:
        snapshot = server.snapshot()
    for wrong in (-1.0, float("nan"), "0.1"):
        with pytest.raises(distnet.ConfigError, match="the snapshot's learning_rate"):
            dataclasses.replace(snapshot, learning_rate=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [1e39, 3.5e38])
def test_a_rate_that_float32_cannot_hold_is_refused_by_name(rate: float) -> None:
    with distnet.ParameterServer([np.zeros(4, np.float32)]) as server, distnet.connect(server.address, 0) as client:
        gives: list[Callable[[], None]] = [
            lambda: client.push([np.ones(4, np.float32)], learning_rate=rate),
            lambda: client.set_learning_rate(rate),
            lambda: server.set_learning_rate(rate),
        ]
        for give in gives:
            with pytest.raises(distnet.ConfigError, match=r"learning_rate is"):
                give()
        client.push([np.full(4, 1e-3, np.float32)], learning_rate=3e38)
        assert np.isfinite(client.pull()[0]).all()
        before = client.pull()[0].copy()
        client.push([np.ones(4, np.float32)], learning_rate=1e-50)  # counts as 0
        assert client.pull()[0].tolist() == before.tolist()
        assert client.accepted == 2
