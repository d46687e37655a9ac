"""What happens where a process has no descriptors left: newcomers are refused by name, and everybody else goes on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from limited_server import LimitedServer
from raw_protocol import OBSERVER, PROBE, REFUSED, WORKER, endpoint_of, header, hello, message
from worker_processes import over_transports, wait_until

import distnet

LIMIT = 96  # enough for a server and a few clients


@contextlib.contextmanager
def strangers(address: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with contextlib.ExitStack() as held:
        connected = []
        for _ in range(count):
            connected.append(held.enter_context(socket.socket()))
            connected[-1].settimeout(30)
            connected[-1].connect(endpoint_of(address))
        yield connected


@contextlib.contextmanager
def full(address: str) -> Iterator[list[distnet.Client]]:
    """Observers until one is refused, and some strangers that take what is left; yields the observers."""
    with contextlib.ExitStack() as held:
        observers: list[distnet.Client] = []
        with contextlib.suppress(distnet.TransportError):
            while True:
                observers.append(held.enter_context(distnet.connect(address, transport="tcp", connect_timeout=0)))
        held.enter_context(strangers(address, 12))
        yield observers


def refusal_at(address: str) -> str:
    """Return what the server says to a newcomer."""
    with socket.create_connection(endpoint_of(address), timeout=30) as newcomer:
        newcomer.sendall(header(PROBE, 0))
        kind, payload = message(newcomer)
        return payload[6:].decode() if kind == REFUSED else ""


@pytest.mark.parametrize("semantics", ["sync", "async-apply", "async-locked"])
@over_transports
def test_at_the_limit_newcomers_are_refused_by_name_and_the_job_goes_on(semantics: str, transport: str) -> None:
    gradient = [np.full(1000, -1.0, np.float32)]
    with LimitedServer(LIMIT, semantics=semantics, address="tcp://127.0.0.1:0") as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        client.push_pull(gradient)
        with full(server.address):
            with pytest.raises(distnet.TransportError, match="no file descriptor is left"):
                distnet.connect(server.address, connect_timeout=0)
            for step in range(2, 20):
                (values,) = client.push_pull(gradient)
                client.pull()
                assert semantics == "async-locked" or set(values) == {float(step)}
        wait_until(lambda: not refusal_at(server.address), "the strangers are forgotten")
        with distnet.connect(server.address) as late:
            assert set(late.pull()[0]) == {19.0}
        client.close()


def test_after_a_burst_a_server_has_what_it_had_and_hears_again() -> None:
    with LimitedServer(LIMIT, semantics="async-apply", address="tcp://127.0.0.1:0") as server:
        before = server.descriptors(), server.threads()
        with strangers(server.address, 200):
            wait_until(lambda: server.descriptors() == LIMIT, "the server is at its limit")
        wait_until(lambda: (server.descriptors(), server.threads()) == before, "all is given back")
        with distnet.connect(server.address, rank=0) as client:
            client.pull()


@over_transports
def test_workers_come_until_the_limit_and_those_admitted_lack_nothing(transport: str) -> None:
    gradient = [np.full(1000, -1.0, np.float32)]
    with (
        LimitedServer(LIMIT, semantics="async-apply", address="tcp://127.0.0.1:0", workers=64) as server,
        contextlib.ExitStack() as held,
    ):
        admitted: list[distnet.Client] = []

        def come_one_by_one() -> None:
            for rank in range(64):
                client = distnet.connect(server.address, rank=rank, transport=transport, connect_timeout=0)
                admitted.append(held.enter_context(client))

        with pytest.raises(distnet.TransportError, match="no file descriptor is left"):
            come_one_by_one()
        assert len(admitted) >= 5
        handles = [client.begin_push_pull(gradient) for client in admitted]  # each pins a version of its own
        for client, handle in zip(admitted, handles, strict=True):
            handle.wait()
            client.push_pull(gradient)
        assert server.ask("stats")["applied"] == 2 * len(admitted)


@over_transports
def test_a_refused_newcomer_does_not_abort_a_job_that_ends_with_a_lost_worker(transport: str) -> None:
    address = "tcp://127.0.0.1:0"
    with (
        LimitedServer(LIMIT, semantics="sync", on_loss="abort", workers=2, address=address) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        full(server.address) as observers,
    ):
        second = None
        refusals = 0
        while second is None:  # each time with a little more room, so that another of its needs is lacking
            try:
                second = distnet.connect(server.address, rank=1, transport=transport, connect_timeout=0)
            except distnet.TransportError:
                refusals += 1
                if refusals % 3 == 0:
                    observers.pop().close()
        assert refusals > 0
        handle = first.begin_push_pull([np.full(1000, -1.0, np.float32)])
        assert set(second.push_pull([np.full(1000, -3.0, np.float32)])[0]) == {2.0}
        handle.wait()
        second.close()


def test_a_process_of_our_own_raises_its_soft_limit() -> None:
    with (
        LimitedServer(128, semantics="async-apply", address="tcp://127.0.0.1:0", workers=100, processes=True) as server,
        strangers(server.address, 400),
        distnet.connect(server.address, rank=0) as client,
    ):
        client.pull()


def test_a_hello_at_the_limit_is_refused_before_anything_is_made_for_it() -> None:
    with (
        LimitedServer(LIMIT, semantics="async-apply", address="tcp://127.0.0.1:0") as server,
        full(server.address) as observers,
    ):
        for role in (WORKER, OBSERVER):
            with socket.create_connection(endpoint_of(server.address), timeout=30) as newcomer:
                newcomer.sendall(hello(role=role))
                kind, payload = message(newcomer)
                assert (kind, b"no file descriptor is left" in payload) == (REFUSED, True)
        assert len(server.ask("stats")["sessions"]) == len(observers)
