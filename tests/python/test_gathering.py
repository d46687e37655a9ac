"""Ranks that wait for each other: barrier(), finish(), and ranks that the server does not wait for."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worker_processes import (
    Worker,
    WorkerError,
    changed,
    over_semantics_and_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet
from distnet._private import gathering

CELLS = 3000


def connect_all(workers: list[Worker], server: distnet.ParameterServer, transport: str) -> None:
    for rank, worker in enumerate(workers):
        worker.connect(server.address, rank, transport)


def waits_for(address: str, transport: str, missing: str) -> None:
    """Return once shard 0 says that a gathering waits for these ranks alone."""
    with distnet.connect(address, transport=transport) as observer:
        wait_until(lambda: observer._native.awaited() == missing, f"only {missing} is missing")


def in_threads(calls: list[Callable[[], None]]) -> None:
    """Run clients of this process side by side, and raise what any of them raised."""
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


@over_transports
@over_semantics_and_shards
def test_what_all_pushed_before_a_barrier_is_there_after_it_and_nothing_later(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    """In every semantics, again and again: what a rank sees after its barrier holds all pushes before it."""
    ranks = workers[:3]
    policy = changed(semantics, reduction="sum")
    with serve([np.zeros(CELLS, np.float32)], policy, transport, shards, workers=3) as server:
        connect_all(ranks, server, transport)
        for number in range(1, 4):
            for worker in ranks:
                worker.begin("push_full", value=-1.0, call="push")
            for worker in ranks:
                worker.result()
            for worker in ranks[1:]:
                worker.begin("barrier")
            waits_for(server.address, transport, "rank 0")
            assert not any(worker.has_answered() for worker in ranks[1:])
            assert set(ranks[0].do("barrier")) == {3.0 * number}
            assert [set(worker.result()) for worker in ranks[1:]] == [{3.0 * number}] * 2
        assert server.stats()["refused"] == 0
        for worker in ranks:
            worker.do("close")


@over_transports
@over_semantics_and_shards
def test_finish_gives_every_rank_the_same_parameters_and_no_push_follows(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    ranks = workers[:3]
    with serve([np.zeros(CELLS, np.float32)], semantics, transport, shards, workers=3) as server:
        connect_all(ranks, server, transport)
        for rank, worker in enumerate(ranks):  # in sync, those that go on do not wait for those that have finished
            worker.begin("push_random_and_finish", seed=rank, pushes=2 + 3 * rank)
        digests = [worker.result() for worker in ranks]
        assert digests == digests[:1] * 3
        for worker in ranks:
            with pytest.raises(WorkerError, match=r"ConfigError.*finish"):
                worker.do("push_full", value=-1.0)
            worker.do("pull")
            assert worker.do("finish") == digests[0]  # again: it has left already
            worker.do("close")


@over_transports
@pytest.mark.parametrize("call", ["barrier", "finish"])
def test_a_rank_that_dies_is_named_to_all_who_wait_and_to_who_comes_late(
    workers: list[Worker], start_workers: Callable[[int], list[Worker]], transport: str, call: str
) -> None:
    first, late, victim = ranks = [*workers[:2], *start_workers(1)]
    with serve([np.zeros(CELLS, np.float32)], "async-apply", transport, workers=3) as server:
        connect_all(ranks, server, transport)
        first.begin(call)
        waits_for(server.address, transport, "ranks 1 and 2")
        victim.kill()
        for worker in (first, late):
            with pytest.raises(WorkerError, match=r"PeerClosed.*rank 2 died"):
                worker.result() if worker.busy else worker.do(call)
        for worker in (first, late):  # those that are left go on
            worker.begin(call)
        for worker in (first, late):
            worker.result()


@over_transports
def test_a_timeout_names_who_is_missing_and_the_rank_may_wait_again(workers: list[Worker], transport: str) -> None:
    first, second = workers[:2]
    with serve([np.zeros(CELLS, np.float32)], "sync", transport, 2, workers=3) as server:
        connect_all([first, second], server, transport)
        with pytest.raises(WorkerError, match=r"DeadlineExceeded.*rank 1, and rank 2 \(not connected yet\)"):
            first.do("barrier", timeout=0.2)
        with pytest.raises(WorkerError, match="DeadlineExceeded"):  # rank 0 has gone, and does not count
            second.do("barrier", timeout=0.0)
        server.excuse(2, "it is not needed")
        first.begin("barrier")
        waits_for(server.address, transport, "rank 1")
        second.do("barrier", timeout=30.0)
        first.result()


def test_ctrl_c_ends_the_wait_and_the_rank_counts_as_missing(workers: list[Worker], tmp_path: Path) -> None:
    first, second = workers[:2]
    with serve([np.zeros(CELLS, np.float32)], "sync", "shm", workers=2) as server:
        connect_all([first, second], server, "shm")
        first.begin("barrier")
        waits_for(server.address, "shm", "rank 1")
        first.signal(signal.SIGINT)
        with pytest.raises(WorkerError, match="KeyboardInterrupt"):
            first.result()
        with pytest.raises(WorkerError, match=r"DeadlineExceeded.*rank 0"):
            second.do("barrier", timeout=0.1)
        for worker in (first, second):  # rounds are none the worse for it
            worker.begin("push_full", value=-1.0)
        assert [set(worker.result()) for worker in (first, second)] == [{1.0}, {1.0}]


@over_transports
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("barrier_first", [True, False])
def test_a_barrier_and_a_round_that_wait_for_each_other_both_raise(
    workers: list[Worker], transport: str, shards: int, barrier_first: bool
) -> None:
    at_barrier, in_round = workers[:2]
    with serve([np.zeros(CELLS, np.float32)], "sync", transport, shards, workers=2) as server:
        connect_all([at_barrier, in_round], server, transport)
        if barrier_first:
            at_barrier.begin("barrier")
            waits_for(server.address, transport, "rank 1")
        in_round.begin("push_full", value=-1.0)
        if not barrier_first:
            wait_until(lambda: server.stats()["queue_depth"] == shards, "the push waits at every shard")
            at_barrier.begin("barrier")
        for worker in (at_barrier, in_round):
            with pytest.raises(
                WorkerError, match=r"RoundAborted.*rank 1 waits in round 0 for rank 0, which waits at a barrier"
            ):
                worker.result()
        for worker in (at_barrier, in_round):  # both go on
            worker.begin("push_full", value=-1.0)
        assert [set(worker.result()) for worker in (at_barrier, in_round)] == [{1.0}, {1.0}]


def test_a_barrier_and_finish_that_wait_for_each_other_both_raise(workers: list[Worker]) -> None:
    ranks = workers[:2]
    with serve([np.zeros(CELLS, np.float32)], "async-lockfree", "shm", workers=2) as server:
        connect_all(ranks, server, "shm")
        for worker, call in zip(ranks, ("barrier", "finish"), strict=True):
            worker.begin(call)
        for worker in ranks:
            with pytest.raises(WorkerError, match=r"RoundAborted.*rank 0 waits at a barrier, and rank 1 waits in fin"):
                worker.result()


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("semantics", ["sync", "async-apply"])
def test_an_excused_rank_keeps_nobody_waiting_and_is_welcome_again(
    workers: list[Worker], semantics: str, processes: bool
) -> None:
    first, excused = workers[:2]
    policy = changed(semantics, reduction="sum")
    with serve(None, policy, "shm", 2, workers=2, processes=processes) as server:
        server.excuse(1, "its script ended before it connected")  # before there is a model
        first.connect(server.address, 0, "shm", parameters=[[CELLS]], value=0.0)
        assert set(first.do("push_full", value=-1.0)) == {1.0}
        assert set(first.do("barrier")) == {1.0}
        excused.connect(server.address, 1, "shm")
        first.begin("barrier")
        waits_for(server.address, "shm", "rank 1")
        excused.do("barrier")
        first.result()
        for rank in (2, -1, True, "1", None):
            with pytest.raises(distnet.ConfigError, match="rank"):
                server.excuse(rank)  # type: ignore[arg-type]


@over_transports
@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-lockfree"])
def test_an_excused_rank_that_goes_on_pushing_is_waited_for_again(semantics: str, transport: str) -> None:
    gradient = [np.zeros(CELLS, np.float32)]
    with (
        serve(gradient, semantics, transport, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as excused,
    ):
        server.excuse(1)
        first.barrier(timeout=30.0)
        handle = excused.begin_push_pull(gradient)
        if semantics == "sync":
            wait_until(lambda: server.stats()["queue_depth"] == 1, "its push waits in the round")
        first.push(gradient)
        handle.wait()
        with pytest.raises(distnet.DeadlineExceeded, match="missing: rank 1"):
            first.barrier(timeout=0.2)


def test_observers_ranks_beyond_the_job_and_handles_that_are_out_are_refused() -> None:
    with serve([np.zeros(4, np.float32)], "async-apply", "shm", workers=1) as server:
        with distnet.connect(server.address) as observer:
            assert observer.workers == 1
            with pytest.raises(distnet.ConfigError, match="observer"):
                observer.barrier()
        with (
            pytest.warns(distnet.DistNetWarning),
            distnet.connect(server.address, rank=1) as beyond,
            pytest.raises(distnet.ConfigError, match="rank 1 of a job of 1 workers"),
        ):
            beyond.finish()
        with distnet.connect(server.address, rank=0) as client:
            handle = client.begin_push_pull([np.ones(4, np.float32)])
            with pytest.raises(distnet.ConfigError, match="handle"):
                client.barrier()
            handle.wait()
            for timeout in (-1, float("nan"), True, "1"):
                with pytest.raises(distnet.ConfigError, match="timeout"):
                    client.barrier(timeout=timeout)  # type: ignore[arg-type]
            client.barrier()
    with pytest.raises(distnet.ConfigError, match="not started"):
        server.excuse(0)


@over_transports
def test_a_replacement_is_waited_for_in_place_of_the_session_that_it_fenced(
    workers: list[Worker], transport: str
) -> None:
    first, older, newer = workers[:3]
    with serve([np.zeros(CELLS, np.float32)], "sync", transport, workers=2) as server:
        connect_all([first, older], server, transport)
        older.begin("barrier")
        waits_for(server.address, transport, "rank 0")
        newer.connect(server.address, 1, transport)
        with pytest.raises(WorkerError, match="Fenced"):
            older.result()
        first.begin("barrier")
        waits_for(server.address, transport, "rank 1")
        newer.do("barrier")
        first.result()


def test_a_long_wait_has_words(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(gathering, "FIRST_WORDS_SECONDS", 0.01)
    monkeypatch.setattr(gathering, "NEXT_WORDS_SECONDS", 0.01)
    said = "rank 0 has waited at a barrier for 0 s; missing: rank 1 (not connected yet)"
    with (
        caplog.at_level(logging.WARNING, logger="distnet"),
        serve([np.zeros(4, np.float32)], "sync", "shm", workers=2) as server,
        distnet.connect(server.address, rank=0) as client,
    ):

        def come_late() -> None:
            wait_until(lambda: caplog.messages.count(said) >= 2, "the wait is told, and told again")
            with distnet.connect(server.address, rank=1) as late:
                late.barrier()

        in_threads([client.barrier, come_late])
