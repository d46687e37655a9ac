"""What ``distnet bench`` and ``bench/`` measure: a push_pull against the limits of the machine it runs on.

Every measured thing is a ``Contender``: something to call again and again, and a check of its answer at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distnet.errors import DistNetError
from distnet.launch.children import Children, Line
from distnet.launch.echo import exchange, prepare_socket
from distnet.spawn import python_command

__all__ = [
    "SIZES",
    "Contender",
    "Size",
    "Timing",
    "WrongAnswer",
    "loopback",
    "memory_copy",
    "push_pull",
    "sgd_in_place",
    "time_in_turns",
]

Array = NDArray[np.float32]

_FEWEST_TURNS = 3
RATE = 0.5  # with gradients of ones every answer is a multiple of a half, and exact


class WrongAnswer(DistNetError):
    """Something was measured that did not do its work."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's size: its name and its tensors' sizes, in floats."""

    name: str
    tensors: tuple[int, ...]

    @property
    def floats(self) -> int:
        """How many floats there are in all tensors."""
        return sum(self.tensors)

    @property
    def bytes(self) -> int:
        """How many bytes they take."""
        return 4 * self.floats


SIZES = {
    "small": Size("4 KiB", (1024,)),
    "alexnet": Size("AlexNet, 4.27 MB", (4800, 64, 102400, 64, 884736, 384, 73728, 192, 1920, 10)),
    "resnet50": Size("ResNet-50, 102 MB", (1_597_314,) * 16),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time.

    Attributes:
        name: for tables.
        call: does it once.
        check: raises ``WrongAnswer`` unless the answer after so many calls is right.
    """

    name: str
    call: Callable[[], object]
    check: Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians of a contender's calls.

    Attributes:
        latency_s: from a call to its answer.
        sustained_s: a call's share of the time of several in a row: what bounds throughput.
    """

    latency_s: float
    sustained_s: float


@contextlib.contextmanager
def memory_copy(size: Size) -> Iterator[Contender]:
    """Copy the model's bytes once."""
    source, target = np.ones(size.floats, np.float32), np.zeros(size.floats, np.float32)

    def check(calls: int) -> None:
        _expect(calls == 0 or np.array_equal(source, target), "the copy differs from its source")

    yield Contender(name="memcpy", call=lambda: np.copyto(target, source), check=check)


@contextlib.contextmanager
def sgd_in_place(size: Size) -> Iterator[Contender]:
    """Apply a gradient to parameters of the same process by the native store: the work no server can avoid."""
    import distnet

    store = distnet.LockFreeStore(np.zeros(size.floats, np.float32), distnet.SGD(RATE))
    gradient = np.ones(size.floats, np.float32)

    def check(calls: int) -> None:
        out = np.empty(size.floats, np.float32)
        store.read(out)
        _expect(bool(np.all(out == -RATE * calls)), f"after {calls} updates the store holds {out[:4]} …")

    yield Contender(name="SGD in place", call=lambda: store.apply(gradient), check=check)


@contextlib.contextmanager
def loopback(size: Size) -> Iterator[Contender]:
    """Send the model's bytes to another process over a bare TCP socket, and get as many back."""
    with Children() as children:
        children.start("echo", python_command("distnet.launch.echo", str(size.bytes)))
        with socket.create_connection(("127.0.0.1", _port(children)), timeout=30.0) as connection:
            prepare_socket(connection)
            outgoing = np.ones(size.floats, np.float32).data.cast("B")
            incoming = memoryview(bytearray(size.bytes))

            def check(calls: int) -> None:
                _expect(calls == 0 or incoming == outgoing, "the bytes that came back are not those that were sent")

            yield Contender(
                name="bare loopback exchange", call=lambda: exchange(connection, outgoing, incoming), check=check
            )


@contextlib.contextmanager
def push_pull(size: Size, semantics: str, transport: str) -> Iterator[Contender]:
    """Push a gradient to a server process and get fresh parameters back in this process's own memory."""
    import distnet

    parameters: list[Array] = [np.zeros(count, np.float32) for count in size.tensors]
    gradients = [np.ones(count, np.float32) for count in size.tensors]
    address = "tcp://127.0.0.1:0" if transport == "tcp" else "shm://"
    optimizer = distnet.SGD(RATE)
    with distnet.ParameterServer(
        parameters, semantics=semantics, optimizer=optimizer, workers=1, address=address, processes=True
    ) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        try:
            _expect(client.transport == transport, f"asked for {transport}, got {client.transport}")

            def check(calls: int) -> None:
                client.close()  # returns once every push is applied
                for array in server.parameters():
                    _expect(
                        bool(np.all(array == -RATE * calls)), f"after {calls} pushes the server holds {array[:4]} …"
                    )

            yield Contender(name=semantics, call=lambda: client.push_pull(gradients), check=check)
        finally:
            client.close()


def time_in_turns(contenders: Sequence[Contender], *, budget_s: float, turn: int = 8) -> dict[str, Timing]:
    """Time contenders in turns, and return medians by name.

    In turns, so that what disturbs the machine meets all alike; of several calls each, because a server that answers
    before it applies would otherwise do its work in the others' time. Answers are checked at the end.
    """
    latencies: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    sustained: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    give_up_s = time.perf_counter() + budget_s
    turns = 0
    while turns < 1 + _FEWEST_TURNS or time.perf_counter() < give_up_s:
        for contender in contenders:
            moments = [time.perf_counter()]
            for _ in range(turn):
                contender.call()
                moments.append(time.perf_counter())
            if turns > 0:  # the first turn is for the caches and the page tables
                latencies[contender.name] += [end - start for start, end in itertools.pairwise(moments)]
                sustained[contender.name].append((moments[-1] - moments[0]) / turn)
        turns += 1
    for contender in contenders:
        contender.check(turns * turn)
    median = statistics.median
    return {name: Timing(latency_s=median(latencies[name]), sustained_s=median(sustained[name])) for name in latencies}


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise WrongAnswer(message)


def _port(children: Children) -> int:
    for _ in range(300):
        for event in children.wait(0.1):
            if isinstance(event, Line) and event.stream == "stdout":
                return int(event.text)
            raise DistNetError(f"the other end of the bare exchange did not start: {event}")
    raise DistNetError("the other end of the bare exchange did not start within 30 s")
