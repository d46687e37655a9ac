"""What a door costs beside the exchange itself: a model that only hands out ready gradients, with and without DistNet.

Each row is a process of its own: Keras has one backend in a process. In it run in turns the framework's step over a
server, the same step with an optimizer that does nothing, and a bare ``push_pull`` of the same ten arrays. The door's
cost is the first less the other two. A part of that is no work of the door's: an exchange moves 17 MB through the
processor's caches, and the framework's step finds its own code and data gone from them. So there is a fourth: a step
that does nothing, and a bare exchange after it, by hand. A step with the framework's own SGD, which DistNet's takes the
place of, stands beside them. Every answer is checked.

Under XLA a step on TensorFlow that does nothing copies its gradients to variables: XLA would leave them out else.

    python bench/doors.py --only torch,keras-torch     # some rows; prints a table
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from door_steps import STEPS, TENSORS, Local, Run, nothing_else

from distnet._private.spawn import python_command
from distnet.benchmark.measure import RATE, SIZES, Contender, WrongAnswer, push_pull
from distnet.benchmark.turns import Spread, Timing, difference, time_in_turns
from distnet.client import Client
from distnet.optimizers import SGD

__all__ = ["BARE", "BY_HAND", "DOORS", "OWN", "WITH", "WITHOUT", "Door", "cost", "cost_over_hand", "measure"]

WITH, WITHOUT, OWN, BARE, BY_HAND = "with DistNet", "without", "its own SGD", "bare exchange", "by hand"
SEMANTICS = "async-apply"  # a reply holds the worker's own push: all of the server's work is in the exchange
_BUDGET_S = 25.0  # 200 rounds and more of each, where a step takes less than 10 ms
_PATIENCE_S = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Door:
    """A row.

    Attributes:
        name: for ``--only``.
        words: for tables.
        reach_s: the most that it should cost.
        needs: the packages without which it is left out.
        backend: of Keras; None: the row is without Keras.
    """

    name: str
    words: str
    reach_s: float
    needs: tuple[str, ...]
    backend: str | None = None

    @property
    def missing(self) -> str:
        """The package that is not installed; empty where all are."""
        return next((package for package in self.needs if importlib.util.find_spec(package) is None), "")


def _keras(backend: str, words: str, reach_s: float, suffix: str = "") -> Door:
    needs = ("keras", backend)
    return Door(name=f"keras-{backend}{suffix}", words=words, reach_s=reach_s, needs=needs, backend=backend)


DOORS = (
    Door(name="torch", words="PyTorch's optimizer", reach_s=0.1e-3, needs=("torch",)),
    _keras("torch", "Keras on PyTorch", 0.1e-3),
    _keras("tensorflow", "Keras on TensorFlow", 0.25e-3),
    _keras("tensorflow", "Keras on TensorFlow, under XLA", 0.6e-3, "-xla"),
    _keras("jax", "Keras on JAX", 0.6e-3),
    Door(name="jax", words="JAX, in jit", reach_s=0.6e-3, needs=("jax",)),
)


def measure(door: Door, *, share: float = 1.0) -> dict[str, Timing]:
    """Return the timings of a door by contender, measured in a process of its own.

    Raises:
        RuntimeError: the process failed; the message has its last words.
    """
    command = python_command("doors", "--here", door.name, "--share", str(share))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    if door.backend is not None:
        environment["KERAS_BACKEND"] = door.backend
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-5:]))
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: Timing(**{**timing, "turns_s": tuple(timing["turns_s"])}) for name, timing in found.items()}


def cost(timings: Mapping[str, Timing]) -> Spread | None:
    """Return the seconds of a step with DistNet, less those without and those of the bare exchange, turn by turn.

    None where one of the three was not measured.
    """
    if not {WITH, WITHOUT, BARE} <= set(timings):
        return None
    turns = zip(*(timings[name].turns_s for name in (WITH, WITHOUT, BARE)), strict=True)
    return Spread.of([served_s - alone_s - bare_s for served_s, alone_s, bare_s in turns])


def cost_over_hand(timings: Mapping[str, Timing]) -> Spread | None:
    """Return the seconds of a step with DistNet, less those of one that exchanges by hand after it, turn by turn.

    None where one of the two was not measured.
    """
    return difference(timings, WITH, BY_HAND) if {WITH, BY_HAND} <= set(timings) else None


def _measure_here(door: Door, share: float) -> dict[str, Timing]:
    steps = STEPS[door.name]
    with contextlib.ExitStack() as stack:
        contenders = [
            stack.enter_context(_served(WITH, lambda client: steps(client, nothing_else))),
            stack.enter_context(_served(BY_HAND, lambda client: steps(Local.NOTHING, _exchange_of(client)))),
            _alone(WITHOUT, steps(Local.NOTHING, nothing_else)),
            _alone(OWN, steps(Local.SGD, nothing_else)),
            stack.enter_context(push_pull(SIZES["alexnet"], SEMANTICS, "shm", name=BARE)),
        ]
        return time_in_turns(contenders, budget_s=share * _BUDGET_S)


def _exchange_of(client: Client) -> Callable[[], object]:
    ones = [np.ones(count, np.float32) for count in TENSORS]
    return lambda: client.push_pull(ones)


@contextlib.contextmanager
def _served(name: str, steps_of: Callable[[Client], Run]) -> Iterator[Contender]:
    import distnet

    zeros = [np.zeros(count, np.float32) for count in TENSORS]
    options: dict[str, Any] = {"semantics": SEMANTICS, "optimizer": SGD(RATE), "workers": 1, "processes": True}
    with (
        distnet.ParameterServer(zeros, address="shm://", **options) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        run = steps_of(client)

        def check(calls: int) -> None:
            updates = server.stats().updates
            values = server.parameters()
            if updates < calls or any(not np.all(value == -RATE * updates) for value in values):
                raise WrongAnswer(f"{calls} steps made {updates} updates, and parameters that are not those of SGD")

        yield Contender(name=name, run=run, check=check)


def _alone(name: str, run: Run) -> Contender:
    return Contender(name=name, run=run, check=lambda calls: None)


def main() -> int:
    """Measure some rows, or one in this process, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW,ROW", help=f"of {', '.join(door.name for door in DOORS)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual time")
    parser.add_argument("--here", metavar="ROW", help=argparse.SUPPRESS)
    options = parser.parse_args()
    by_name = {door.name: door for door in DOORS}
    if options.here is not None:
        found = _measure_here(by_name[options.here], options.share)
        print(json.dumps({name: dataclasses.asdict(timing) for name, timing in found.items()}))
        return 0
    chosen = options.only.split(",") if options.only else list(by_name)
    if unknown := set(chosen) - set(by_name):
        parser.error(f"no row is named {', '.join(sorted(unknown))}")
    columns = (WITH, WITHOUT, OWN, BARE, BY_HAND)
    print(
        " " * 32 + "".join(f"{name:>15}" for name in columns) + f"{'cost':>24}{'at most':>9}{'over by hand':>25}  (ms)"
    )
    for door in (by_name[name] for name in chosen):
        if door.missing:
            print(f"{door.words:32}  {door.missing} is not installed")
            continue
        timings = measure(door, share=options.share)
        cells = "".join(f"{1e3 * timings[name].sustained_s:15.3f}" for name in columns)
        over = f"{_words(cost(timings)):>24}{1e3 * door.reach_s:9.2f}{_words(cost_over_hand(timings)):>25}"
        print(f"{door.words:32}{cells}{over}", flush=True)
    return 0


def _words(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return f"{1e3 * spread.median:.3f} ({1e3 * spread.low:.3f} to {1e3 * spread.high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
