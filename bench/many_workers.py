"""Total throughput of push_pull with 1 to 16 worker processes, and whether any of them starves.

One pool of worker processes connects to a server for every setting; in each turn every setting runs for a moment, one
after another in a shuffled order. Asynchronous workers push for as long as the moment lasts and are counted;
synchronous ones make so many rounds together. The answer is checked: every server must have applied every push.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from distnet._private.spawn import python_command
from distnet.benchmark.measure import RATE, SIZES
from distnet.benchmark.turns import WrongAnswer
from distnet.launch.children import Child, Children, Ended
from distnet.semantics import SEMANTICS

__all__ = ["SETTINGS", "Setting", "measure"]

SIZE = "alexnet"
COUNTS = (1, 2, 4)
MORE_COUNTS = (8, 16)
TRANSPORTS = ("shm", "tcp")
SCALING = (("sync", "shm"), ("async-apply", "shm"), ("async-lockfree", "shm"), ("async-lockfree", "tcp"))
MOMENT_S = 0.25
_PATIENCE_S = 300.0
_HEAD_START_S = 0.02  # every worker has read its order by then


@dataclasses.dataclass(frozen=True)
class Setting:
    """A semantics over a transport with so many workers."""

    semantics: str
    transport: str
    workers: int

    @property
    def name(self) -> str:
        """For results."""
        return f"{self.semantics} {self.transport} {self.workers}"


SETTINGS = (
    *(Setting(semantics, transport, n) for semantics in SEMANTICS for transport in TRANSPORTS for n in COUNTS),
    *(Setting(semantics, transport, n) for semantics, transport in SCALING for n in MORE_COUNTS),
)


def measure(settings: Sequence[Setting] = SETTINGS, *, turns: int = 6) -> dict[str, Any]:
    """Return, by setting: exchanges a second of all workers together, and the slowest worker's share of the mean."""
    per_s: dict[str, list[float]] = {setting.name: [] for setting in settings}
    slowest: dict[str, list[float]] = {setting.name: [] for setting in settings}
    pushed = dict.fromkeys(per_s, 0)
    with contextlib.ExitStack() as stack:
        servers = {setting.name: stack.enter_context(_server(setting)) for setting in settings}
        pool = stack.enter_context(_pool(settings, servers))
        order = random.Random(1)
        rounds = {setting.name: 4 for setting in settings}
        for turn in range(turns + 1):
            for setting in order.sample(list(settings), len(settings)):
                made = pool.run(setting, rounds[setting.name])
                pushed[setting.name] += sum(calls for calls, _ in made)
                rate = sum(calls / seconds for calls, seconds in made)
                if turn == 0:  # warm now, and known to take so long
                    rounds[setting.name] = max(4, int(MOMENT_S * rate / setting.workers))
                    continue
                per_s[setting.name].append(rate)
                slowest[setting.name].append(min(calls for calls, _ in made) * len(made) / sum(c for c, _ in made))
        pool.close()
        for setting in settings:
            updates = servers[setting.name].stats()["updates"]
            expected = pushed[setting.name] // (setting.workers if setting.semantics == "sync" else 1)
            if updates != expected:
                raise WrongAnswer(f"{setting.name}: {updates} updates instead of {expected}")
    return {name: {"per_s": per_s[name], "slowest_share": slowest[name]} for name in per_s}


@contextlib.contextmanager
def _server(setting: Setting) -> Iterator[Any]:
    import numpy as np

    import distnet

    parameters = [np.zeros(count, np.float32) for count in SIZES[SIZE].tensors]
    with distnet.ParameterServer(
        parameters,
        semantics=setting.semantics,
        optimizer=distnet.SGD(RATE),
        workers=setting.workers,
        address="shm://" if setting.transport == "shm" else "tcp://127.0.0.1:0",
        processes=True,
    ) as server:
        yield server


class _Pool:
    """Worker processes that know every setting's server."""

    def __init__(self, children: Children, workers: list[Child]) -> None:
        self._children = children
        self._workers = workers

    def run(self, setting: Setting, rounds: int) -> list[tuple[int, float]]:
        """Return the calls and the seconds of each worker."""
        work = {"rounds": rounds} if setting.semantics == "sync" else {"seconds": MOMENT_S}
        at_s = time.monotonic() + _HEAD_START_S
        chosen = self._workers[: setting.workers]
        for worker in chosen:
            worker.send(json.dumps({"setting": setting.name, "at_s": at_s, **work}))
        return [tuple(answer) for answer in self.answers(chosen)]

    def answers(self, workers: Sequence[Child]) -> list[Any]:
        """Return what each of them says next."""
        found: dict[Child, Any] = {}
        give_up_s = time.monotonic() + _PATIENCE_S
        while len(found) < len(workers):
            if time.monotonic() > give_up_s:
                raise RuntimeError("the workers were silent for five minutes")
            for event in self._children.wait(0.2):
                if isinstance(event, Ended):
                    raise RuntimeError(f"{event.child.name} ended with {event.status}")
                if event.stream == "stdout":
                    found[event.child] = json.loads(event.text)
                else:
                    sys.stderr.write(f"{event.child.name}: {event.text}\n")
        return [found[worker] for worker in workers]

    def close(self) -> None:
        """Have every worker leave its servers in order."""
        for worker in self._workers:
            worker.send(json.dumps({"end": True}))
        self.answers(self._workers)


@contextlib.contextmanager
def _pool(settings: Sequence[Setting], servers: dict[str, Any]) -> Iterator[_Pool]:
    with Children() as children:
        workers = []
        for rank in range(max(setting.workers for setting in settings)):
            mine = [
                (setting.name, servers[setting.name].address, setting.transport)
                for setting in settings
                if rank < setting.workers
            ]
            command = python_command(__name__, json.dumps({"rank": rank, "servers": mine}))
            workers.append(children.start(f"worker {rank}", command, stdin=True))
        pool = _Pool(children, workers)
        pool.answers(workers)
        yield pool


def work(rank: int, servers: list[tuple[str, str, str]]) -> None:
    """Run as a worker process."""
    import numpy as np

    import distnet

    gradients = [np.ones(count, np.float32) for count in SIZES[SIZE].tensors]
    clients = {
        name: distnet.connect(address, rank=rank, transport=transport, timeout=_PATIENCE_S)
        for name, address, transport in servers
    }
    _say([])
    for line in sys.stdin:
        order = json.loads(line)
        if "end" in order:
            for client in clients.values():
                client.close()
            _say([])
            continue
        push_pull, calls = clients[order["setting"]].push_pull, 0
        time.sleep(max(0.0, order["at_s"] - time.monotonic()))
        start_s = time.perf_counter()
        end_s = start_s + order.get("seconds", 0.0)
        while calls < order["rounds"] if "rounds" in order else time.perf_counter() < end_s:
            push_pull(gradients)
            calls += 1
        _say([calls, time.perf_counter() - start_s])


def _say(what: list[float]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
