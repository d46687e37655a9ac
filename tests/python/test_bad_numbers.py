"""NaN and infinity from a peer that does not look for them: the server does, and nobody else's model is harmed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from network_proxy import Proxy
from raw_protocol import (
    NON_FINITE_GRADIENT,
    OF_PUSH_BEFORE,
    RawReply,
    RawSharedWorker,
    raw_shared_worker,
    raw_worker,
)
from worker_processes import over_transports, serve, wait_until

import distnet

FLOATS = 1024  # one block
BAD_AT = 40  # in the first 64, so that a store that updates in place applies nothing
REPLIES_FIRST = ("async-locked", "async-lockfree")
Floats = npt.NDArray[np.float32]


def encoded(gradient: Floats, form: str) -> bytes:
    """Return what a careless peer would send: docs/reference/formats.md, without a look at the values."""
    if form == "bfloat16":
        return (gradient.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if form == "float16":
        return gradient.astype(np.float16).tobytes()
    if form == "int8":
        steps = np.zeros(64, np.float32)
        steps[: FLOATS // 256] = np.abs(gradient.reshape(-1, 256)).max(axis=1) / 127
        with np.errstate(invalid="ignore"):
            values = np.nan_to_num(gradient / np.repeat(steps[: FLOATS // 256], 256)).astype(np.int8)
        return steps.tobytes() + values.tobytes()
    if form == "topk":
        kept = round(0.01 * FLOATS)
        places = np.sort(np.argsort(-np.nan_to_num(np.abs(gradient), nan=np.inf), kind="stable")[:kept])
        payload = places.astype(np.uint16).tobytes() + gradient[places].tobytes()
        return payload + bytes(-len(payload) % 64)
    return gradient.tobytes()


def ones_but(value: float) -> Floats:
    gradient = np.full(FLOATS, -1.0, np.float32)
    gradient[BAD_AT] = value
    return gradient


@contextlib.contextmanager
def careless_worker(
    server: distnet.ParameterServer, transport: str, rank: int = 0
) -> Iterator[tuple[Callable[..., None], Callable[[], RawReply]]]:
    """Yield how to push a gradient without a look at it, and how to take the reply."""
    if transport == "tcp":
        with raw_worker(server, rank) as over_tcp:
            yield over_tcp.send_push, over_tcp.reply
        return
    with raw_shared_worker(server, FLOATS, rank) as shared:

        def reply(worker: RawSharedWorker = shared) -> RawReply:
            wait_until(worker.has_reply, "the reply comes")
            return worker.reply()

        yield shared.send_push, reply


def assert_unharmed(server: distnet.ParameterServer, expected: float = 0.0) -> None:
    np.testing.assert_array_equal(server.parameters()[0], np.full(FLOATS, expected, np.float32))
    for vector in server.optimizer_state():
        assert np.isfinite(vector[0]).all()


@pytest.mark.parametrize("optimizer", [distnet.SGD(1.0), distnet.Momentum(1.0)], ids=["SGD", "Momentum"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-locked", "async-lockfree"])
@over_transports
def test_a_bad_gradient_is_refused_and_told_and_changes_nothing(
    transport: str, semantics: str, value: float, optimizer: distnet.Optimizer
) -> None:
    with (
        serve([np.zeros(FLOATS, np.float32)], semantics, transport, optimizer=optimizer) as server,
        careless_worker(server, transport) as (push, reply),
    ):
        push(ones_but(value))
        first = reply()
        wait_until(lambda: server.stats().refused == 1, "the server refuses the push")
        stats = server.stats()
        assert (stats.accepted, stats.applied, stats.updates, stats.queue_depth) == (1, 0, 0, 0)
        assert stats.refused_in_part == (1 if semantics == "async-lockfree" else 0)
        assert stats.sessions[0].refused == 1
        assert_unharmed(server)
        assert all((vector[0] == 0.0).all() for vector in server.optimizer_state())

        push(ones_but(-1.0), round_number=1 if semantics == "sync" else 0)
        second = reply()
        wait_until(lambda: server.stats().applied == 1, "the server goes on")
        assert_unharmed(server, expected=1.0)
        push(ones_but(-1.0), round_number=2 if semantics == "sync" else 0)
        third = reply()
    told, silent = (second, first) if semantics in REPLIES_FIRST else (first, second)
    assert (told.status, told.flags & OF_PUSH_BEFORE != 0) == (NON_FINITE_GRADIENT, semantics in REPLIES_FIRST)
    assert (silent.status, third.status) == (0, 0)


@pytest.mark.parametrize("optimizer", [distnet.SGD(1.0), distnet.Adam(1.0)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-locked", "async-lockfree"])
@pytest.mark.parametrize("form", list(distnet.FORMATS))
def test_the_server_looks_in_every_format(form: str, semantics: str, optimizer: distnet.Optimizer) -> None:
    parameters = [np.zeros(FLOATS, np.float32)]
    with (
        serve(parameters, semantics, "tcp", push_format=form, optimizer=optimizer) as server,
        raw_worker(server) as worker,
    ):
        for number, value in enumerate((np.nan, np.inf, -np.inf), start=1):
            worker.send_push(encoded(ones_but(value), form), round_number=number - 1)
            worker.reply()

            def is_refused(number: int = number) -> bool:
                return server.stats().refused == number

            wait_until(is_refused, "the server refuses the push")
            assert_unharmed(server)
        worker.send_push(encoded(ones_but(-1.0), form), round_number=3)
        worker.reply()
        wait_until(lambda: server.stats().applied == 1, "the server goes on")


@pytest.mark.parametrize("optimizer", [distnet.SGD(1.0), distnet.Momentum(1.0)], ids=["SGD", "Momentum"])
@over_transports
def test_a_round_goes_on_without_a_bad_gradient_and_its_mean_is_that_of_the_others(
    transport: str, optimizer: distnet.Optimizer
) -> None:
    with (
        serve([np.zeros(FLOATS, np.float32)], "sync", transport, workers=3, optimizer=optimizer) as server,
        careless_worker(server, transport, rank=0) as (push_first, reply_first),
        careless_worker(server, transport, rank=1) as (push_bad, reply_bad),
        careless_worker(server, transport, rank=2) as (push_last, reply_last),
    ):
        push_first(np.full(FLOATS, -1.0, np.float32))
        push_bad(ones_but(np.nan))
        push_last(np.full(FLOATS, -3.0, np.float32))
        assert (reply_first().status, reply_bad().status, reply_last().status) == (0, NON_FINITE_GRADIENT, 0)
        np.testing.assert_array_equal(server.parameters()[0], np.full(FLOATS, 2.0, np.float32))
        stats = server.stats()
        assert (stats.applied, stats.refused, stats.updates, stats.round) == (2, 1, 1, 1)


@pytest.mark.parametrize("semantics", ["async-apply", "async-locked", "async-lockfree"])
def test_a_client_whose_bytes_are_damaged_on_their_way_hears_of_it_and_goes_on(semantics: str) -> None:
    marker, damage = np.float32(1.2345), np.float32(np.nan)
    with (
        serve([np.zeros(FLOATS, np.float32)], semantics, "tcp") as server,
        Proxy(server.address) as proxy,
        distnet.connect(proxy.address, rank=0, transport="tcp") as client,
    ):
        (link,) = proxy.links("data", 1)
        client.push([np.full(FLOATS, -1.0, np.float32)])
        link.corruption = (marker.tobytes(), damage.tobytes())
        damaged = [np.full(FLOATS, marker, np.float32)]
        if semantics == "async-apply":
            with pytest.raises(distnet.NonFiniteGradient, match="push 2"):
                client.push(damaged)
        else:
            client.push(damaged)
            with pytest.raises(distnet.NonFiniteGradient, match="push 2"):
                client.pull()
        parameters = client.push_pull([np.full(FLOATS, -1.0, np.float32)])
        assert np.isfinite(parameters[0]).all()
        np.testing.assert_array_equal(server.parameters()[0], np.full(FLOATS, 2.0, np.float32))
        assert client.accepted == 3
        assert (server.stats().applied, server.stats().refused) == (2, 1)


def test_a_client_that_closes_after_a_push_that_was_refused_is_warned() -> None:
    with serve([np.zeros(FLOATS, np.float32)], "async-lockfree", "tcp") as server, Proxy(server.address) as proxy:
        client = distnet.connect(proxy.address, rank=0, transport="tcp")
        (link,) = proxy.links("data", 1)
        link.corruption = (np.float32(1.2345).tobytes(), np.float32(np.inf).tobytes())
        client.push([np.full(FLOATS, 1.2345, np.float32)])
        with pytest.warns(distnet.DistNetWarning, match="push 1, the last"):
            client.close()


@pytest.mark.parametrize("store", [distnet.MutexStore, distnet.LockFreeStore])
def test_a_store_by_itself_refuses_a_bad_gradient_and_goes_on(
    store: type[distnet.MutexStore] | type[distnet.LockFreeStore],
) -> None:
    parameters = store(np.zeros(FLOATS, np.float32), distnet.Adam(0.1))
    with pytest.raises(distnet.NonFiniteGradient):
        parameters.apply(ones_but(np.nan))
    assert parameters.version == 0
    parameters.apply(ones_but(-1.0))
    out = np.empty(FLOATS, np.float32)
    assert parameters.read(out) == 1
    assert np.isfinite(out).all()
