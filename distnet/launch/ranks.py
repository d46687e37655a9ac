"""The ranks of a job that run here: which of them have a process, will have one, or have ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from distnet.errors import DistNetError
from distnet.launch.children import Child, Ended

__all__ = ["Rank", "Ranks"]

_BACK_WITHIN_S = 2.0  # in which a worker may connect again after its server has given it up
_END_WITHIN_S = 5.0  # in which a worker ends that has said the error it ends with


@dataclasses.dataclass
class Rank:
    """One rank, and its process where it has one.

    Attributes:
        number: the rank.
        starts: how many processes it has had.
        start_at_s: when its next process starts; None: none is to start.
        ended_s: when its last process ended; None: it has one, or will have its first.
        status: how its last process ended, as ``subprocess`` has it.
        said: the error that its process said it ends with.
        hung: whether its process is killed because the servers gave it up.
    """

    number: int
    starts: int = 0
    start_at_s: float | None = 0.0
    ended_s: float | None = None
    status: int = 0
    said: DistNetError | None = None
    hung: bool = False
    _said_s: float = 0.0
    _given_up_s: float | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"worker {self.number}"

    @property
    def goes_on(self) -> bool:
        """Whether it has a process, or will have one."""
        return self.ended_s is None or self.start_at_s is not None

    def has_started(self) -> None:
        """It has a new process."""
        self.starts += 1
        self.start_at_s = self.ended_s = self.said = self._given_up_s = None
        self.hung = False

    def has_said(self, error: DistNetError, now_s: float) -> None:
        """Its process has said the error it ends with."""
        self.said, self._said_s = error, now_s

    def has_ended(self, event: Ended) -> None:
        """Its process has ended."""
        self.ended_s, self.status = event.at_s, event.status

    def is_overdue(self, now_s: float, *, silent: bool) -> bool:
        """Return whether its process should have ended by now.

        It hangs where the servers have heard nothing from it for its timeout and go on hearing nothing: a process that
        was only cut off for a while ends by itself, or connects again. One that has said its error has to end, too.

        Args:
            now_s: on the monotonic clock.
            silent: whether the servers have given it up, and it has not connected again.
        """
        if not silent:
            self._given_up_s = None
        elif self._given_up_s is None:
            self._given_up_s = now_s
        if self._given_up_s is not None and now_s - self._given_up_s >= _BACK_WITHIN_S:
            self.hung = True
        return self.hung or (self.said is not None and now_s - self._said_s >= _END_WITHIN_S)


class Ranks:
    """All ranks of a job that run here, by number and by process.

    Invariant: a process belongs to one rank for ever; of a rank's processes at most the newest is alive.
    """

    def __init__(self, numbers: Iterable[int]) -> None:
        self._ranks = {number: Rank(number) for number in numbers}
        self._of: dict[Child, Rank] = {}

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._ranks.values())

    def __len__(self) -> int:
        return len(self._ranks)

    def __getitem__(self, number: int) -> Rank:
        return self._ranks[number]

    def of(self, child: Child) -> Rank | None:
        """Return the rank that a process belongs to; None for another child."""
        return self._of.get(child)

    def has_started(self, rank: Rank, child: Child) -> None:
        """A rank has a new process."""
        self._of[child] = rank
        rank.has_started()

    @property
    def some_go_on(self) -> bool:
        """Whether any has a process, or will have one."""
        return any(rank.goes_on for rank in self)

    def stopped_in_words(self) -> str:
        """Return the end of a message about a job that stops now: which workers were stopped for it."""
        stopped = [rank for rank in self if rank.ended_s is None]
        if not stopped:
            return ""
        return "; the workers were stopped" if len(stopped) == len(self) else "; the other workers were stopped"
