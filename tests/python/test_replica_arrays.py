"""The arrays that replies go to, and a client that is called from changing threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from worker_processes import over_semantics_and_shards, over_transports, serve

import distnet

MODEL = {"a": (3,), "b": (), "c": (700, 9), "d": (1,), "e": (5000,)}


def start() -> dict[str, Any]:
    return {name: np.zeros(shape, np.float32) for name, shape in MODEL.items()}


def gradient(value: float) -> dict[str, Any]:
    return {name: np.full(shape, value, np.float32) for name, shape in MODEL.items()}


@over_transports
@over_semantics_and_shards
def test_replies_without_out_go_to_aligned_arrays_that_stay(semantics: str, shards: int, transport: str) -> None:
    with serve(start(), semantics, transport, shards, workers=1) as server:
        with distnet.connect(server.address, rank=0, transport=transport) as client:
            mine = client.replica_arrays()
            assert isinstance(mine, dict)
            addresses = [array.ctypes.data for array in mine.values()]
            assert [address % 64 for address in addresses] == [0] * len(MODEL)
            assert all(array.flags.writeable and array.shape == MODEL[name] for name, array in mine.items())
            for step in range(1, 4):
                client.push(gradient(-1.0))
                fresh = client.pull() if step % 2 else client.push_pull(None)
                assert all(fresh[name] is mine[name] for name in MODEL)  # type: ignore[call-overload]
                assert all(np.all(array == step) for array in mine.values())
                mine["c"][0, 0] = 77.0  # the caller's between two calls
            other = start()
            client.pull(out=other)
            assert mine["c"][0, 0] == 77.0
            handle = client.begin_push_pull(gradient(-1.0))
            handle.wait()
            client.pull()
            again = client.replica_arrays()
            assert [array.ctypes.data for array in again.values()] == addresses
        assert all(np.all(array == 4.0) for array in mine.values())  # after the end, too


@pytest.mark.parametrize("semantics", list(distnet.SEMANTICS))
def test_a_version_that_is_read_while_it_is_made_goes_where_the_call_wants_it(semantics: str) -> None:
    """Over shared memory a client copies a large model piece by piece before the reply says that it is there."""
    large = np.zeros((40, 16_384), np.float32)
    shards = distnet.SEMANTICS[semantics].minimum_servers
    rng = np.random.default_rng(7)
    total = large.copy()
    with (
        serve([large], semantics, "shm", shards, workers=1, optimizer=distnet.SGD(1.0)) as server,
        distnet.connect(server.address, rank=0, transport="shm") as client,
    ):
        (mine,) = client.replica_arrays()
        mine[...] = 77.0
        for step in range(10):
            pushed = rng.integers(-4, 5, large.shape).astype(np.float32)
            total -= pushed
            out = np.full_like(large, np.nan)
            if step % 3:
                client.push_pull([pushed], out=[out])
            else:
                client.push([pushed])
                client.pull(out=[out])
            if client.applied == step + 1:  # else the reply came first
                np.testing.assert_array_equal(out, total)
            assert np.all(mine == 77.0), "the client's own arrays are the caller's between calls that use them"
        client.barrier()
        np.testing.assert_array_equal(client.pull(out=[out])[0], total)


def test_a_list_of_arrays_stays_a_list() -> None:
    with serve([np.ones(3, np.float32)], "async-apply", "shm") as server, distnet.connect(server.address) as client:
        mine = client.replica_arrays()
        assert isinstance(mine, list)
        client.pull()
        assert mine[0].tolist() == [1.0, 1.0, 1.0]


@over_transports
@pytest.mark.parametrize("semantics", list(distnet.SEMANTICS))
def test_a_client_may_be_called_from_changing_threads_one_at_a_time(semantics: str, transport: str) -> None:
    """Each call from a thread of its own, the first and the last one's thread ended long ago."""
    shards = distnet.SEMANTICS[semantics].minimum_servers

    def in_a_thread(call: Callable[[], Any]) -> Any:
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(call()))
        thread.start()
        thread.join()
        (result,) = results
        return result

    with serve(start(), semantics, transport, shards, workers=1) as server:
        client = in_a_thread(lambda: distnet.connect(server.address, rank=0, transport=transport))
        for step in range(1, 6):
            if step % 2:
                in_a_thread(lambda: client.push(gradient(-1.0), learning_rate=1.0))
            else:
                handle = in_a_thread(lambda: client.begin_push_pull(gradient(-1.0)))
                in_a_thread(handle.wait)
            assert np.all(in_a_thread(client.pull)["c"] == step)
        in_a_thread(client.barrier)
        assert np.all(in_a_thread(client.finish)["e"] == 5.0)
        assert in_a_thread(client.stats)[0].workers_died == 0
        in_a_thread(client.close)
        assert server.stats().workers_done == 1
