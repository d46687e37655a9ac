"""Two processes of a rival: how the harness starts them, has them measured, and ends them.

A rival's worker runs in a process of its own and times its own calls, so that no framework is ever loaded into the
harness, and two of them never into one process. It speaks lines of JSON: it says it is ready, is told how many calls to
make and answers with the seconds of each, and is asked for its answer at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distnet._private.spawn import python_command
from distnet.benchmark.measure import RATE, Size
from distnet.benchmark.turns import Contender, WrongAnswer
from distnet.launch.children import Child, Children, Ended, describe_status

__all__ = ["RivalFailed", "free_ports", "pair", "prefer_reno", "serve"]

_START_S = 120.0  # a framework that is imported by three processes on a busy machine takes its time
_ANSWER_S = 300.0
_END_S = 20.0


class RivalFailed(RuntimeError):
    """A rival did not start, or died.

    Attributes:
        rival: the contender's name.
        entry: its name in the group that it was started for, where that is known.
    """

    def __init__(self, rival: str, why: str) -> None:
        super().__init__(f"{rival}: {why}")
        self.rival = rival
        self.entry: str | None = None


@contextlib.contextmanager
def pair(
    name: str, module: str, size: Size, *, roles: Sequence[str], polls: bool = False, **options: Any
) -> Iterator[Contender]:
    """Start a rival's processes and yield a contender that has its worker measure.

    Args:
        name: for tables.
        module: what the processes run, as ``python -m`` would; its ``main`` gets the role and the options.
        size: the model.
        roles: a process each; the last one is the worker that measures.
        polls: whether its processes keep a core busy while nothing is asked of them; they are then suspended while
            others run, whom they would slow down.
        options: handed to every process, beside ``tensors`` (their sizes) and ``folder`` (for its files, removed at the
            end).
    """
    with (
        tempfile.TemporaryDirectory(prefix="rival-", ignore_cleanup_errors=True) as folder,
        Children() as children,
    ):
        told = json.dumps({**options, "tensors": size.tensors, "folder": folder})
        started = {
            role: children.start(
                f"{name} {role}",
                python_command(module, role, told),
                environment=_environment(folder),
                log=Path(folder) / f"{role}.log",
                stdin=True,
            )
            for role in roles
        }
        worker = started[roles[-1]]
        conversation = _Conversation(name, children, worker)
        pids = tuple(child.process.pid for child in started.values())
        ready = conversation.answer(_START_S)

        def signal_all(number: signal.Signals) -> None:
            for child in started.values() if polls else ():
                child.signal_group(number)

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            signal_all(signal.SIGCONT)
            try:
                worker.send(json.dumps(question))
                return conversation.answer(_ANSWER_S)
            finally:
                signal_all(signal.SIGSTOP)

        def run(calls: int) -> Sequence[float]:
            seconds: list[float] = ask({"calls": calls})["seconds"]
            return seconds

        def check(calls: int) -> None:
            low, high = ask({"answer": True})["answer"]
            if ready["checks"] == "steps" and (low, high) != (-RATE * calls, -RATE * calls):
                raise WrongAnswer(f"after {calls} steps {name} should hold {-RATE * calls}; it holds {low} to {high}")
            if ready["checks"] == "itself" and not low == high == 1:
                raise WrongAnswer(f"{name} found its own answer wrong")

        signal_all(signal.SIGSTOP)
        try:
            yield Contender(name=name, run=run, check=check, pids=pids)
        finally:
            signal_all(signal.SIGCONT)
            worker.close_input()
            conversation.wait_for_the_end(_END_S)


class _Conversation:
    """Lines of one child, while all children are watched for their deaths."""

    def __init__(self, name: str, children: Children, worker: Child) -> None:
        self._name = name
        self._children = children
        self._worker = worker

    def answer(self, within_s: float) -> dict[str, Any]:
        give_up_s = time.monotonic() + within_s
        while time.monotonic() < give_up_s:
            for event in self._children.wait(0.2):
                if isinstance(event, Ended):
                    why = f"{event.child.name} {describe_status(event.status)}:\n{event.child.last_words()}"
                    raise RivalFailed(self._name, why)
                # Frameworks write what they like to standard output; what is meant for us is marked.
                if event.child is self._worker and event.text.startswith(_MARK):
                    answer: dict[str, Any] = json.loads(event.text[len(_MARK) :])
                    return answer
        raise RivalFailed(self._name, f"silent for {within_s:.0f} s:\n{self._worker.last_words()}")

    def wait_for_the_end(self, within_s: float) -> None:
        give_up_s = time.monotonic() + within_s
        while time.monotonic() < give_up_s and self._worker.status() is None:
            self._children.wait(0.05)


_MARK = "=bench= "


def serve(run: Callable[[int], Sequence[float]], answer: Callable[[], tuple[float, float]], *, checks: str) -> None:
    """Run the worker's side: measure when told to, until standard input ends.

    Args:
        run: makes so many calls and returns the seconds of each.
        answer: the smallest and largest of the parameters, wherever they are to be found.
        checks: ``"steps"`` where they must be what so many steps make of zero; ``"itself"`` where they are 1 if right.
    """
    _say({"ready": True, "checks": checks})
    for line in sys.stdin:
        request = json.loads(line)
        if "calls" in request:
            _say({"seconds": list(run(request["calls"]))})
        else:
            _say({"answer": answer()})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(f"{_MARK}{json.dumps(what)}\n")
    sys.stdout.flush()


def _environment(folder: str) -> dict[str, str]:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **quiet, "TMPDIR": folder}  # whatever they leave there goes with the folder


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses now, for rivals that must be told theirs before they start."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def prefer_reno() -> None:
    """Give this process's TCP connections a congestion control that does not pace on loopback, from now on."""

    def watch() -> None:
        seen: set[str] = set()
        while True:
            for entry in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    link = str(entry.readlink())
                    if not link.startswith("socket:") or link in seen:
                        continue
                    seen.add(link)
                    with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                        if connection.family in (socket.AF_INET, socket.AF_INET6):
                            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
            time.sleep(0.25)

    if sys.platform == "linux":
        threading.Thread(target=watch, daemon=True).start()
