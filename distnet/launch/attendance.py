"""Which ranks that have ended had ever connected: servers do not wait for them, and a script should have connected."""

from __future__ import annotations

import dataclasses

from distnet.launch.watching.watch import Watch

__all__ = ["Attendance", "Leaver"]

_ANSWER_WITHIN_S = 5.0  # in which a server says whether a worker that has ended had ever connected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaver:
    """A rank that has ended for good.

    Attributes:
        rank: the rank.
        never_connected: whether it is known that it had no session; False as well where the servers did not say.
    """

    rank: int
    never_connected: bool


class Attendance:
    """Judges ranks that have ended by counters that were taken after their end.

    Invariant: a rank that has left is judged once, within 5 s, whether the servers answer or not.

    Args:
        watch: is shown the counters; it is told who has left.

    Attributes:
        unconnected: ranks that ended without ever connecting, in the order in which that became known.

    Thread safety: one thread.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._left: dict[int, float] = {}  # ranks that are not judged yet, and when they left
        self.unconnected: list[int] = []

    @property
    def is_settled(self) -> bool:
        """Whether every rank that has left is judged."""
        return not self._left

    def leave(self, rank: int, now_s: float) -> None:
        """A rank has ended for good."""
        self._watch.leave(rank)
        self._left[rank] = now_s

    def judge(self, now_s: float, asked_s: float) -> list[Leaver]:
        """Return those that have left and can be judged now.

        Args:
            now_s: on the monotonic clock, as all times here.
            asked_s: when the newest counters that the watch was shown were asked for.
        """
        judged = []
        for rank, left_s in list(self._left.items()):
            answered = asked_s > left_s
            its_end_is_known = answered and not self._watch.is_live(rank)
            if not its_end_is_known and now_s - left_s < _ANSWER_WITHIN_S:
                continue
            del self._left[rank]
            never_connected = answered and self._watch.knows_all and rank not in self._watch.seen
            if never_connected:
                self.unconnected.append(rank)
            judged.append(Leaver(rank=rank, never_connected=never_connected))
        return judged
