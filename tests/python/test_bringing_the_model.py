"""Whose model a server holds: one client's, whole, or what the server was given; never parts of two."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from worker_processes import (
    Worker,
    WorkerError,
    over_semantics_and_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet

SIZE = 300_000


def model(value: float, size: int = SIZE) -> list[np.ndarray]:
    return [np.full(size, value, np.float32)]


def bring(server: distnet.ParameterServer, rank: int | None, value: float, transport: str) -> float:
    """Connect with a model of one value; return the value that the client then works with."""
    with distnet.connect(server.address, rank=rank, transport=transport, parameters=model(value)) as client:
        (pulled,) = client.pull()
        (seen,) = {float(cell) for cell in np.unique(pulled)}
        return seen


def values_of(server: distnet.ParameterServer) -> set[float]:
    return {float(value) for value in np.unique(server.parameters()[0])}


@over_transports
@over_semantics_and_shards
def test_of_two_clients_that_bring_a_model_one_is_taken_whole(semantics: str, shards: int, transport: str) -> None:
    for _ in range(10):
        with serve(None, semantics, transport, shards) as server:
            with ThreadPoolExecutor(2) as threads:
                brought = [
                    threads.submit(bring, server, rank, value, transport) for rank, value in ((0, 1.0), (None, 2.0))
                ]
                seen = [each.result() for each in brought]
            (value,) = values_of(server)
            assert value in (1.0, 2.0)
            assert seen == [value, value], "a client works with another model than the server's"


@over_transports
@over_semantics_and_shards
def test_a_client_that_brings_another_models_shapes_is_told_so(semantics: str, shards: int, transport: str) -> None:
    with serve(None, semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport, parameters=model(1.0))
        with pytest.raises(distnet.ManifestMismatch):
            distnet.connect(server.address, transport=transport, parameters=model(2.0, SIZE + 1))
        client.push_pull(model(0.0))
        client.close()
        assert values_of(server) == {1.0}


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, None], ids=["rank 0", "observer"])
def test_what_the_server_was_given_wins_over_a_client_that_was_there_first(
    workers: list[Worker], shards: int, processes: bool, rank: int | None
) -> None:
    early = workers[0]
    for attempt in range(4):
        address = f"shm://given-{os.getpid()}-{shards}-{processes}-{rank}-{attempt}"
        server = distnet.ParameterServer(
            model(7.0), semantics="async-lockfree", servers=shards, address=address, processes=processes
        )
        arguments = {"address": address, "rank": rank, "transport": "shm", "parameters": [[SIZE]], "value": 1.0}
        early.begin("connect_as_soon_as_possible", **arguments)
        with server:
            assert values_of(server) == {7.0}
            early.result()
            assert set(early.do("pull")) == {7.0}
            early.do("close")
            assert values_of(server) == {7.0}


@over_transports
def test_a_client_that_dies_while_it_brings_a_model_leaves_room_for_another(
    start_workers: Callable[[int], list[Worker]], transport: str
) -> None:
    size, random_moment = 4_000_000, random.Random(f"dies{transport}")
    with serve(None, "async-lockfree", transport, 2) as server:
        for victim in start_workers(3):
            arguments = {"address": server.address, "rank": 0, "transport": transport}
            victim.begin(
                "kill_while_bringing", seconds=random_moment.uniform(0.001, 0.03), parameters=[[size]], **arguments
            )
            assert victim.wait_dead() == -signal.SIGALRM
        client = distnet.connect(server.address, rank=0, transport=transport, parameters=model(3.0, size))
        (pulled,) = client.pull()
        (value,) = {float(cell) for cell in np.unique(pulled)}
        assert value in (0.0, 3.0)  # the victims bring zeros, which counts where one of them was through with it
        client.close()
        assert values_of(server) == {value}


@over_transports
@pytest.mark.parametrize("shards", [1, 2])
def test_those_who_wait_for_a_model_get_it_from_the_next_where_the_first_is_refused(
    workers: list[Worker], transport: str, shards: int
) -> None:
    waiting, bringer = workers[:2]
    with serve(None, "sync", transport, shards, workers=2) as server:
        waiting.begin("connect", address=server.address, rank=1, transport=transport)
        with pytest.raises(WorkerError, match="ConfigError"):
            bringer.connect(server.address, 0, transport, parameters=[])
        bringer.connect(server.address, 0, transport, parameters=[[SIZE]], value=4.0)
        waiting.result()
        assert set(waiting.do("pull")) == {4.0}
        wait_until(lambda: len(server.stats()["sessions"]) == 2, "both are there")
