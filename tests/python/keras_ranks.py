"""Two processes that train with Keras over a server, for the tests of every backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_cases.training import WORKERS, Training
from worker_processes import Worker, WorkerError, started

import distnet

__all__ = ["KerasRanks", "Outcome", "assert_same", "assert_same_history", "rank_pool", "ranks"]

RANK = Path(__file__).parent / "workers" / "keras_rank.py"
WITHIN_S = 100.0

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a training by workers.

    Attributes:
        ranks: what each rank ended with.
        stats: of the server, at the end.
        parameters: that the server ended with, by name.
        optimizer: that the server had.
    """

    ranks: Sequence[Result]
    stats: Any
    parameters: Any
    optimizer: Any


class KerasRanks:
    """A process for each rank, all with the same backend, that run many trainings one after the other.

    Args:
        backend: of Keras.

    Attributes:
        backend: of Keras.
        within_s: how long a call may take.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.within_s = WITHIN_S
        self._workers = self._started(WORKERS)

    def _started(self, count: int) -> list[Worker]:
        workers = started(count, RANK)
        for worker in workers:
            worker.begin("load", backend=self.backend)
        for worker in workers:
            worker.result(self.within_s)
        return workers

    def begin(self, rank: int, call: str, /, **arguments: Any) -> Worker:
        """Have a rank call a function of ``keras_cases``, and return the process."""
        if isinstance(arguments.get("training"), Training):
            arguments["training"] = arguments["training"].told()
        self._workers[rank].begin(call, **arguments)
        return self._workers[rank]

    def do(self, rank: int, call: str, /, **arguments: Any) -> Any:
        """Have a rank call a function, and return what that returns."""
        return self.begin(rank, call, **arguments).result(self.within_s)

    def alone(self, training: Training) -> Result:
        """Return what one process with whole batches ends with."""
        result: Result = self.do(0, "runs.alone", training=training)
        return result

    def imitated(self, training: Training, how: str = "halves") -> list[Result]:
        """Return what each rank ends with as one process imitates it."""
        result: list[Result] = self.do(1, f"imitation.{how}", training=training)
        return result

    def together(
        self, training: Training, *, semantics: str | distnet.Semantics = "sync", servers: int | None = None
    ) -> Outcome:
        """Train by all workers over a server that rank 0 brings model and optimizer."""
        with distnet.ParameterServer(semantics=semantics, servers=servers, workers=WORKERS) as server:
            ranks = self.both("runs.together", server, training=training)
            return Outcome(
                ranks=ranks, stats=server.stats(), parameters=server.parameters(), optimizer=server.optimizer
            )

    def both(self, call: str, server: distnet.ParameterServer, /, **arguments: Any) -> list[Any]:
        """Have every rank call a function beside a server; the first error is raised once all have ended."""
        outcomes = self.outcomes(call, server, **arguments)
        for each in outcomes:
            if isinstance(each, Exception):
                raise each
        return outcomes

    def outcomes(self, call: str, server: distnet.ParameterServer, /, **arguments: Any) -> list[Any]:
        """Have every rank call a function beside a server, and return results and errors."""
        workers = [
            self.begin(rank, call, rank=rank, address=server.local_address, **arguments) for rank in range(WORKERS)
        ]
        found: list[Any] = []
        for worker in workers:
            try:
                found.append(worker.result(self.within_s))
            except WorkerError as error:
                found.append(error)
        return found

    def mend(self) -> None:
        """Start those anew that a failed test has left busy or dead."""
        for index, worker in enumerate(self._workers):
            if worker.busy or worker.ended():
                worker.end()
                (self._workers[index],) = self._started(1)

    def end(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.end()


@pytest.fixture(scope="module")
def rank_pool(request: pytest.FixtureRequest) -> Iterator[KerasRanks]:
    """Two processes that have the backend of a module loaded: that takes longer than most of its tests."""
    pool = KerasRanks(request.module.BACKEND)
    yield pool
    pool.end()


@pytest.fixture
def ranks(rank_pool: KerasRanks) -> Iterator[KerasRanks]:
    """The processes, which a failed test may leave busy or dead."""
    yield rank_pool
    rank_pool.within_s = WITHIN_S
    rank_pool.mend()


def assert_same(seen: Result, expected: Result, tolerance: float = 1e-6, what: str = "weights") -> None:
    """Check that two trainings ended with the same values, by their order in the model."""
    assert len(seen[what]) == len(expected[what])
    for (name, value), wanted in zip(seen[what].items(), expected[what].values(), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=tolerance, atol=tolerance, err_msg=name)


def assert_same_history(seen: Result, expected: Result, tolerance: float = 1e-5) -> None:
    """Check that two trainings had the same metrics."""
    for name, values in expected["history"].items():
        np.testing.assert_allclose(seen["history"][name], values, rtol=tolerance, atol=tolerance, err_msg=name)
