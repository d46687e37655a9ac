"""A server's state is cut at one moment while workers push, and holds nobody up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raw_protocol import raw_worker
from small_model import MODEL, push_rounds, random_model
from worker_processes import (
    changed,
    over_async_semantics_and_shards,
    over_semantics,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet
from distnet import _native

Array = npt.NDArray[np.float32]
WORKERS = 3
MOST_PUSHES = 5000  # of a worker, so that all have a column in a row
ROW = 16 * 1024  # floats of a store's chunk
ROWS = 8


class Ledger:
    """Workers whose pushes can be told apart in the parameters: push n of worker w is its column of every chunk."""

    def __init__(self, server: distnet.ParameterServer, transport: str) -> None:
        self._server, self._transport = server, transport
        self._stop_at = MOST_PUSHES
        self._pushed = [0] * WORKERS
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, args=(rank,)) for rank in range(WORKERS)]

    def _work(self, rank: int) -> None:
        try:
            with distnet.connect(self._server.address, rank=rank, transport=self._transport) as client:
                gradient = np.zeros((ROWS, ROW), np.float32)
                while self._pushed[rank] < self._stop_at:
                    column = rank * MOST_PUSHES + self._pushed[rank]
                    gradient[:, column] = -1.0
                    client.push_pull([gradient])
                    gradient[:, column] = 0.0
                    self._pushed[rank] += 1
        except BaseException as error:
            self._errors.append(error)

    def __enter__(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_at = min(MOST_PUSHES, max(self._pushed) + 3)  # the same for all, so that rounds end together
        for thread in self._threads:
            thread.join()
        assert not self._errors

    def pushed(self) -> int:
        return sum(self._pushed)

    def check(self, snapshot: distnet.Snapshot) -> None:
        """Each push is in all chunks of a shard or in none, those of a worker in order, and as many as are counted."""
        (parameters,) = snapshot.parameters
        shards = len(snapshot.versions)
        for rows, version in zip(np.split(parameters, shards), snapshot.versions, strict=True):
            assert np.array_equal(rows, np.broadcast_to(rows[0], rows.shape)), "a push is half in the cut"
            counts = []
            for marks in np.split(rows[0, : WORKERS * MOST_PUSHES], WORKERS):
                count = int(np.count_nonzero(marks))
                assert np.array_equal(marks[:count], np.ones(count, np.float32)), "a push is not in it as it was pushed"
                assert not marks[count:].any(), "a push is in the cut, and an earlier one of its worker is not"
                counts.append(count)
            if snapshot.round is None:
                assert sum(counts) == version
            else:
                assert counts == [snapshot.round] * WORKERS == [version] * WORKERS


@over_transports
@over_semantics_and_shards
def test_snapshots_beside_three_workers_are_cuts(semantics: str, shards: int, transport: str) -> None:
    rate = float(WORKERS) if semantics == "sync" else 1.0  # a round's mean, times the rate, is the sum
    options: dict[str, Any] = {"optimizer": distnet.SGD(rate), "workers": WORKERS}
    start = [np.zeros((ROWS, ROW), np.float32)]
    with serve(start, semantics, transport, shards, **options) as server:
        snapshots: list[distnet.Snapshot] = []
        with Ledger(server, transport) as ledger:
            while len({snapshot.versions for snapshot in snapshots}) < 6:
                seen = ledger.pushed()
                wait_until(lambda seen=seen: ledger.pushed() > seen, "somebody pushes")  # type: ignore[misc]
                snapshots.append(server.snapshot())
        snapshots.append(server.snapshot())
        for snapshot in snapshots:
            ledger.check(snapshot)
        assert snapshots[-1].versions == tuple(server.stats()["versions"])
        assert server.stats()["snapshots"] == len(snapshots)
    with serve(None, semantics, transport, shards, **options, restore=snapshots[3]) as restored:
        again = restored.snapshot()
        ledger.check(again)
        assert (again.versions, again.round) == (snapshots[3].versions, snapshots[3].round)
        np.testing.assert_array_equal(again.parameters[0], snapshots[3].parameters[0])


@over_async_semantics_and_shards
def test_state_and_ema_are_of_the_same_moment(semantics: str, shards: int) -> None:
    """With a momentum of 1 the velocity counts the pushes, and the parameters are the sum of those counts."""
    options: dict[str, Any] = {"optimizer": distnet.Momentum(1.0, 1.0), "ema_decay": 0.5, "workers": 2}
    with serve([np.zeros((4, ROW), np.float32)], semantics, "shm", shards, **options) as server:
        stop = threading.Event()

        def push(rank: int) -> None:
            with distnet.connect(server.address, rank=rank) as client:
                for _ in range(2500):  # the sum stays exact in float32
                    if stop.is_set():
                        break
                    client.push([np.full((4, ROW), -1.0, np.float32)])

        threads = [threading.Thread(target=push, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        snapshots = [server.snapshot() for _ in range(8)]
        stop.set()
        for thread in threads:
            thread.join()
    for snapshot in snapshots:
        (velocity,) = snapshot.optimizer_state
        assert snapshot.ema is not None
        for shard, version in enumerate(snapshot.versions):
            rows = np.s_[shard * 4 // shards : (shard + 1) * 4 // shards]
            assert (velocity[0][rows] == -version).all()
            assert (snapshot.parameters[0][rows] == version * (version + 1) / 2).all()
            assert (snapshot.ema[0][rows] == snapshot.ema[0][rows][0, 0]).all()


# ---- what is refused -----------------------------------------------------------------------------------------------
@over_shards
def test_a_round_that_is_past_cannot_be_asked_for(shards: int) -> None:
    with serve(random_model(0), "sync", "shm", shards, workers=2) as server:
        push_rounds(server, 0, 3)
        with pytest.raises(distnet.ConfigError, match="at_round is 2, which is past: round 3 is open"):
            server.snapshot(at_round=2)
        assert server.snapshot(at_round=3).round == 3


@over_async_semantics_and_shards
def test_without_rounds_none_can_be_asked_for(semantics: str, shards: int) -> None:
    with serve(random_model(0), semantics, "shm", shards) as server:
        with pytest.raises(distnet.ConfigError, match="at_round is 0, but this server has no rounds"):
            server.snapshot(at_round=0)
        assert server.snapshot().round is None


@over_shards
def test_a_round_that_does_not_come_ends_the_wait_and_nothing_else(shards: int) -> None:
    with serve(random_model(0), "sync", "shm", shards, workers=2) as server:
        with pytest.raises(distnet.DeadlineExceeded, match="before round 1000000"):
            server.snapshot(at_round=1_000_000, timeout=0.05)
        push_rounds(server, 0, 2)
        assert server.snapshot().round == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"at_round": -1}, "at_round is -1"),
        ({"at_round": True}, "at_round is True"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_arguments_that_cannot_be_are_refused_by_name(arguments: dict[str, Any], expected: str) -> None:
    with (
        serve(random_model(0), "sync", "shm") as server,
        pytest.raises(distnet.ConfigError, match=expected),
    ):
        server.snapshot(**arguments)


# ---- readers that do not read, and strangers -----------------------------------------------------------------------
@contextlib.contextmanager
def asker(server: distnet.ParameterServer, timeout_s: float = 30.0, owner: int | None = None) -> Iterator[Any]:
    """Yield a client that may take snapshots by hand."""
    owner = server._arguments.settings["owner"] if owner is None else owner
    tuning = distnet.Tuning().to_spec()
    client = _native.Client(server.address, None, timeout_s, "auto", False, [], tuning, 0, owner)
    try:
        yield client
    finally:
        client.abandon()


@over_semantics
def test_a_silent_reader_holds_nobody_up_and_loses_its_snapshot(semantics: str) -> None:
    shards = distnet.SEMANTICS[semantics].minimum_servers
    with serve(random_model(0), semantics, "tcp", shards, workers=2) as server, asker(server, 2.0) as silent:
        silent.begin_snapshot(None, 10.0)
        push_rounds_or_pushes(server, semantics)
        with pytest.raises(distnet.DeadlineExceeded, match="one at a time"):
            server.snapshot(timeout=0.05)
        assert server.snapshot(timeout=60.0).version > 0  # once the silent one has lost its turn
        empty = [[np.empty(shape, np.float32) for shape in MODEL.values()]]
        with pytest.raises(distnet.DeadlineExceeded, match="nobody asked for its pieces"):
            silent.read_snapshot(empty)
        silent.stats_json()  # its session goes on


def push_rounds_or_pushes(server: distnet.ParameterServer, semantics: str) -> None:
    if semantics == "sync":
        push_rounds(server, 0, 3)
        return
    with distnet.connect(server.address, rank=0) as client:
        for _ in range(3):
            client.push_pull(random_model(1))


@over_semantics
def test_a_reader_that_dies_gives_its_turn_back_at_once(semantics: str) -> None:
    shards = distnet.SEMANTICS[semantics].minimum_servers
    with serve(random_model(0), semantics, "tcp", shards, workers=2) as server:
        with asker(server) as dying:
            dying.begin_snapshot(None, 10.0)
        assert server.snapshot(timeout=20.0).version == 0  # far below the time for which a silent one is waited for


def test_a_server_stops_while_a_snapshot_waits_and_while_one_is_read() -> None:
    with serve(random_model(0), "sync", "shm", 2, workers=2) as server, asker(server) as reading:
        reading.begin_snapshot(None, 10.0)
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                server.snapshot(at_round=5)
            except distnet.DistNetError as error:  # its rounds or its connection ended
                errors.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: len(server.stats()["sessions"]) == 2, "both are there")
        server.stop()
        waiting.join()
        assert errors


def test_a_worker_that_stalls_in_the_middle_of_a_push_holds_no_snapshot_up() -> None:
    model = [np.zeros(100_000, np.float32)]
    with serve(model, "async-apply", "tcp") as server:
        with raw_worker(server) as stalled:
            stalled.send_push(np.full(100_000, -1.0, np.float32), sent_bytes=300_000)
            wait_until(lambda: server.stats()["bytes_received"] >= 300_000, "the first part of the push is there")
            snapshot = server.snapshot(timeout=20.0)
            assert snapshot.versions == (0,)
            assert not snapshot.parameters[0].any()
        wait_until(lambda: server.stats()["cut_off"] == 1, "the push is given up")


@over_transports
def test_only_the_owner_takes_snapshots(transport: str) -> None:
    with serve(random_model(0), "async-apply", transport) as server:
        with asker(server, owner=0) as stranger, pytest.raises(distnet.Unauthorized, match="only the owner"):
            stranger.begin_snapshot(None, 10.0)
        assert server.snapshot().version == 0


@over_shards
def test_a_snapshot_can_be_taken_once_the_rounds_have_ended(shards: int) -> None:
    with serve(random_model(0), changed("sync", on_loss="abort"), "tcp", shards, workers=2) as server:
        push_rounds(server, 0, 2)
        client = distnet.connect(server.address, rank=0)
        client._native.abandon()
        wait_until(lambda: server.stats()["workers_died"] == 1, "the loss is noticed")
        snapshot = server.snapshot()
        assert (snapshot.round, snapshot.versions) == (2, (2,) * shards)
        with pytest.raises(distnet.RoundAborted, match="ended before round 9"):
            server.snapshot(at_round=9)


def test_two_snapshots_at_once_take_turns() -> None:
    with serve(random_model(0), "async-sharded", "shm", 2) as server:
        taken: list[distnet.Snapshot] = []
        threads = [threading.Thread(target=lambda: taken.append(server.snapshot())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 4
        assert server.stats()["snapshot_pause_longest_s"] >= server.stats()["snapshot_pause_last_s"] >= 0
