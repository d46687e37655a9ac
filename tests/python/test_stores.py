"""The native stores by themselves, from Python threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import distnet

STORES = [distnet.MutexStore, distnet.LockFreeStore]
# One element, less than a vector register, a few, several chunks and a bit.
SIZES = [1, 3, 1000, 40_001]

every_store = pytest.mark.parametrize("store_type", STORES)


def run_together(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(0)`` ... ``work(count - 1)`` on threads released at once, and raise what one of them raised."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait()
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


@every_store
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_every_update_of_every_thread_arrives_exactly_once(store_type: Any, size: int, threads: int) -> None:
    store = store_type(np.zeros(size, np.float32), distnet.SGD(1.0))
    updates = 200

    def work(index: int) -> None:
        gradient = np.zeros(size, np.float32)
        gradient[0] = -1.0  # everyone's
        gradient[index % size] -= 1.0  # its own, where there are enough
        for _ in range(updates):
            store.apply(gradient)

    run_together(threads, work)
    expected = np.zeros(size)
    expected[0] = threads * updates
    for index in range(threads):
        expected[index % size] += updates
    out = np.empty(size, np.float32)
    store.read(out)
    np.testing.assert_array_equal(out, expected)
    assert store.version == threads * updates


def test_a_read_of_the_mutex_store_is_one_version_while_others_write() -> None:
    size = 20_000
    store = distnet.MutexStore(np.zeros(size, np.float32), distnet.SGD(1.0))
    writing = threading.Event()
    writing.set()

    def work(index: int) -> None:
        if index == 0:
            gradient = np.full(size, -1.0, np.float32)
            for _ in range(2000):
                store.apply(gradient)
            writing.clear()
            return
        out = np.empty(size, np.float32)
        newest = 0.0
        while writing.is_set():
            published = store.version
            store.read(out)
            assert (out == out[0]).all()
            assert out[0] >= newest
            assert out[0] >= published
            newest = out[0]

    run_together(3, work)


@every_store
def test_the_store_keeps_its_own_copy_of_parameters_and_gradient(store_type: Any) -> None:
    parameters = np.ones(100, np.float32)
    store = store_type(parameters, distnet.SGD(1.0))
    parameters[:] = 7.0
    gradient = np.full(100, -1.0, np.float32)
    store.apply(gradient)
    gradient[:] = 1000.0
    out = np.empty(100, np.float32)
    store.read(out)
    np.testing.assert_array_equal(out, 2.0)


@every_store
def test_clipping_by_value_happens_in_the_store(store_type: Any) -> None:
    store = store_type(np.zeros(3, np.float32), distnet.SGD(1.0, clip_value=0.5))
    store.apply(np.array([2.0, -2.0, 0.25], np.float32))
    out = np.empty(3, np.float32)
    store.read(out)
    np.testing.assert_array_equal(out, [-0.5, 0.5, -0.25])


@every_store
@pytest.mark.parametrize(
    "gradient",
    [
        np.zeros(99, np.float32),
        np.zeros(101, np.float32),
        np.zeros(100, np.float64),
        np.zeros(200, np.float32)[::2],
        [0.0] * 100,
    ],
    ids=["too short", "too long", "float64", "strided", "list"],
)
def test_a_gradient_that_does_not_fit_is_refused_and_changes_nothing(store_type: Any, gradient: Any) -> None:
    store = store_type(np.ones(100, np.float32), distnet.SGD(1.0))
    with pytest.raises((distnet.ConfigError, TypeError, ValueError)):
        store.apply(gradient)
    out = np.zeros(100, np.float32)
    store.read(out)
    np.testing.assert_array_equal(out, 1.0)
    assert store.version == 0


@every_store
def test_a_read_only_or_wrong_target_is_refused(store_type: Any) -> None:
    store = store_type(np.ones(10, np.float32), distnet.SGD(1.0))
    read_only = np.zeros(10, np.float32)
    read_only.setflags(write=False)
    for out in (read_only, np.zeros(11, np.float32), np.zeros(10, np.float64)):
        with pytest.raises((distnet.ConfigError, TypeError, ValueError)):
            store.read(out)
    np.testing.assert_array_equal(read_only, 0.0)


@every_store
def test_a_store_without_parameters_is_refused(store_type: Any) -> None:
    with pytest.raises(distnet.ConfigError):
        store_type(np.zeros(0, np.float32), distnet.SGD(1.0))


finite = st.floats(-1e3, 1e3, width=32)


@every_store
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_sgd_is_exactly_p_less_rate_times_g(store_type: Any, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    vectors = st.lists(finite, min_size=size, max_size=size).map(lambda values: np.array(values, np.float32))
    parameters, gradients = data.draw(vectors), data.draw(st.lists(vectors, max_size=5))
    rate = np.float32(data.draw(st.floats(0.0, 10.0, width=32)))
    store = store_type(parameters, distnet.SGD(float(rate)))
    expected = parameters.copy()
    for gradient in gradients:
        store.apply(gradient)
        expected = expected - rate * gradient
    out = np.empty(size, np.float32)
    store.read(out)
    np.testing.assert_array_equal(out, expected)
