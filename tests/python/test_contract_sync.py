"""Synchronous rounds: the same bits every run, the same bytes for every worker, and nobody left waiting."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from worker_processes import (
    Worker,
    WorkerError,
    changed,
    over_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet
from distnet._private.arrays import Arrays

SHAPES = [(30, 50), (), (2000,)]
ROUNDS = 12


def model(seed: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def flattened(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def pushed_by(rank: int, rounds: int = ROUNDS) -> list[np.ndarray]:
    """What `push_random(seed=rank)` of a worker pushes, flattened."""
    random = np.random.default_rng(rank)
    return [
        np.concatenate([np.ravel(random.standard_normal(shape).astype(np.float32)) for shape in SHAPES])
        for _ in range(rounds)
    ]


def connect_all(workers: list[Worker], server: distnet.ParameterServer, transport: str) -> None:
    for rank, worker in enumerate(workers):
        worker.connect(server.address, rank, transport)


def run_job(
    workers: list[Worker], transport: str, shards: int, optimizer: distnet.Optimizer, ranks: list[int]
) -> tuple[list[list[str]], np.ndarray]:
    """Run a whole job; return every worker's replies (as digests) and the parameters at its end."""
    with serve(model(), "sync", transport, shards, workers=len(workers), optimizer=optimizer) as server:
        for rank in ranks:
            workers[rank].connect(server.address, rank, transport)
        for rank in reversed(ranks):
            workers[rank].begin("push_random", seed=rank, rounds=ROUNDS)
        replies = [worker.result() for worker in workers]
        for worker in workers:
            worker.do("close")
        return replies, flattened(server.parameters())


@over_transports
@over_shards
def test_rounds_are_the_same_to_the_bit_whoever_comes_first(workers: list[Worker], transport: str, shards: int) -> None:
    optimizer = distnet.Momentum(0.05, nesterov=True)
    runs = [run_job(workers[:3], transport, shards, optimizer, order) for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0])]
    for replies, parameters in runs:
        assert replies == runs[0][0]
        np.testing.assert_array_equal(parameters.view(np.uint32), runs[0][1].view(np.uint32))


def test_transports_and_shards_do_not_change_a_bit(workers: list[Worker]) -> None:
    optimizer = distnet.Adam(0.01)
    first, *others = [
        run_job(workers[:3], transport, shards, optimizer, [0, 1, 2])
        for transport, shards in (("shm", 1), ("tcp", 1), ("shm", 2), ("tcp", 2))
    ]
    for other in others:
        assert other[0] == first[0]
        np.testing.assert_array_equal(other[1].view(np.uint32), first[1].view(np.uint32))


@over_transports
@over_shards
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_round_joins_its_gradients_in_rank_order(
    workers: list[Worker], transport: str, shards: int, reduction: str
) -> None:
    semantics = changed("sync", reduction=reduction)
    with serve(model(), semantics, transport, shards, workers=4) as server:
        connect_all(workers, server, transport)
        for rank in (2, 0, 3, 1):
            workers[rank].begin("push_random", seed=rank, rounds=ROUNDS)
        replies = [worker.result() for worker in workers]
        for worker in workers:
            worker.do("close")
        result = flattened(server.parameters())
    expected = flattened(model())
    for gradients in zip(*(pushed_by(rank) for rank in range(4)), strict=True):
        total = ((gradients[0] + gradients[1]) + gradients[2]) + gradients[3]
        joined = total / np.float32(4) if reduction == "mean" else total
        expected = expected - joined
    np.testing.assert_array_equal(result, expected)
    assert replies[1:] == replies[:1] * 3, "workers of a round saw different bytes"


@over_transports
@over_shards
def test_a_fast_worker_waits_for_the_others_in_every_round(workers: list[Worker], transport: str, shards: int) -> None:
    fast, slow = workers[:2]
    with serve([np.zeros(3000, np.float32)], "sync", transport, shards, workers=2) as server:
        connect_all([fast, slow], server, transport)
        for number in range(5):
            fast.begin("push_full", value=-1.0)
            wait_until(lambda: server.stats()["queue_depth"] >= shards, "the fast worker's push arrives")
            assert not fast.has_answered()
            assert server.stats()["updates"] == number
            slow.begin("push_full", value=-3.0)
            assert set(fast.result()) == set(slow.result()) == {2.0 * (number + 1)}
            assert fast.do("state")["round"] == slow.do("state")["round"] == number + 1
        assert server.stats()["updates"] == 5
        for worker in (fast, slow):
            worker.do("close")


@over_transports
@over_shards
def test_a_rank_that_finishes_leaves_later_rounds(workers: list[Worker], transport: str, shards: int) -> None:
    with serve([np.zeros(3000, np.float32)], "sync", transport, shards, workers=3) as server:
        connect_all(workers[:3], server, transport)
        for rank, rounds in enumerate((2, 5, 9)):
            workers[rank].begin("push_and_leave", value=-1.0, pushes=rounds)
        last = [worker.result() for worker in workers[:3]]
        assert last == [2.0, 5.0, 9.0], "the mean over however many members is 1 a round"
        stats = server.stats()
        assert (stats["workers_done"], stats["workers_died"], stats["workers_silent"]) == (3, 0, 0)
        assert (stats["updates"], stats["accepted"], stats["applied"]) == (9, 16, 16)


@over_transports
@over_shards
def test_a_killed_worker_frees_the_others(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], transport: str, shards: int
) -> None:
    first, second, victim = started = [*workers[:2], *start_workers(1)]
    with serve([np.zeros(3000, np.float32)], "sync", transport, shards, workers=3) as server:
        connect_all(started, server, transport)
        for worker in started:
            worker.begin("push_full", value=-1.0)
        for worker in started:
            assert set(worker.result()) == {1.0}
        for worker in (first, second):
            worker.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == 2 * shards, "both pushes arrive")
        victim.kill()
        killed = time.monotonic()
        for worker in (first, second):
            assert set(worker.result(within_s=20)) == {2.0}
        assert time.monotonic() - killed < 15, "the others waited for longer than half a deadline"
        wait_until(lambda: server.stats()["workers_died"] == 1, "shard 0, too, has seen its death")
        assert (server.stats()["workers_done"], server.stats()["workers_silent"]) == (0, 0)
        for worker in (first, second):
            worker.begin("push_full", value=-1.0)
        assert [set(worker.result()) for worker in (first, second)] == [{3.0}, {3.0}]


@over_transports
@over_shards
def test_on_loss_abort_ends_the_job_of_the_others(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], transport: str, shards: int
) -> None:
    survivor, victim = workers[0], *start_workers(1)
    with serve([np.zeros(3000, np.float32)], changed("sync", on_loss="abort"), transport, shards, workers=2) as server:
        connect_all([survivor, victim], server, transport)
        survivor.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        victim.kill()
        with pytest.raises(WorkerError, match="RoundAborted"):
            survivor.result(within_s=20)
        with pytest.raises(WorkerError, match="RoundAborted"):
            survivor.do("push_full", value=-1.0, within_s=20)
        assert set(survivor.do("pull")) == {0.0}, "an aborted round changed parameters"


@over_transports
@over_shards
def test_on_loss_wait_takes_the_rank_back(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], transport: str, shards: int
) -> None:
    survivor, successor, victim = *workers[:2], *start_workers(1)
    with serve([np.zeros(3000, np.float32)], changed("sync", on_loss="wait"), transport, shards, workers=2) as server:
        connect_all([survivor, victim], server, transport)
        survivor.begin("push_full", value=-1.0)
        victim.kill()
        wait_until(lambda: server.stats()["workers_died"] == 1, "the server sees the death")
        assert not survivor.has_answered()
        successor.connect(server.address, 1, transport)
        assert set(successor.do("push_full", value=-3.0)) == {2.0}
        assert set(survivor.result()) == {2.0}


@over_transports
@over_shards
def test_a_stuck_worker_holds_a_round_for_its_deadline_only(workers: list[Worker], transport: str, shards: int) -> None:
    first, stuck = workers[:2]
    semantics = changed("sync", round_timeout=1.0)
    with serve([np.zeros(3000, np.float32)], semantics, transport, shards, workers=2) as server:
        connect_all([first, stuck], server, transport)
        for worker in (first, stuck):
            worker.begin("push_full", value=-1.0)
        assert [set(worker.result()) for worker in (first, stuck)] == [{1.0}, {1.0}]
        # Alive, heartbeats and all, but it does not push.
        assert set(first.do("push_full", value=-1.0, within_s=20)) == {2.0}
        assert first.seconds > 0.9
        # The next round does without it at once, or after its deadline again, but never for ever.
        assert set(first.do("push_full", value=-1.0, within_s=20)) == {3.0}


@over_transports
def test_a_silent_worker_is_counted_as_silent_and_waited_for_no_longer(workers: list[Worker], transport: str) -> None:
    first, silent = workers[:2]
    with serve([np.zeros(3000, np.float32)], "sync", transport, workers=2) as server:
        first.connect(server.address, 0, transport)
        silent.connect(server.address, 1, transport, timeout=2.0)
        first.begin("push_full", value=-1.0)
        silent.signal(signal.SIGSTOP)
        try:
            assert set(first.result(within_s=30)) == {1.0}
            stats = server.stats()
            assert (stats["workers_done"], stats["workers_died"], stats["workers_silent"]) == (0, 0, 1)
        finally:
            silent.signal(signal.SIGCONT)


@over_transports
@over_shards
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_one_workers_nan_does_not_leave_the_others_waiting(
    workers: list[Worker], transport: str, shards: int, poison: float
) -> None:
    good, bad = workers[:2]
    with serve([np.zeros(3000, np.float32)], "sync", transport, shards, workers=2) as server:
        connect_all([good, bad], server, transport)
        good.begin("push_full", value=-1.0)
        with pytest.raises(WorkerError, match="NonFiniteGradient"):
            bad.do("push_full", value=poison)
        assert set(good.result(within_s=20)) == {1.0}, "the round went on without the NaN"
        for worker in (good, bad):
            worker.begin("push_full", value=-2.0)
        assert [set(worker.result()) for worker in (good, bad)] == [{3.0}, {3.0}]
        wait_until(lambda: server.stats()["refused"] == 1, "the server counts the refusal")
        stats = server.stats()
        assert stats["applied"] == 3
        refused = {session["rank"]: session["refused"] for session in stats["sessions"]}
        assert refused == {0: 0, 1: 1}


@over_transports
@over_shards
def test_the_first_round_waits_for_all_and_a_late_worker_joins(
    workers: list[Worker], transport: str, shards: int
) -> None:
    early, late, later = workers[:3]
    with serve([np.zeros(3000, np.float32)], "sync", transport, shards, workers=2) as server:
        early.connect(server.address, 0, transport)
        early.begin("push_full", value=-1.0)
        wait_until(lambda: server.stats()["queue_depth"] == shards, "the push arrives")
        assert server.stats()["updates"] == 0
        late.connect(server.address, 1, transport)
        assert set(late.do("push_full", value=-1.0)) == set(early.result()) == {1.0}
        late.do("close")
        assert set(early.do("push_full", value=-1.0)) == {2.0}, "a round waited for a worker that is done"
        assert later.connect(server.address, 1, transport)["round"] == 2
        early.begin("push_full", value=-1.0)
        later.begin("push_full", value=-3.0)
        reply = early.result()
        if set(reply) == {3.0}:  # the round had begun without the newcomer, whose push is in the next
            early.do("close")
            assert set(later.result()) == {6.0}
        else:
            assert set(reply) == set(later.result()) == {4.0}
