"""What the page on errors quotes is what a user reads, and each error has its section."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import distnet
import distnet.errors

PAGE = (pathlib.Path(__file__).parents[2] / "docs/guide/errors.md").read_text(encoding="utf-8")
QUOTED = [text.strip() for _, text in re.findall(r"^(?:\| )?(`{1,2})(.+?)\1(?: \||:|[.] )", PAGE, re.M)]
# Dots stand for what differs, and so does every number.
PATTERNS = [re.compile(re.sub(r"\d+", r"\\d+", re.escape(text).replace("…", ".*"))) for text in QUOTED]
PARAMETERS = [np.zeros(4, np.float32)]


def client_of(**arguments: object) -> tuple[distnet.ParameterServer, distnet.Client]:
    server = distnet.ParameterServer(PARAMETERS, **arguments).start()  # type: ignore[arg-type]
    return server, distnet.connect(server.address, rank=0)


def pushed(*gradients: np.ndarray) -> None:
    server, client = client_of()
    with server, client:
        client.push(list(gradients))


def no_address() -> None:
    distnet.connect()


def an_address_without_scheme() -> None:
    distnet.connect("localhost:7400")


def nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        distnet.connect(f"tcp://127.0.0.1:{taken.getsockname()[1]}", rank=0, connect_timeout=0)


def a_port_that_is_taken() -> None:
    with distnet.ParameterServer(PARAMETERS, address="tcp://127.0.0.1:0") as server:
        distnet.ParameterServer(PARAMETERS, address=server.address).start()


def double_precision() -> None:
    pushed(np.zeros(4))


def another_shape() -> None:
    pushed(np.zeros(5, np.float32))


def too_many_arrays() -> None:
    pushed(*PARAMETERS, *PARAMETERS)


def not_a_number() -> None:
    pushed(np.full(4, np.nan, np.float32))


def another_model() -> None:
    with distnet.ParameterServer(PARAMETERS) as server:
        distnet.connect(server.address, rank=1, parameters=[np.zeros(7, np.float32)])


def no_moving_average() -> None:
    server, client = client_of()
    with server, client:
        client.pull(ema=True)


def a_server_that_is_gone() -> None:
    server, client = client_of(address="tcp://127.0.0.1:0")
    server.stop()
    client.pull()


def a_newer_session() -> None:
    server, client = client_of(semantics="sync")
    with server, distnet.connect(server.address, rank=0):
        client.push(PARAMETERS)


def a_rank_beyond() -> None:
    server, client = client_of(semantics="sync")
    with server, client:
        distnet.connect(server.address, rank=1)


def a_barrier_that_nobody_joins() -> None:
    server, client = client_of(workers=2)
    with server, client:
        client.barrier(timeout=0.1)


def rounds_that_a_death_ends() -> None:
    semantics = dataclasses.replace(distnet.SEMANTICS["sync"], on_loss="abort")
    server, client = client_of(semantics=semantics, workers=2)
    with server, client:
        with pytest.raises(KeyError), distnet.connect(server.address, rank=1):
            raise KeyError
        client.push(PARAMETERS)


def a_rate_that_float32_cannot_hold() -> None:
    server, client = client_of()
    with server, client:
        client.push(PARAMETERS, learning_rate=1e39)


def a_change_that_is_no_number() -> None:
    server, client = client_of()
    with server, client:
        client.add([np.full(4, np.inf, np.float32)])


def a_stop_flag_that_is_set() -> None:
    stop = threading.Event()
    server = distnet.ParameterServer(PARAMETERS, semantics="sync", workers=2)
    with server, distnet.connect(server.address, rank=0, stop=stop) as client:
        stop.set()
        client.push(PARAMETERS)


@contextlib.contextmanager
def group_of_two() -> Iterator[tuple[distnet.ProcessGroup, distnet.ProcessGroup]]:
    with distnet.GroupCoordinator() as coordinator, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(distnet.ProcessGroup, coordinator.address, 1, 2)
        first = distnet.ProcessGroup(coordinator.address, 0, 2)
        second = coming.result(60)
        try:
            yield first, second
        finally:
            first._native.abandon()
            second._native.abandon()


def a_member_that_left() -> None:
    with group_of_two() as (first, second):
        second.close()
        first.recv(np.zeros(3), source=1)


def a_member_that_is_gone() -> None:
    with group_of_two() as (first, second):
        second._native.abandon()
        first.barrier()


def a_named_operation_that_others_do_not_call() -> None:
    with distnet.GroupCoordinator() as coordinator, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(distnet.ProcessGroup, coordinator.address, 1, 2)
        with distnet.ProcessGroup(coordinator.address, 0, 2, operation_timeout=0.1) as first, coming.result(60):
            first.barrier(name="ready")


def arrays_that_differ() -> None:
    with group_of_two() as (first, second):
        work = second.begin_allreduce(np.zeros(3))
        with contextlib.suppress(distnet.CollectiveMismatch):
            first.allreduce(np.zeros(4))
        work.wait()


def a_server_that_was_not_started() -> None:
    _ = distnet.ParameterServer(PARAMETERS).address


@pytest.mark.parametrize(
    ("provoke", "error"),
    [
        (no_address, distnet.ConfigError),
        (an_address_without_scheme, distnet.ConfigError),
        (a_rank_beyond, distnet.ConfigError),
        (no_moving_average, distnet.ConfigError),
        (a_server_that_was_not_started, distnet.ConfigError),
        (double_precision, distnet.ManifestMismatch),
        (another_shape, distnet.ManifestMismatch),
        (too_many_arrays, distnet.ManifestMismatch),
        (another_model, distnet.ManifestMismatch),
        (nobody_listens, distnet.ConnectError),
        (a_port_that_is_taken, distnet.ConnectError),
        (a_server_that_is_gone, distnet.PeerClosed),
        (a_barrier_that_nobody_joins, distnet.DeadlineExceeded),
        (a_newer_session, distnet.Fenced),
        (rounds_that_a_death_ends, distnet.RoundAborted),
        (not_a_number, distnet.NonFiniteGradient),
        (a_change_that_is_no_number, distnet.NonFiniteGradient),
        (a_rate_that_float32_cannot_hold, distnet.ConfigError),
        (a_stop_flag_that_is_set, distnet.Interrupted),
        (a_member_that_left, distnet.PeerClosed),
        (a_member_that_is_gone, distnet.PeerClosed),
        (a_named_operation_that_others_do_not_call, distnet.DeadlineExceeded),
        (arrays_that_differ, distnet.CollectiveMismatch),
    ],
)
def test_the_message_is_quoted_on_the_page(provoke: Callable[[], None], error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        provoke()
    assert any(pattern.search(str(raised.value)) for pattern in PATTERNS), raised.value


def test_checkpoints_that_cannot_be_read_are_quoted_on_the_page(tmp_path: pathlib.Path) -> None:
    def message() -> str:
        with pytest.raises(distnet.CheckpointError) as raised:
            distnet.checkpoint.load(tmp_path)
        return str(raised.value)

    messages = [message()]
    with distnet.ParameterServer(PARAMETERS) as server:
        file = server.checkpoint(tmp_path)
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), b"x" * 100):
        file.write_bytes(damaged)
        messages.append(message())
    for text in messages:
        assert any(pattern.search(text) for pattern in PATTERNS), text


def test_every_error_has_a_section() -> None:
    sections = set(re.findall(r"^## (\w+)$", PAGE, re.M))
    assert set(distnet.errors.__all__) - {"DistNetError"} <= sections


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    tree = re.search(r"    DistNetError\n(?:    [├│└].*\n)+", distnet.errors.__doc__ or "")
    assert tree is not None
    assert re.sub(r"^    ", "", tree[0], flags=re.M) in PAGE
