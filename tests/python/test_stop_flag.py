"""A stop flag ends waits on whichever thread they are; the client or group goes on, or says that it does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from worker_processes import over_shards, over_transports, serve

import distnet

SOON_S = 10.0  # for what takes a tenth of a second on a machine that is not busy
WITHIN_S = 60.0


class Flag(threading.Event):
    """An event that knows whether a wait has looked at it."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = threading.Event()

    def is_set(self) -> bool:
        self.looked.set()
        return super().is_set()


def ends_soon(flag: Flag, call: Callable[[], Any]) -> distnet.Interrupted:
    """Set the flag while another thread waits in the call, and return the error that it raises."""
    flag.clear()
    flag.looked.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[Any] = pool.submit(call)
        assert flag.looked.wait(WITHIN_S)
        assert not waiting.done()
        set_s = time.monotonic()
        flag.set()
        with pytest.raises(distnet.Interrupted, match="the stop flag was set") as error:
            waiting.result(WITHIN_S)
        assert time.monotonic() - set_s < SOON_S
    flag.clear()
    return error.value


def ones() -> list[np.ndarray]:
    return [np.ones(100, np.float32)]


@over_transports
@over_shards
def test_it_ends_a_round_s_wait_and_the_push_counts_once(transport: str, shards: int) -> None:
    flag = Flag()
    with (
        serve([np.zeros(100, np.float32)], "sync", transport, shards, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport, stop=flag) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        ends_soon(flag, lambda: first.push_pull(ones()))
        second.push_pull(ones())
        with ThreadPoolExecutor(1) as pool:  # the client goes on, on another thread
            again = pool.submit(first.push_pull, ones())
            (fresh,) = second.push_pull(ones())
            assert set(again.result(WITHIN_S)[0]) == set(fresh) == {-2.0}
        assert (first.accepted, first.applied, first.version) == (2, 2, 2)


def test_it_ends_a_handle_s_wait_and_a_barrier_s() -> None:
    flag = Flag()
    with (
        serve([np.zeros(100, np.float32)], "sync", "shm", workers=2) as server,
        distnet.connect(server.address, rank=0, stop=flag) as first,
        distnet.connect(server.address, rank=1) as second,
    ):
        handle = first.begin_push_pull(ones())
        ends_soon(flag, handle.wait)
        second.push_pull(ones())
        ends_soon(flag, first.barrier)
        with pytest.raises(distnet.DeadlineExceeded, match="rank 0"):  # it does not count as waiting any more
            second.barrier(timeout=0.1)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(first.barrier)
            second.barrier(timeout=WITHIN_S)
            waiting.result(WITHIN_S)


def test_a_call_that_need_not_wait_goes_on_while_it_is_set() -> None:
    flag = Flag()
    with serve([np.zeros(100, np.float32)], "async-apply", "shm") as server:
        client = distnet.connect(server.address, rank=0, stop=flag)
        flag.set()
        assert client.accepted == 0
        flag.clear()
        client.push(ones())
        client.close()


def test_it_ends_the_wait_for_a_server_and_for_a_model() -> None:
    flag = Flag()
    error = ends_soon(flag, lambda: distnet.connect("shm://nobody-listens-here", rank=0, stop=flag))
    assert "no server" in str(error) or "no answer" in str(error)
    with distnet.ParameterServer(semantics="sync", workers=2) as server:
        ends_soon(flag, lambda: distnet.connect(server.address, rank=1, stop=flag))


def test_it_ends_the_wait_for_the_members_of_a_group() -> None:
    flag = Flag()
    with distnet.GroupCoordinator() as coordinator:
        ends_soon(flag, lambda: distnet.ProcessGroup(coordinator.address, 0, 2, stop=flag))


@over_transports
def test_it_ends_a_work_s_wait_and_the_operation_goes_on(transport: str) -> None:
    flag = Flag()
    with distnet.GroupCoordinator("tcp://127.0.0.1:0") as coordinator, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(distnet.ProcessGroup, coordinator.address, 1, 2, transport=transport)
        with distnet.ProcessGroup(coordinator.address, 0, 2, transport=transport, stop=flag) as first:
            second = coming.result(WITHIN_S)
            work = first.begin_allreduce(np.ones(3))
            ends_soon(flag, work.wait)
            ends_soon(flag, lambda: first.barrier(name="named"))  # waits for its turn, not in its middle
            done = pool.submit(second.barrier, name="named")
            assert second.allreduce(np.ones(3)).tolist() == [2.0] * 3
            assert work.wait().tolist() == [2.0] * 3
            done.result(WITHIN_S)
            second.close()


def twice(call: Callable[[], Any]) -> None:
    call()
    call()


@over_transports
def test_an_operation_that_it_breaks_off_ends_the_group_for_all(transport: str) -> None:
    flag = Flag()
    with distnet.GroupCoordinator("tcp://127.0.0.1:0") as coordinator, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(distnet.ProcessGroup, coordinator.address, 1, 2, transport=transport)
        first = distnet.ProcessGroup(coordinator.address, 0, 2, transport=transport, stop=flag)
        second = coming.result(WITHIN_S)
        ends_soon(flag, lambda: first.allreduce(np.ones(3)))
        with pytest.raises(distnet.PeerClosed, match=r"it was interrupted in allreduce"):
            first.allreduce(np.ones(3))
        with pytest.raises(distnet.PeerClosed, match=r"rank 0 of group 'world' cannot go on: it was interrupted"):
            twice(lambda: second.allreduce(np.ones(3)))  # all of a small array may have come before
        first.close()
        second.close()


@pytest.mark.parametrize("wrong", [True, "now", threading.Lock()])
def test_what_cannot_be_asked_is_no_stop_flag(wrong: Any) -> None:
    for call in (
        lambda: distnet.connect("shm://x", stop=wrong),
        lambda: distnet.ProcessGroup("shm://x", 0, 1, stop=wrong),
    ):
        with pytest.raises(distnet.ConfigError, match=r"stop is .*expected an object with is_set"):
            call()
