"""What ``distnet bench`` and ``bench/`` measure: exchanges with a server, and the limits of the machine they run on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distnet._private.arrays import Array
from distnet._private.spawn import python_command
from distnet.benchmark.echo import connect, exchange
from distnet.benchmark.sizes import SIZES, Size
from distnet.benchmark.turns import Contender, WrongAnswer, time_in_turns, timed
from distnet.errors import DistNetError
from distnet.launch.children import Children, Line
from distnet.optimizers import SGD, Optimizer

__all__ = [
    "RATE",
    "SIZES",
    "Contender",
    "Size",
    "WrongAnswer",
    "children_of_this_process",
    "loopback",
    "memory_copy",
    "optimizer_in_place",
    "push_pull",
    "python_layer",
    "sgd_in_place",
    "sgd_on_two_cores",
    "time_in_turns",
    "unix_socket",
]


_DEADLINE_S = 300.0  # a machine that is busy, or suspended for a while, is no reason to give up

RATE = 0.5  # with gradients of ones every answer of SGD is a multiple of a half, and exact


@contextlib.contextmanager
def memory_copy(size: Size) -> Iterator[Contender]:
    """Copy the model's bytes once."""
    source, target = np.ones(size.floats, np.float32), np.zeros(size.floats, np.float32)

    def check(calls: int) -> None:
        _expect(calls == 0 or np.array_equal(source, target), "the copy differs from its source")

    yield Contender(name="memcpy", run=timed(lambda: np.copyto(target, source)), check=check)


@contextlib.contextmanager
def sgd_in_place(size: Size) -> Iterator[Contender]:
    """Apply a gradient to parameters of the same process by the native store: the work no server can avoid."""
    with optimizer_in_place(size, SGD(RATE), name="SGD in place") as contender:
        yield contender


@contextlib.contextmanager
def optimizer_in_place(size: Size, optimizer: Optimizer, *, name: str) -> Iterator[Contender]:
    """Step any optimizer in place, in this process and on one core."""
    import distnet

    store = distnet.LockFreeStore(np.zeros(size.floats, np.float32), optimizer)
    gradient = np.ones(size.floats, np.float32)

    def check(calls: int) -> None:
        out = np.empty(size.floats, np.float32)
        store.read(out)
        _expect_steps([out], optimizer, calls, "the store")

    yield Contender(name=name, run=timed(lambda: store.apply(gradient)), check=check)


@contextlib.contextmanager
def sgd_on_two_cores(size: Size) -> Iterator[Contender]:
    """Apply a gradient in place with two threads, each of which steps its own half again and again."""
    import distnet

    halves = (size.floats // 2, size.floats - size.floats // 2)
    stores = [distnet.LockFreeStore(np.zeros(count, np.float32), SGD(RATE)) for count in halves]
    gradients = [np.ones(count, np.float32) for count in halves]

    def step(half: int, calls: int) -> None:
        apply, gradient = stores[half].apply, gradients[half]
        for _ in range(calls):
            apply(gradient)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:

        def run(calls: int) -> list[float]:
            start_s = time.perf_counter()
            for future in [pool.submit(step, half, calls) for half in (0, 1)]:
                future.result()
            return [(time.perf_counter() - start_s) / calls] * calls

        def check(calls: int) -> None:
            outs = [np.empty(count, np.float32) for count in halves]
            for store, out in zip(stores, outs, strict=True):
                store.read(out)
            _expect_steps(outs, SGD(RATE), calls, "the stores")

        yield Contender(name="SGD in place, two cores", run=run, check=check)


@contextlib.contextmanager
def loopback(size: Size) -> Iterator[Contender]:
    """Send the model's bytes to another process over a bare TCP socket, and get as many back."""
    with _bare_exchange(size, "tcp", "bare TCP exchange") as contender:
        yield contender


@contextlib.contextmanager
def unix_socket(size: Size) -> Iterator[Contender]:
    """Do the same over a Unix socket."""
    with _bare_exchange(size, "unix", "bare Unix exchange") as contender:
        yield contender


@contextlib.contextmanager
def _bare_exchange(size: Size, kind: str, name: str) -> Iterator[Contender]:
    with Children() as children:
        child = children.start("echo", python_command("distnet.benchmark.echo", str(size.bytes), kind))
        with connect(_first_line(children)) as connection:
            outgoing = np.ones(size.floats, np.float32).data.cast("B")
            incoming = memoryview(bytearray(size.bytes))

            def check(calls: int) -> None:
                _expect(calls == 0 or incoming == outgoing, "the bytes that came back are not those that were sent")

            yield Contender(
                name=name,
                run=timed(lambda: exchange(connection, outgoing, incoming)),
                check=check,
                pids=(child.process.pid,),
            )


@contextlib.contextmanager
def push_pull(
    size: Size,
    semantics: str,
    transport: str,
    *,
    name: str | None = None,
    call: str = "push_pull",
    optimizer: Optimizer | None = None,
    servers: int | None = None,
    alias: bool = False,
    wire: str | None = None,
    server_options: Mapping[str, Any] | None = None,
    connect_options: Mapping[str, Any] | None = None,
) -> Iterator[Contender]:
    """Push a gradient to a server process and get fresh parameters back in this process's own memory.

    Args:
        size: the model.
        semantics: one of the five names.
        transport: ``"shm"`` or ``"tcp"``.
        name: for tables; None: the semantics and the transport.
        call: ``"push_pull"``, or one half of it: ``"push"`` or ``"pull"``.
        optimizer: of the server; None: plain SGD.
        servers: how many shards; None: as few as the semantics allows.
        alias: look at the server's memory instead of copying the parameters.
        wire: the format of numbers over TCP, both ways; None: float32, that of memory.
        server_options: what else ``ParameterServer`` is given, such as fast paths that are switched off.
        connect_options: what else ``connect`` is given.
    """
    import distnet

    optimizer = optimizer or SGD(RATE)
    initial = np.float32(1 if call == "pull" else 0)
    parameters = [np.full(count, initial, np.float32) for count in size.tensors]
    gradients = [np.ones(count, np.float32) for count in size.tensors]
    address = "tcp://127.0.0.1:0" if transport == "tcp" else "shm://"
    formats: dict[str, Any] = {} if wire is None else {"push_format": wire, "pull_format": wire}
    before = children_of_this_process()
    with distnet.ParameterServer(
        parameters,
        semantics=semantics,
        optimizer=optimizer,
        workers=1,
        servers=servers,
        address=address,
        processes=True,
        **formats,
        **(server_options or {}),
    ) as server:
        pids = tuple(sorted(children_of_this_process() - before))
        options = {"timeout": _DEADLINE_S, **(connect_options or {})}
        client = distnet.connect(server.address, rank=0, transport=transport, **options)
        try:
            _expect(client.transport == transport, f"asked for {transport}, got {client.transport}")
            del parameters
            calls_by_name: dict[str, Callable[[], object]] = {
                "push_pull": lambda: client.push_pull(gradients, alias=alias),
                "push": lambda: client.push(gradients),
                "pull": lambda: client.pull(alias=alias),
            }

            def check(calls: int) -> None:
                if call == "pull":
                    _expect(all(bool(np.all(array == initial)) for array in _values(client.pull())), "pulled others")
                    return
                client.close()  # returns once every push is applied
                _expect_steps(_values(server.parameters()), optimizer, calls, "the server")

            yield Contender(
                name=name or f"{semantics} {transport}", run=timed(calls_by_name[call]), check=check, pids=pids
            )
        finally:
            client.close()


@contextlib.contextmanager
def python_layer(size: Size) -> Iterator[Contender]:
    """Call push_pull on a client whose native half does nothing: what its Python half takes."""
    from distnet.client import Client

    gradients = [np.ones(count, np.float32) for count in size.tensors]
    native = _Nothing(size)
    client = Client(native, 0, "")  # type: ignore[arg-type]

    def check(calls: int) -> None:
        _expect(native.finished == calls, f"{native.finished} calls arrived instead of {calls}")

    yield Contender(name="Python layer", run=timed(lambda: client.push_pull(gradients)), check=check)


class _Nothing:
    """Stands in for the native client."""

    def __init__(self, size: Size) -> None:
        self._arrays = [np.zeros(count, np.float32) for count in size.tensors]
        self.finished = 0

    def manifest(self) -> dict[str, Any]:
        tensors = [(str(index), array.shape, 0, 0) for index, array in enumerate(self._arrays)]
        return {"named": False, "tensors": tensors, "size": 0}

    def own_arrays(self) -> list[Array]:
        return self._arrays

    def begin(self, call: str, gradient: object, into_own: bool, waits: bool, settings: object = None) -> int:
        return 0

    def finish(self, number: int, out: object) -> None:
        self.finished += 1

    def notices(self) -> list[str]:
        return []


def children_of_this_process() -> frozenset[int]:
    """Return the ids of this process's children; none where the system does not list them."""
    tasks = Path("/proc/self/task")
    listings = [path.read_text() for path in tasks.glob("*/children")] if tasks.is_dir() else []
    return frozenset(int(pid) for listing in listings for pid in listing.split())


def _values(arrays: Any) -> list[Array]:
    return list(arrays.values()) if isinstance(arrays, dict) else list(arrays)


def _expect_steps(arrays: list[Array], optimizer: Optimizer, calls: int, who: str) -> None:
    """Hold every parameter to what so many steps with a gradient of ones make of zero."""
    import distnet

    one = distnet.LockFreeStore(np.zeros(1, np.float32), optimizer)
    for _ in range(calls):
        one.apply(np.ones(1, np.float32))
    expected = np.empty(1, np.float32)
    one.read(expected)
    for array in arrays:
        _expect(
            bool(np.allclose(array, expected[0], rtol=1e-5, atol=0.0)),
            f"after {calls} steps {who} should hold {expected[0]}, and holds {array[:4]} …",
        )


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise WrongAnswer(message)


def _first_line(children: Children) -> str:
    for _ in range(300):
        for event in children.wait(0.1):
            if isinstance(event, Line) and event.stream == "stdout":
                return event.text
            raise DistNetError(f"the other end of the bare exchange did not start: {event}")
    raise DistNetError("the other end of the bare exchange did not start within 30 s")
