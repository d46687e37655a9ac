"""All-reduce, broadcast and all-gather of ``distnet.ProcessGroup`` beside gloo, in turns, in the same processes.

The ranks of a group are processes that hold one vector, and a group of each contender over it: ours over shared memory,
ours over TCP, and ``torch.distributed`` with gloo and with ours over shared memory. A contender is told how many
operations to do; the times are those of the rank that took longest for all of them. Every operation's answer is checked
at the end. What is reduced, broadcast, or gathered of all ranks together has so many floats. A bare exchange over TCP
sends their bytes to another process and gets as many back.

    python bench/collectives.py --only 2-alexnet --share 0.2      # a part by itself; prints a table
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rivals.pair import prefer_reno

from distnet._private.spawn import python_command
from distnet.benchmark.measure import Contender, WrongAnswer, loopback
from distnet.benchmark.sizes import SIZES, Size
from distnet.benchmark.turns import Timing, time_in_turns
from distnet.launch.children import Child, Children, Ended, describe_status

__all__ = ["FLOATS", "OPERATIONS", "OURS", "PARTS", "RANKS", "WAYS", "measure", "part_name"]

FLOATS = {"ten": 10, "alexnet": SIZES["alexnet"].floats, "resnet50": SIZES["resnet50"].floats}
RANKS = (2, 4)
OPERATIONS = ("allreduce", "broadcast", "allgather")
OURS = ("shm", "tcp")
WAYS = (*OURS, "gloo", "torch")
BARE = "bare TCP exchange"
PARTS = tuple((ranks, size) for ranks in RANKS for size in FLOATS)
_BUDGET_S = {"ten": 6.0, "alexnet": 15.0, "resnet50": 40.0}
_PATIENCE_S = 300.0
_END_S = 20.0


def part_name(ranks: int, size: str) -> str:
    """Return the name of a part of the results."""
    return f"{ranks}-{size}"


def measure(ranks: int, size: str, *, share: float = 1.0) -> dict[str, Timing]:
    """Return the timings of all operations and ways, by ``"operation way"``."""
    ways = WAYS if importlib.util.find_spec("torch") else OURS
    with contextlib.ExitStack() as stack:
        told = stack.enter_context(_ranks(ranks, FLOATS[size], ways))
        contenders = [_contender(told, operation, way) for operation in OPERATIONS for way in ways]
        if ranks == 2:
            contenders.append(stack.enter_context(loopback(Size(size, (FLOATS[size],)))))
        return time_in_turns(contenders, budget_s=share * _BUDGET_S[size])


def _contender(told: _Ranks, operation: str, way: str) -> Contender:
    def run(calls: int) -> list[float]:
        answers = told.ask({"operation": operation, "way": way, "calls": calls})
        slowest: list[float] = max(answers, key=sum)
        return slowest

    def check(calls: int) -> None:
        if not all(told.ask({"operation": operation, "way": way, "check": True})):
            raise WrongAnswer(f"{operation} {way}: a rank has another answer")

    return Contender(name=f"{operation} {way}", run=run, check=check)


class _Ranks:
    """The processes, told together what to do next."""

    def __init__(self, children: Children, ranks: Sequence[Child]) -> None:
        self._children = children
        self._ranks = ranks

    def ask(self, question: dict[str, Any]) -> list[Any]:
        """Return what each rank answers."""
        for rank in self._ranks:
            rank.send(json.dumps(question))
        return self.answers()

    def answers(self) -> list[Any]:
        """Return what each rank says next."""
        found: dict[Child, Any] = {}
        give_up_s = time.monotonic() + _PATIENCE_S
        while len(found) < len(self._ranks):
            if time.monotonic() > give_up_s:
                raise RuntimeError(f"the ranks were silent for {_PATIENCE_S:.0f} s")
            for event in self._children.wait(0.2):
                if isinstance(event, Ended):
                    words = event.child.last_words()
                    raise RuntimeError(f"{event.child.name} {describe_status(event.status)}:\n{words}")
                if event.text.startswith(_MARK):
                    found[event.child] = json.loads(event.text[len(_MARK) :])
        return [found[rank] for rank in self._ranks]

    def end(self) -> None:
        """Have all ranks leave their groups, and wait for them to end."""
        for rank in self._ranks:
            rank.close_input()
        give_up_s = time.monotonic() + _END_S
        while time.monotonic() < give_up_s and any(rank.status() is None for rank in self._ranks):
            self._children.wait(0.05)


_MARK = "=bench= "


@contextlib.contextmanager
def _ranks(count: int, floats: int, ways: Sequence[str]) -> Iterator[_Ranks]:
    import distnet

    with (
        tempfile.TemporaryDirectory(prefix="collectives-") as folder,
        distnet.GroupCoordinator("tcp://127.0.0.1:0") as coordinator,
        Children() as children,
    ):
        told = {"size": count, "floats": floats, "ways": list(ways), "address": coordinator.address, "folder": folder}
        started = [
            children.start(
                f"rank {rank}",
                python_command(
                    __name__ if __name__ != "__main__" else "collectives", json.dumps({"rank": rank, **told})
                ),
                log=Path(folder) / f"{rank}.log",
                stdin=True,
            )
            for rank in range(count)
        ]
        ranks = _Ranks(children, started)
        ranks.answers()
        yield ranks
        ranks.end()


# ---- one rank ------------------------------------------------------------------------------------------------------
class _Vectors:
    """What a rank's operations work on, the same memory for all ways."""

    def __init__(self, rank: int, size: int, floats: int) -> None:
        self.whole = np.ones(floats, np.float32)
        self.part = np.full(-(-floats // size), rank, np.float32)
        self.parts = np.zeros(size * len(self.part), np.float32)
        self._rank, self._size = rank, size

    def set_out(self, operation: str) -> None:
        """Begin with what shows whether the operation did its work."""
        self.whole.fill(1.0 if operation == "allreduce" or self._rank == 0 else 0.0)
        self.parts.fill(-1.0)

    def are_right(self, operation: str) -> bool:
        """Return whether one operation has been done since."""
        if operation == "allgather":
            return bool((self.parts.reshape(self._size, -1) == np.arange(self._size)[:, None]).all())
        return bool((self.whole == (self._size if operation == "allreduce" else 1.0)).all())


def _ours(transport: str, rank: int, size: int, address: str, vectors: _Vectors) -> dict[str, Callable[[], object]]:
    import distnet

    group = distnet.ProcessGroup(address, rank, size, name=transport, transport=transport, timeout=_PATIENCE_S)
    whole, part, parts = vectors.whole, vectors.part, vectors.parts
    return {
        "allreduce": lambda: group.allreduce(whole, out=whole),
        "broadcast": lambda: group.broadcast(whole, out=whole),
        "allgather": lambda: group.allgather(part, out=parts),
        "barrier": group.barrier,
        "close": group.close,
    }


def _gloo(rank: int, size: int, folder: str, vectors: _Vectors) -> dict[str, Callable[[], object]]:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=size)
    prefer_reno()
    return _through_torch(None, size, vectors)


def _torch(size: int, vectors: _Vectors) -> dict[str, Callable[[], object]]:
    """Ours, as a group beside that of gloo."""
    import torch.distributed as dist

    return _through_torch(dist.new_group(backend="distnet"), size, vectors)


def _through_torch(group: Any, size: int, vectors: _Vectors) -> dict[str, Callable[[], object]]:
    import torch
    import torch.distributed as dist

    whole, part, parts = (torch.from_numpy(array) for array in (vectors.whole, vectors.part, vectors.parts))
    pieces = list(parts.view(size, -1).unbind(0))
    return {
        "allreduce": lambda: dist.all_reduce(whole, group=group),
        "broadcast": lambda: dist.broadcast(whole, src=0, group=group),
        "allgather": lambda: dist.all_gather(pieces, part, group=group),
        "barrier": lambda: dist.barrier(group=group),
        "close": lambda: dist.destroy_process_group(group),
    }


def work(rank: int, size: int, floats: int, ways: Sequence[str], address: str, folder: str) -> None:
    """Run as one rank's process, until standard input ends."""
    vectors = _Vectors(rank, size, floats)
    makes: dict[str, Callable[[], dict[str, Callable[[], object]]]] = {
        **{way: functools.partial(_ours, way, rank, size, address, vectors) for way in OURS},
        "gloo": lambda: _gloo(rank, size, folder, vectors),
        "torch": lambda: _torch(size, vectors),
    }
    calls = {way: makes[way]() for way in ways}
    _say("ready")
    for line in sys.stdin:
        told = json.loads(line)
        operation, mine = told["operation"], calls[told["way"]]
        vectors.set_out(operation)
        mine["barrier"]()
        if "check" in told:
            mine[operation]()
            _say(vectors.are_right(operation))
            continue
        call, moments = mine[operation], [time.perf_counter()]
        for _ in range(told["calls"]):
            call()
            moments.append(time.perf_counter())
        _say([end - start for start, end in itertools.pairwise(moments)])
    for mine in reversed(calls.values()):  # gloo's is torch's first group, and all others end with it
        mine["close"]()


def _say(what: Any) -> None:
    sys.stdout.write(f"{_MARK}{json.dumps(what)}\n")
    sys.stdout.flush()


# ---- by itself -----------------------------------------------------------------------------------------------------
def main() -> None:
    """Measure some parts and print their medians, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part_name(*part) for part in PARTS]
    parser.add_argument("--only", metavar="PART,PART", help=f"of {', '.join(names)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual time")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else names
    for ranks, size in PARTS:
        if part_name(ranks, size) not in chosen:
            continue
        timings = measure(ranks, size, share=options.share)
        for name, timing in timings.items():
            gloo = timings.get(f"{name.partition(' ')[0]} gloo")
            beside = f"  {timing.sustained_s / gloo.sustained_s:6.2f} of gloo" if gloo else ""
            print(f"{ranks} ranks  {size:9} {name:18} {1e3 * timing.sustained_s:10.4f} ms{beside}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        work(**json.loads(sys.argv[1]))
    else:
        main()
