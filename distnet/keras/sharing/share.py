"""Which of the items of something is a worker's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

from distnet._private import launcher_env
from distnet._private.bounds import check_whole
from distnet.errors import ConfigError

__all__ = ["Share"]

_MOST_WORKERS = 2**31 - 1
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """Deals items out in turn: of each complete round of ``workers`` items, a worker has the one at its rank.

    So all workers have equally many, and batch number n of all workers together is what one worker with batches that
    are ``workers`` times as large would read as its batch number n. Items of an incomplete last round are nobody's.

    Attributes:
        rank: of the worker, from 0.
        workers: how many there are.
    """

    rank: int
    workers: int

    @classmethod
    def of(cls, rank: int | None, workers: int | None) -> Share:
        """Return the share of a rank; with neither rank nor workers, that of this process in its job.

        Raises:
            ConfigError: only one of the two, or they make no sense; or the process belongs to no job.
        """
        if rank is None and workers is None:
            placement = launcher_env.placement()
            return cls(rank=placement.rank, workers=placement.size)
        if rank is None or workers is None:
            raise ConfigError(
                f"rank is {rank} and workers is {workers}; expected both, or neither for those of this job"
            )
        check_whole("workers", workers, 1, _MOST_WORKERS)
        check_whole("rank", rank, 0, workers - 1)
        return cls(rank=rank, workers=workers)

    def size(self, count: int, what: str) -> int:
        """Return how many of so many items are each worker's.

        Args:
            count: of the items.
            what: messages call them, such as ``"batches"``.

        Raises:
            ConfigError: there are fewer items than workers.
        """
        if count < self.workers:
            raise ConfigError(
                f"there are {count} {what} for {self.workers} workers; expected at least one each: take more data, "
                "smaller batches or fewer workers"
            )
        return count // self.workers

    def span(self, count: int, what: str) -> slice:
        """Return which of so many items are this worker's.

        Raises:
            ConfigError: as :meth:`size`.
        """
        return slice(self.rank, self.size(count, what) * self.workers, self.workers)

    def of_each_round(self, items: Iterable[Item]) -> Iterator[Item]:
        """Return this worker's item of each complete round, from a stream of any length."""
        own: list[Item] = []
        for number, item in enumerate(items):
            place = number % self.workers
            if place == self.rank:
                own.append(item)
            if place == self.workers - 1:
                yield own.pop()
