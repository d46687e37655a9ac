"""Processes that are ranks of torch.distributed, for the tests of DistNet's backend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_processes import Worker, started

RANK = Path(__file__).parent / "workers" / "torch_rank.py"


class Ranks:
    """Ranks that run cases together."""

    def __init__(self, size: int, folder: Path) -> None:
        self._workers = started(size, RANK)
        self._folder = folder
        self._numbers = itertools.count()

    def begin(
        self, case: str, transport: str, *, size: int | None = None, of: int | None = None, **arguments: Any
    ) -> list[Worker]:
        """Tell the first `size` ranks of `of` to run a function of ``workers/torch_cases/``, and return them."""
        arguments.setdefault("store", str(self._folder / f"store-{next(self._numbers)}"))
        workers = self._workers[:size]
        for rank, worker in enumerate(workers):
            worker.begin(
                "run",
                case=case,
                rank=rank,
                size=of or len(workers),
                transport=transport,
                **arguments,
            )
        return workers

    def run(
        self, case: str, transport: str, *, size: int | None = None, within_s: float = 60.0, **arguments: Any
    ) -> list[Any]:
        """Have the first `size` ranks run a function; return what it returns on each, and raise what it raises."""
        return [worker.result(within_s) for worker in self.begin(case, transport, size=size, **arguments)]

    def mend(self) -> None:
        """Start those anew that a failed test has left busy or dead."""
        for index, worker in enumerate(self._workers):
            if worker.busy or worker.ended():
                worker.end()
                (self._workers[index],) = started(1, RANK)

    def end(self) -> None:
        """End them all."""
        for worker in self._workers:
            worker.end()


@pytest.fixture(scope="module")
def rank_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Three ranks that the tests of a module use one after another."""
    pool = Ranks(3, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.end()


@pytest.fixture
def mortal_ranks(tmp_path: Path) -> Iterator[Ranks]:
    """Three ranks that the test may kill."""
    own = Ranks(3, tmp_path)
    yield own
    own.end()


@pytest.fixture
def ranks(rank_pool: Ranks) -> Iterator[Ranks]:
    """Three ranks."""
    yield rank_pool
    rank_pool.mend()
