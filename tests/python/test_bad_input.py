"""What a user may get wrong: one clear error each, and a server that goes on serving."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from worker_processes import (
    Worker,
    WorkerError,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
    wait_until,
)

import distnet

SHAPES = [(3, 4), (5,)]


def gradient(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    return [np.ones(shape, dtype) for shape in shapes]


@contextlib.contextmanager
def unharmed_pair(transport: str) -> Iterator[tuple[distnet.ParameterServer, distnet.Client]]:
    """A server of two tensors, and a client that must work to the end of the test."""
    with serve([np.zeros(shape, np.float32) for shape in SHAPES], "async-apply", transport) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        yield server, client
        client.push([-array for array in gradient(*SHAPES)])
        client.close()
        assert all(np.all(array == 1.0) for array in server.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        gradient((3, 4)),
        gradient((3, 4), (5,), (1,)),
        gradient((3, 4), (6,)),
        gradient((4, 3), (5,)),
        gradient((12,), (5,)),
        gradient((5,), (3, 4)),
        gradient((3, 4), (5,), dtype=np.float64),
        gradient((3, 4), (5,), dtype=np.int32),
        [],
        [[1.0] * 12, [1.0] * 5],
        [None, None],
        {"0": np.ones((3, 4), np.float32), "two": np.ones(5, np.float32)},
        {"0": np.ones((3, 4), np.float32)},
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("call", ["push", "push_pull", "begin_push_pull"])
@over_transports
def test_gradients_of_another_model_are_refused(transport: str, wrong: Any, call: str) -> None:
    with unharmed_pair(transport) as (server, client):
        with pytest.raises(distnet.ManifestMismatch):
            getattr(client, call)(wrong)
        assert server.stats()["accepted"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("call", ["push", "push_pull"])
@over_transports
def test_a_gradient_that_is_not_finite_is_refused_by_name_and_counted(transport: str, value: float, call: str) -> None:
    poisoned = gradient(*SHAPES)
    poisoned[1][4] = value
    with unharmed_pair(transport) as (server, client):
        with pytest.raises(distnet.NonFiniteGradient):
            getattr(client, call)(poisoned)
        assert all((array == 0.0).all() for array in server.parameters())
        wait_until(lambda: server.stats()["refused"] == 1, "the server counts the refusal")
        stats = server.stats()
        assert (stats["applied"], stats["updates"]) == (0, 0)


@pytest.mark.parametrize(
    "out", [gradient((3, 4)), gradient((3, 4), (6,)), gradient((3, 4), (5,), dtype=np.float64)], ids=lambda _: "out"
)
@over_transports
@pytest.mark.parametrize("call", ["pull", "push_pull"])
def test_arrays_of_another_model_cannot_be_pulled_into(transport: str, out: Any, call: str) -> None:
    with unharmed_pair(transport) as (server, client):
        with pytest.raises(distnet.ManifestMismatch):
            getattr(client, call)(*([gradient(*SHAPES)] if call == "push_pull" else []), out=out)
        assert server.stats()["accepted"] == 0, "a call that fails for its arguments pushed"


@over_transports
def test_read_only_arrays_cannot_be_pulled_into(transport: str) -> None:
    out = gradient(*SHAPES)
    out[0].flags.writeable = False
    with unharmed_pair(transport) as (_, client), pytest.raises(distnet.ManifestMismatch):
        client.pull(out=out)
    assert (out[0] == 1.0).all()


def unaligned(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays that NumPy calls float32 and C-contiguous, and that do not start on a multiple of 4 bytes."""
    arrays = []
    for shape in shapes:
        size = 4 * int(np.prod(shape))
        array = np.zeros(size + 8, np.uint8)[1 : size + 1].view(np.float32).reshape(shape)
        assert array.flags.c_contiguous
        assert not array.flags.aligned
        arrays.append(array)
    return arrays


@over_transports
@pytest.mark.parametrize("call", ["pull", "push_pull", "wait"])
def test_arrays_that_are_not_aligned_cannot_be_pulled_into(transport: str, call: str) -> None:
    out = [gradient((3, 4))[0], unaligned((5,))[0]]
    with unharmed_pair(transport) as (server, client):
        if call == "wait":
            handle = client.begin_push_pull([0 * array for array in gradient(*SHAPES)])
            with pytest.raises(distnet.ManifestMismatch, match=r"'1' is not aligned.*numpy\.empty"):
                handle.wait(out=out)
            handle.wait()
            return
        with pytest.raises(distnet.ManifestMismatch, match=r"'1' is not aligned.*numpy\.empty"):
            getattr(client, call)(*([gradient(*SHAPES)] if call == "push_pull" else []), out=out)
        assert server.stats()["accepted"] == 0, "a call that fails for its arguments pushed"


@over_transports
@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_parameters_may_lie_anywhere_in_memory(transport: str, processes: bool) -> None:
    given = [np.arange(12, dtype=np.float32).reshape(4, 3).T, *unaligned((5,)), np.arange(20, dtype=np.float32)[::2]]
    given[1][:] = np.arange(5)
    with serve(given, "async-apply", transport, processes=processes) as server:
        for array, expected in zip(server.parameters(), given, strict=True):
            np.testing.assert_array_equal(array, expected)


@over_transports
def test_an_ema_that_is_not_kept_is_refused(transport: str) -> None:
    with unharmed_pair(transport) as (_, client), pytest.raises(distnet.ConfigError, match="average"):
        client.pull(ema=True)


@pytest.mark.parametrize("call", ["push", "push_pull"])
@over_transports
def test_an_observer_cannot_push(transport: str, call: str) -> None:
    with serve([np.zeros(5, np.float32)], "async-apply", transport) as server:
        observer = distnet.connect(server.address, transport=transport)
        with pytest.raises(distnet.ConfigError):
            getattr(observer, call)(gradient((5,)))
        observer.pull()
        observer.close()


@over_transports
@over_shards
def test_ranks_out_of_range_are_refused_in_sync(transport: str, shards: int) -> None:
    with serve([np.zeros(5, np.float32)], "sync", transport, shards, workers=2) as server:
        with pytest.raises(distnet.ConfigError, match="rank 2"):
            distnet.connect(server.address, rank=2, transport=transport)
        first = distnet.connect(server.address, rank=0, transport=transport)
        second = distnet.connect(server.address, rank=1, transport=transport)
        second.close()
        first.push([np.full(5, -1.0, np.float32)])
        first.close()
        assert set(server.parameters()[0]) == {1.0}


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan"), "1", True])
def test_a_time_to_reconnect_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(distnet.ConfigError, match=r"reconnect_timeout is .*0 or above"):
        distnet.ParameterServer([np.zeros(5, np.float32)], reconnect_timeout=seconds)


def test_negative_ranks_and_unknown_transports_are_refused() -> None:
    with serve([np.zeros(5, np.float32)], "sync", "shm") as server:
        with pytest.raises(distnet.ConfigError, match="rank"):
            distnet.connect(server.address, rank=-1)
        with pytest.raises(distnet.ConfigError, match="transport"):
            distnet.connect(server.address, rank=0, transport="pigeon")
        with pytest.raises(distnet.ConfigError, match="timeout"):
            distnet.connect(server.address, rank=0, timeout=0)


@pytest.mark.parametrize(
    "address",
    ["", "nowhere", "udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:0", "shm://"],
)
def test_addresses_that_are_none_are_refused(address: str) -> None:
    with pytest.raises(distnet.ConfigError):
        distnet.connect(address, rank=0, timeout=2.0)  # at once: this cannot heal


def test_no_server_is_a_connect_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for address in (f"tcp://127.0.0.1:{port}", "shm://there-is-no-such-server"):
        with pytest.raises(distnet.ConnectError):
            distnet.connect(address, rank=0, timeout=2.0, connect_timeout=0)


def test_a_port_in_use_is_a_connect_error_that_names_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = distnet.ParameterServer([np.zeros(5, np.float32)], address=f"tcp://127.0.0.1:{port}")
        with pytest.raises(distnet.ConnectError, match=str(port)):
            server.start()


def test_a_name_in_use_is_a_connect_error() -> None:
    with distnet.ParameterServer([np.zeros(5, np.float32)], address="shm://one-name-two-servers"):
        second = distnet.ParameterServer([np.zeros(5, np.float32)], address="shm://one-name-two-servers")
        with pytest.raises(distnet.ConnectError, match="one-name-two-servers"):
            second.start()


@over_transports
@over_semantics_and_shards
def test_rank_0_brings_the_parameters_and_the_others_wait(
    workers: list[Worker], semantics: str, shards: int, transport: str
) -> None:
    bringer, other, observer = workers[:3]
    with serve(None, semantics, transport, shards, workers=2) as server:
        other.begin("connect", address=server.address, rank=1, transport=transport)
        observer.begin("connect", address=server.address, transport=transport)
        bringer.connect(server.address, 0, transport, parameters=[[3, 1000], [0], [], [7]])
        assert other.result()["shapes"] == observer.result()["shapes"] == [[3, 1000], [0], [], [7]]
        assert set(observer.do("pull")) == {0.0}
        for worker in (bringer, other):
            worker.begin("push_full", value=-1.0)
        for worker in (bringer, other):
            worker.result()
        for worker in (bringer, other):
            worker.begin("close")
        for worker in (bringer, other):
            worker.result()
        total = 1.0 if semantics == "sync" else 2.0
        assert all((array == total).all() for array in server.parameters())


@over_transports
def test_nobody_bringing_parameters_is_a_deadline(workers: list[Worker], transport: str) -> None:
    with serve(None, "sync", transport, workers=2) as server:
        worker = workers[0]
        worker.begin("connect", address=server.address, rank=1, transport=transport, connect_timeout=1.0)
        with pytest.raises(WorkerError, match="DeadlineExceeded"):
            worker.result(within_s=20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@over_transports
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_cannot_be_used_after_a_fork(transport: str) -> None:
    with serve([np.zeros(5, np.float32)], "async-apply", transport) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        pid = os.fork()
        if pid == 0:
            try:
                client.push([np.full(5, -1.0, np.float32)])
                os._exit(1)
            except distnet.DistNetError:
                os._exit(0)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert set(client.push_pull([np.full(5, -1.0, np.float32)])[0]) == {1.0}
        client.close()


@over_transports
def test_a_closed_client_says_so(transport: str) -> None:
    with serve([np.zeros(5, np.float32)], "async-apply", transport) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        client.close()
        client.close()
        with pytest.raises(distnet.DistNetError):
            client.pull()


def test_two_tensors_of_one_name_and_no_tensors_are_refused() -> None:
    with pytest.raises(distnet.ConfigError):
        distnet.ParameterServer([])
    with serve(None, "async-apply", "shm") as server, pytest.raises(distnet.ConfigError, match="no array"):
        distnet.connect(server.address, rank=0, parameters=[])
    with pytest.raises(distnet.ManifestMismatch):
        distnet.ParameterServer([np.zeros(3, int)])
